"""The JSONL file: rotation, full disks, killed writers, other writers, and the disk's word."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cloudevents.v1.http import from_json

from stanchion import ConfigError, Event
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.jsonl import JsonlSink
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.appender import Line, lines, number_of
from tests.servers import missing
from tests.waiting import eventually, eventually_sync

APPENDER = "tests.observers.sinks.appender"


class Loose(Event, type="jsonl:loose"):
    value: Any = None


def documents(*files):
    found = []
    for file in files:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert not data or data.endswith(b"\n"), file
        found += [json.loads(text) for text in data.splitlines()]
    return found


def numbers(*files):
    return [document["data"]["number"] for document in documents(*files)]


def older(path):
    """The rotated files, the oldest first."""
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{path.name}."))


def opened(path, **options):
    sink = JsonlSink(path, **options)
    sink.start()
    return sink


def appender(path, options, *command, under=()):
    program = [sys.executable, "-W", "error", "-m", APPENDER, str(path), json.dumps(options)]
    return subprocess.Popen(
        [*under, *program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process):
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "events.jsonl"


async def test_every_event_arrives_whole(path):
    async def read_back():
        return documents(path)

    await check_contract(Counterpart(JsonlSink(path), read_back))


async def test_a_line_is_what_the_reference_reader_of_cloudevents_reads(path):
    event = Line(writer="Ü", number=1, run_id="r", text="two\nlines\u2028three")
    async with ObserverManager() as manager:
        manager.register(JsonlSink(path))
        manager.notify(event)
        assert await manager.drain()
    (text,) = path.read_bytes().splitlines()
    read = from_json(text)
    data = read.get_data()
    assert data is not None
    assert (read["id"], read["type"], data["text"]) == (event.id, event.event_type, event.text)
    assert Event.from_cloudevent(text) == event


# ---- rotation


def test_a_file_that_would_get_too_large_is_rotated_and_nothing_is_lost(path):
    sink = opened(path, max_bytes=2000, keep=100)
    for first in range(0, 60, 6):
        sink.handle_batch(lines(6, first=first, text="x" * 100))
    sink.close()
    files = older(path)
    assert len(files) > 5
    assert all(file.stat().st_size <= 2000 for file in [*files, path])
    assert all(re.fullmatch(r"events\.jsonl\.\d{8}T\d{6}\.\d{6}Z", file.name) for file in files)
    assert numbers(*files, path) == list(range(60))


def test_an_event_larger_than_a_file_may_be_has_one_of_its_own(path):
    sink = opened(path, max_bytes=1000)
    for event in (*lines(2), *lines(1, text="x" * 5000, first=2), *lines(1, first=3)):
        sink.handle_batch([event])
    sink.close()
    assert [numbers(file) for file in [*older(path), path]] == [[0, 1], [2], [3]]


def test_a_file_is_rotated_when_its_first_event_is_too_old(path):
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    sink = opened(path, max_age="1h")
    sink.handle_batch([Line(writer="w", number=0)])
    sink.handle_batch([Line(writer="w", number=1)])
    assert not older(path)
    sink.close()
    path.unlink()
    path.write_text(json.dumps(Line(writer="w", number=2, timestamp=long_ago).to_cloudevent()))
    sink = opened(path, max_age="1h")
    sink.handle_batch([Line(writer="w", number=3)])
    sink.close()
    assert (numbers(*older(path)), numbers(path)) == ([2], [3])


def test_only_so_many_rotated_files_stay_and_others_are_left_alone(path):
    path.parent.mkdir()
    stranger = path.with_name("events.jsonl.1")
    stranger.write_text("kept by somebody else")
    sink = opened(path, max_bytes=300, keep=3)
    for event in lines(12):
        sink.handle_batch([event])
    eventually_sync(lambda: len(older(path)) == 4)
    sink.close()
    assert stranger.exists()
    kept = [file for file in older(path) if file != stranger]
    assert numbers(*kept, path) == list(range(8, 12))


def test_rotated_files_are_compressed(path):
    sink = opened(path, max_bytes=300, keep=20, compress=True, mode="0640")
    for event in lines(5):
        sink.handle_batch([event])
    eventually_sync(lambda: [file.suffix for file in older(path)] == [".gz"] * 4)
    sink.close()
    assert numbers(*older(path), path) == list(range(5))
    assert {stat.S_IMODE(file.stat().st_mode) for file in older(path)} == {0o640}


def test_what_an_ended_process_had_not_compressed_is_compressed_by_the_next(path):
    sink = opened(path, max_bytes=300)
    for event in lines(3):
        sink.handle_batch([event])
    sink.close()
    assert len(older(path)) == 2
    sink = opened(path, compress=True)
    eventually_sync(lambda: [file.suffix for file in older(path)] == [".gz"] * 2)
    sink.close()
    assert numbers(*older(path), path) == list(range(3))


def test_a_file_that_cannot_be_rotated_is_written_all_the_same(tmp_path, caplog):
    path = tmp_path / ("x" * 250)  # with the time of rotation its name is too long
    sink = opened(path, max_bytes=300)
    for event in lines(5):
        sink.handle_batch([event])
    sink.handle_batch(lines(5, first=5))
    sink.close()
    assert numbers(path) == list(range(10))
    assert caplog.text.count("cannot be rotated and grows: File name too long") == 1


# ---- whatever others do to the file


@pytest.mark.parametrize("how", ["moved", "removed", "moved, and another made"])
def test_the_file_is_made_again_where_something_else_took_it_away(path, how):
    sink = opened(path)
    sink.handle_batch(lines(2))
    if how == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".old"))
    if how.endswith("made"):
        path.touch(0o644)
    sink.handle_batch(lines(2, first=2))
    sink.close()
    assert numbers(path) == [2, 3]
    assert stat.S_IMODE(path.stat().st_mode) == (0o644 if how.endswith("made") else 0o600)
    if how != "removed":
        assert numbers(path.with_suffix(".old")) == [0, 1]


def test_a_file_cut_to_nothing_is_written_from_its_beginning(path):
    sink = opened(path)
    sink.handle_batch(lines(2))
    os.truncate(path, 0)
    sink.handle_batch(lines(1, first=2))
    sink.close()
    assert numbers(path) == [2]


@pytest.mark.parametrize("mode", [0o600, "0640", "0o660"])
def test_only_those_named_by_the_mode_may_read_it_whatever_the_umask(path, mode):
    before = os.umask(0o077 if mode != 0o600 else 0)
    try:
        opened(path, mode=mode).close()
    finally:
        os.umask(before)
    wanted = mode if isinstance(mode, int) else int(mode.removeprefix("0o"), 8)
    assert stat.S_IMODE(path.stat().st_mode) == wanted


def test_half_a_line_is_cut_off_before_the_next(path, caplog):
    sink = opened(path)
    sink.handle_batch(lines(2))
    half = b'{"specversion":"1.0","id":"' + b"x" * 200_000
    with path.open("ab") as other:
        other.write(half)
    sink.handle_batch(lines(1, first=2))
    sink.close()
    assert numbers(path) == [0, 1, 2]
    assert f"{len(half)} bytes were cut off" in caplog.text


def test_a_whole_line_that_only_lacks_its_end_is_kept(path):
    sink = opened(path)
    with path.open("ab") as other:
        other.write(json.dumps(lines(1)[0].to_cloudevent()).encode())
    sink.handle_batch(lines(1, first=1))
    sink.close()
    assert numbers(path) == [0, 1]


def size_of(directory):
    return sum(file.stat().st_size for file in directory.iterdir())


def has_grown(directory, size):
    return size_of(directory) > size


def test_a_killed_writer_leaves_a_file_that_goes_on_with_whole_lines(path):
    for _ in range(3):
        writer = appender(path, {"max_bytes": "1MB", "keep": 1000}, "forever")
        assert writer.stdout
        assert writer.stdout.readline() == "started\n"
        eventually_sync(partial(has_grown, path.parent, size_of(path.parent) + 2_000_000), 10)
        writer.kill()
        writer.communicate()
    sink = opened(path)
    sink.handle_batch(lines(1, writer="after"))
    sink.close()
    found = documents(*older(path), path)
    assert len(found) > 1000
    assert found[-1]["data"]["writer"] == "after"


def test_several_processes_write_one_file_and_rotate_it_together(path):
    options = {"max_bytes": 20_000, "keep": 1000, "batch_size": 20, "fsync": "never"}
    writers = [appender(path, options, "many", "500", name) for name in "abc"]
    assert [result_of(writer) for writer in writers] == [{"delivered": 500}] * 3
    found = documents(*older(path), path)
    for name in "abc":
        mine = [one["data"]["number"] for one in found if one["data"]["writer"] == name]
        assert mine == list(range(500))
    assert len(older(path)) > 5
    assert all(file.stat().st_size <= 20_000 for file in older(path))


def has_waiter(path):
    """Whether somebody waits for the lock on a file, as the system tells."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in lock and f":{path.stat().st_ino} " in lock for lock in locks)


async def test_another_process_in_the_middle_of_a_line_is_waited_for(path):
    sink = opened(path)
    text = json.dumps(lines(1)[0].to_cloudevent()).encode() + b"\n"
    with path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(text[:20])
        ours = asyncio.create_task(asyncio.to_thread(sink.handle_batch, lines(1, first=1)))
        try:
            await eventually(lambda: has_waiter(path) or ours.done())
            other.write(text[20:])
        finally:
            fcntl.flock(other, fcntl.LOCK_UN)
            await ours
    sink.close()
    assert numbers(path) == [0, 1]


# ---- a full disk


def check_refused_and_then_not(told):
    assert told["found"] == told["taken"] == told["still"]
    assert told["left"]
    assert told["end"] == [*told["taken"], *told["left"]] == list(range(len(told["end"])))
    assert told["again"] is True
    assert told["permanent"] is False


@pytest.mark.parametrize("fsync", ["never", "batch"])
def test_what_a_limit_on_the_file_keeps_out_is_written_when_there_is_room(path, fsync):
    options = {"fsync": fsync}
    told = result_of(appender(path, options, "limited", "20000"))
    check_refused_and_then_not(told)
    assert told["reason"].endswith("events.jsonl: File too large")
    # A batch was taken in part, to the last line that fitted.
    assert len(told["left"]) < 10


def test_what_a_full_disk_keeps_out_is_written_when_there_is_room(path):
    under = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    if shutil.which("unshare") is None or subprocess.run([*under, "true"], check=False).returncode:
        missing("this system lets no process mount a file system of its own")
    told = result_of(appender(path, {}, "full", under=under))
    check_refused_and_then_not(told)
    assert told["reason"].endswith("events.jsonl: No space left on device")


async def test_a_place_that_cannot_be_written_yet_is_written_when_it_can(path, caplog):
    sink = JsonlSink(path)
    path.mkdir(parents=True)
    async with ObserverManager() as manager:
        name = manager.register(sink)
        manager.notify(lines(1)[0])
        await eventually(lambda: "could not start" in caplog.text)
        path.rmdir()
        await eventually(lambda: manager.stats()[name].delivered == 1)
    assert numbers(path) == [0]


# ---- the disk's word


@pytest.fixture
def fsyncs(monkeypatch):
    """Every fsync of the test, still done by the system."""
    called = []
    real = os.fsync

    def counted(file):
        called.append(file)
        real(file)

    monkeypatch.setattr(os, "fsync", counted)
    return called


def test_under_batch_the_disk_has_it_before_it_counts_as_delivered(path, fsyncs):
    sink = opened(path, fsync="batch")
    for number in range(3):
        sink.handle_batch(lines(2))
        assert len(fsyncs) == number + 1
    sink.close()


def test_under_interval_the_disk_is_waited_for_now_and_then_and_at_the_end(path, fsyncs):
    sink = opened(path, fsync="interval", fsync_every="100ms")
    for _ in range(20):
        sink.handle_batch(lines(2))
    assert len(fsyncs) < 10
    # Without another event.
    eventually_sync(lambda: fsyncs)
    before = len(fsyncs)
    sink.handle_batch(lines(2))
    sink.close()
    assert len(fsyncs) == before + 1


def test_under_never_the_disk_is_not_waited_for(path, fsyncs):
    sink = opened(path, fsync="never")
    sink.handle_batch(lines(2))
    sink.close()
    assert not fsyncs


def test_what_the_disk_would_not_confirm_is_taken_back_and_reported(path, monkeypatch):
    sink = opened(path, fsync="batch")
    sink.handle_batch(lines(2))

    def refuse(file):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(Undelivered) as caught:
            sink.handle_batch(lines(2, first=2))
    assert [number_of(event) for event in caught.value.events] == [2, 3]
    assert numbers(path) == [0, 1]
    sink.handle_batch(caught.value.events)
    sink.close()
    assert numbers(path) == [0, 1, 2, 3]


# ---- what cannot be


def test_an_event_that_is_no_json_is_refused_for_good_and_the_others_are_written(path):
    sink = opened(path)
    first, last = lines(2)
    bad = Loose(value={1, 2})
    with pytest.raises(Undelivered) as caught:
        sink.handle_batch([first, bad, last])
    sink.close()
    assert (caught.value.events, caught.value.permanent) == ((bad,), True)
    assert numbers(path) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"path": ""}, "path="),
        ({"path": 3}, "path="),
        ({"path": "/"}, "path="),
        ({"max_bytes": 0}, "max_bytes="),
        ({"max_bytes": "100 apples"}, "max_bytes="),
        ({"max_bytes": True}, "max_bytes="),
        ({"max_age": "soon"}, "max_age="),
        ({"keep": -1}, "keep="),
        ({"compress": "yes"}, "compress="),
        ({"fsync": "always"}, "fsync="),
        ({"fsync_every": 0}, "fsync_every="),
        ({"mode": 600}, "mode="),  # what YAML makes of 0600
        ({"mode": "0999"}, "mode="),
        ({"mode": 0o444}, "mode="),
        ({"batch_size": 0}, "batch_size="),
        ({"on": 1}, "on="),
    ],
)
def test_an_argument_that_cannot_work_is_refused(arguments, field, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(field)):
        JsonlSink(**{"path": tmp_path / "events.jsonl", **arguments})


async def test_a_pipe_in_its_place_is_said_when_it_starts(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe")
    async with ObserverManager() as manager:
        manager.register(JsonlSink(tmp_path / "pipe"))
        await eventually(lambda: "could not start" in caplog.text)
