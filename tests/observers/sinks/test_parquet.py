"""ParquetSink and compaction on a disk, in S3 and in Azure; read by Arrow and DuckDB."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, LLMPromptSent, NodeCompleted, ToolCalled, UnknownEvent
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.lake.stores import Store
from stanchion.observers.sinks.parquet import Compaction, ParquetSink, compact
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.lake_stores import Azurite, Bucket, Lake, Moto, document, on_disk
from tests.servers import free_port
from tests.waiting import eventually

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PASSWORD = "do-not-show-me"
# The schema is a promise to those who have files of last year.
COLUMNS = {
    "id": "string not null",
    "source": "string not null",
    "specversion": "string not null",
    "type": "string not null",
    "time": "timestamp[us, tz=UTC] not null",
    "subject": "string",
    "datacontenttype": "string",
    "dataschema": "string",
    "pipeline": "string",
    "run_id": "string",
    "node": "string",
    "tenant": "string",
    "extensions": "string",
    "data": "string",
    "data_base64": "string",
}


@pytest.fixture
def s3(pool) -> Bucket:
    return pool.lend("moto", lambda: Moto(pool.reaper))


@pytest.fixture
def azure(pool) -> Bucket:
    return pool.lend("azurite", lambda: Azurite(pool.reaper))


@pytest.fixture
def disk(tmp_path) -> Lake:
    return on_disk(tmp_path)


@pytest.fixture(
    params=[
        "disk",
        "s3",
        pytest.param("azure", marks=pytest.mark.timeout(240)),  # the first time, npm brings it
    ]
)
def lake(request) -> Lake:
    """An empty lake of each kind."""
    given = request.getfixturevalue(request.param)
    return given if isinstance(given, Lake) else given.lake()


def calls(number: int, at: datetime = NOON, **fields) -> list[ToolCalled]:
    return [
        ToolCalled(tool=str(index), timestamp=at + timedelta(microseconds=index), **fields)
        for index in range(number)
    ]


def known(events) -> list[str]:
    return sorted(event.id for event in events)


async def merged(lake: Lake, **named) -> Compaction:
    return await compact(lake.place, options=lake.options, **{"settled": 0, **named})


# --------------------------------------------------------------------------------------- rows


async def test_the_contract_of_all_sinks_holds(lake):
    async def read_back():
        return [document(row) for row in await asyncio.to_thread(lake.rows)]

    sink = ParquetSink(lake.place, options=lake.options)
    await check_contract(Counterpart(sink, read_back))


async def test_arrow_and_duckdb_read_dates_and_types_from_the_directories(lake):
    days = [NOON, NOON + timedelta(days=1)]
    events: list[Event] = [event for day in days for event in calls(3, day, run_id="r")]
    events.append(LLMPromptSent(model="m", timestamp=NOON, prompt="Ω"))
    await ParquetSink(lake.place, options=lake.options).handle_batch(events)
    assert sorted({part.rpartition("/")[0] for part in lake.parts()}) == [
        "date=2026-01-31/type=llm%3Aprompt",
        "date=2026-01-31/type=tool%3Acalled",
        "date=2026-02-01/type=tool%3Acalled",
    ]
    counted = lake.ask("SELECT date, type, count(*) FROM lake GROUP BY ALL ORDER BY ALL")
    assert counted == [
        ("2026-01-31", "llm:prompt", 1),
        ("2026-01-31", "tool:called", 3),
        ("2026-02-01", "tool:called", 3),
    ]
    query = "SELECT data->>'$.prompt' FROM lake WHERE type = 'llm:prompt'"
    assert lake.ask(query) == [("Ω",)]


async def test_duckdb_reads_the_files_by_itself(disk):
    await ParquetSink(disk.place).handle_batch([*calls(4), *calls(2, NOON + timedelta(days=1))])
    with duckdb.connect() as connection:
        files = f"read_parquet('{disk.place}/*/*/*.parquet', hive_partitioning = true)"
        count = connection.execute(
            f"SELECT count(*), epoch(min(time)) FROM {files}"  # noqa: S608 - a path of our own
            " WHERE type = 'tool:called' AND date = DATE '2026-01-31'"
        ).fetchone()
    assert count == (4, NOON.timestamp())


async def test_every_file_has_the_same_columns(disk):
    given = {
        "specversion": "1.0",
        "id": "1",
        "source": "/x",
        "type": "com.example.x",
        "time": "2026-01-31T12:00:00.000000Z",
        "dataschema": "http://x/y",
        "traceparent": "00-1",
        "count": 7,
        "data_base64": "AAH/",
    }
    foreign = UnknownEvent.from_cloudevent(given)
    event = NodeCompleted(
        node="n", run_id="r", pipeline="p", tenant="t", duration=1.5, result=[1], timestamp=NOON
    )
    await ParquetSink(disk.place).handle_batch([foreign, event])
    for part in disk.parts():
        file = pq.read_schema(f"{disk.root}/{part}")
        assert {field.name: str(field).rstrip(">").partition(": ")[2] for field in file} == COLUMNS
        assert pq.read_metadata(f"{disk.root}/{part}").metadata[b"stanchion.schema"] == b"1"
    theirs, ours = sorted(disk.rows(), key=lambda row: row["source"], reverse=True)
    assert document(theirs) == given
    assert json.loads(theirs["extensions"]) == {"traceparent": "00-1", "count": 7}
    wanted = {"node": "n", "run_id": "r", "pipeline": "p", "tenant": "t", "time": NOON}
    assert {name: ours[name] for name in wanted} == wanted
    assert json.loads(ours["data"])["result"] == [1]
    assert document(ours) == event.to_cloudevent()


@pytest.mark.parametrize(
    "kind", ["com.example/../x", "ä ö.ü", "x.?&=%2F#", "x." + "y" * 300, "x." + "Ω" * 300]
)
async def test_a_type_of_any_letters_is_a_directory_and_comes_back(disk, kind):
    event = UnknownEvent.from_cloudevent(
        {"specversion": "1.0", "id": "1", "source": "/x", "type": kind}
    )
    await ParquetSink(disk.place).handle_batch([event])
    (part,) = disk.parts()
    assert part.count("/") == 2
    file = pq.ParquetFile(f"{disk.root}/{part}")
    assert file.read(columns=["type"]).to_pylist() == [{"type": kind}]
    if len(kind) < 100:
        assert disk.rows()[0]["type"] == kind


# -------------------------------------------------------------------------------------- files


async def test_a_batch_that_is_sent_again_replaces_its_own_files(lake):
    sink = ParquetSink(lake.place, options=lake.options)
    events = calls(10)
    await sink.handle_batch(events)
    before = lake.parts()
    await sink.handle_batch(list(reversed(events)))
    assert lake.parts() == before
    assert lake.ids() == known(events)


async def test_a_file_has_an_end(disk):
    events = calls(40, arguments={"text": "x" * 1000})
    await ParquetSink(disk.place, file_size=10_000).handle_batch(events)
    assert len(disk.parts()) == 5
    assert disk.ids() == known(events)


async def test_a_manager_fills_files_and_flushes_what_is_left(disk):
    sink = ParquetSink(disk.place, batch_size=100, batch_delay=30)
    events = calls(250)
    async with ObserverManager() as manager:
        manager.register(sink)
        for number, event in enumerate(events):
            manager.notify(event)
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert await manager.drain()
        assert len(disk.parts()) == 3
    assert disk.ids() == known(events)


async def test_a_reader_never_sees_a_file_that_is_not_whole(disk):
    events = calls(60, arguments={"text": os.urandom(20_000).hex()})
    sink = ParquetSink(disk.place, batch_size=60, timeout=20)
    writing = asyncio.create_task(sink.handle_batch(events))
    looks = 0
    while not writing.done():
        for part in disk.parts():
            pq.read_metadata(f"{disk.root}/{part}")
        looks += 1
        await asyncio.sleep(0)
    await writing
    assert looks > 3
    assert disk.ids() == known(events)


async def test_the_loop_goes_on_while_rows_are_made(disk, monkeypatch):
    turns, turns_at_first = 0, []
    real = Store.put

    async def noted(store, path, body, **named):
        turns_at_first.append(turns)
        await real(store, path, body, **named)

    monkeypatch.setattr(Store, "put", noted)
    writing = asyncio.create_task(ParquetSink(disk.place, timeout=20).handle_batch(calls(2000)))
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    await writing
    assert turns_at_first[0] > 10


async def test_on_a_disk_files_and_their_directories_are_kept_before_we_say_so(disk, monkeypatch):
    kept: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        kept.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    await ParquetSink(disk.place).handle_batch(calls(1))
    (part,) = disk.parts()
    places = [Path(disk.root, part), *Path(disk.root, part).parents[:3]]
    assert kept == [str(place) for place in places]


# -------------------------------------------------------------------------------------- faults


def obstruct(place: Path) -> Callable[[], None]:
    """Put a file where a directory should be; get the function that removes it."""
    place.parent.mkdir(parents=True)
    place.write_text("in the way")
    return place.unlink


async def test_only_what_was_not_stored_is_named(disk):
    tools, nodes = calls(3), [NodeCompleted(node="n", duration=1.0, timestamp=NOON)]
    remove = obstruct(Path(disk.root, "date=2026-01-31", "type=tool%3Acalled"))
    sink = ParquetSink(disk.place)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch([*tools, *nodes])
    assert set(caught.value.events) == set(tools)
    assert not caught.value.permanent
    remove()
    await sink.handle_batch(caught.value.events)
    assert disk.ids() == known([*tools, *nodes])


async def test_a_frozen_store_is_told_in_time(s3):
    lake = s3.lake()
    sink = ParquetSink(lake.place, options=lake.options, timeout=0.5)
    # More files than are stored at once: the deadline is that of the batch.
    events = [call for day in range(40) for call in calls(1, NOON + timedelta(days=day))]
    s3.pause()
    began = asyncio.get_running_loop().time()
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch(events)
    assert asyncio.get_running_loop().time() - began < 1.8
    assert set(caught.value.events) == set(events)
    s3.resume()
    await ParquetSink(lake.place, options=lake.options, timeout=20).handle_batch(events)
    assert lake.ids() == known(events)


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("s3://nowhere", {"access_key_id": "me", "secret_access_key": PASSWORD}),
        # The signature is part of every URL.
        ("az://nowhere", {"account_name": "me", "sas_key": f"sv=2020-10-02&sig={PASSWORD}"}),
    ],
)
async def test_nothing_is_acknowledged_where_there_is_no_store(place, options):
    endpoint = f"http://127.0.0.1:{free_port()}"
    # Time enough for every attempt, so that it is the store's own error that is told.
    sink = ParquetSink(place, options={**options, "endpoint": endpoint}, timeout=5)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch(calls(2))
    assert len(caught.value.events) == 2
    assert "GenericError" in caught.value.reason
    assert PASSWORD not in str(caught.value) + repr(sink)


BRIEF = """
import asyncio, sys
from stanchion.events import ToolCalled
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.parquet import ParquetSink

async def main():
    options = {"endpoint": sys.argv[1], "access_key_id": "a", "secret_access_key": "b"}
    sink = ParquetSink("s3://nowhere", options=options, timeout=5)
    try:
        await sink.handle_batch([ToolCalled(tool="t")])
    except Undelivered:
        print("undelivered")

asyncio.run(main())
"""


def test_a_process_may_end_right_after_a_failure():
    """Threads of the library that are not done by then must not bring it down."""
    line = [sys.executable, "-c", BRIEF, f"http://127.0.0.1:{free_port()}"]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(process.communicate(timeout=20)[0], process.returncode) for process in processes]
    assert ended == [("undelivered\n", 0)] * 3


async def test_its_threads_end_with_it(disk):
    before = set(threading.enumerate())

    def ours() -> set[str]:
        return {one.name for one in set(threading.enumerate()) - before if "lake" in one.name}

    sink = ParquetSink(disk.place)
    await sink.handle_batch(calls(1))
    assert ours()
    await sink.close()
    await eventually(lambda: not ours())


async def test_a_store_of_obstores_is_a_lake_too():
    store = MemoryStore()
    await ParquetSink(store).handle_batch(calls(2))
    await ParquetSink(store).handle_batch(calls(2, NOON + timedelta(hours=1)))
    assert (await compact(store, settled=0)).rows == 4


# ---------------------------------------------------------------------------------- compaction


async def fill(lake: Lake, batches: int = 4, each: int = 5, size: int = 0) -> list[ToolCalled]:
    """Write files of equal size; `size` is how much every event adds to its file."""
    sink = ParquetSink(lake.place, options=lake.options)
    events = [
        ToolCalled(
            tool="t",
            timestamp=NOON + timedelta(microseconds=number),
            arguments={"text": os.urandom(size).hex()},
        )
        for number in range(batches * each)
    ]
    for number in range(batches):
        await sink.handle_batch(events[number * each : (number + 1) * each])
    return events


async def test_small_files_become_one_and_each_event_comes_once(lake):
    events = await fill(lake)
    sink = ParquetSink(lake.place, options=lake.options)
    await sink.handle_batch(events[3:8])
    assert len(lake.ids()) == 25
    done = await merged(lake)
    assert done == Compaction(inputs=5, outputs=1, rows=20, duplicates=5)
    assert len(lake.paths()) == 1
    assert lake.ids() == known(events)
    rows = {row["id"]: document(row) for row in lake.rows()}
    assert rows == {event.id: event.to_cloudevent() for event in events}
    assert await merged(lake) == Compaction()


async def test_partitions_are_not_mixed_and_the_prefix_says_where(disk):
    sink = ParquetSink(disk.place)
    for day in (NOON, NOON + timedelta(days=1)):
        for _ in range(2):
            await sink.handle_batch([*calls(2, day), LLMPromptSent(model="m", timestamp=day)])
    assert len(disk.parts()) == 8
    assert (await merged(disk, prefix="date=2026-01-31")).outputs == 2
    assert len(disk.parts()) == 6
    assert (await merged(disk)).outputs == 2
    assert len(disk.parts()) == 4
    assert len(disk.ids()) == 12


async def test_large_and_young_files_are_left_alone(disk):
    sink = ParquetSink(disk.place)
    small = await fill(disk, batches=3)
    large = calls(30, NOON + timedelta(hours=1), arguments={"text": os.urandom(2000).hex()})
    await sink.handle_batch(large)
    assert await merged(disk, settled="1h") == Compaction()
    done = await merged(disk, smaller_than=6000)
    assert (done.inputs, done.rows) == (3, 15)
    assert len(disk.parts()) == 2
    assert disk.ids() == known([*small, *large])


async def test_a_merge_takes_no_more_than_it_may(disk):
    events = await fill(disk, batches=6)
    (first, *_) = disk.files.get_file_info([f"{disk.root}/{disk.parts()[0]}"])
    size = first.size or 0
    done = await merged(disk, file_size=round(size * 2.5))
    assert (done.inputs, done.outputs) == (6, 3)
    assert disk.ids() == known(events)


class Died(BaseException):
    """The process ends here."""


class Steps:
    """Lets a process ask so many things of the store, and then die before or after the next."""

    def __init__(self, monkeypatch, left: int, *, after: bool) -> None:
        self._left = left
        self._after = after
        self.died = False
        for name in ("put", "get", "head", "delete"):
            monkeypatch.setattr(obstore, name, self._counted(getattr(obstore, name)))

    def _counted(self, real):
        def counted(*arguments, **named):
            self._left -= 1
            if self._left < 0 and not self._after:
                self._die()
            done = real(*arguments, **named)
            if self._left < 0:
                self._die()
            return done

        return counted

    def _die(self):
        self.died = True
        raise Died


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", ["disk", "s3"])
async def test_wherever_it_dies_no_row_is_lost_and_the_next_one_ends_it(request, place, after):
    given = request.getfixturevalue(place)
    steps, deaths = 0, 0
    # Too large to be merged once more: then only the marker tells what became of the inputs.
    limit = 12_000
    while True:
        lake = given.lake() if place == "s3" else on_disk(Path(given.root) / str(steps))
        events = await fill(lake, batches=3, each=2, size=2000)
        with pytest.MonkeyPatch.context() as patch:
            fault = Steps(patch, steps, after=after)
            try:
                await merged(lake, smaller_than=limit)
            except Died:
                deaths += 1
        assert set(lake.ids()) == {event.id for event in events}, f"after {steps} steps"
        if fault.died and lake.paths() != lake.parts():
            # It may yet be going on, so it is nobody else's.
            waiting = await merged(lake, smaller_than=limit)
            assert (waiting.resumed, waiting.outputs) == (0, 0)
            assert set(lake.ids()) == {event.id for event in events}
        await merged(lake, smaller_than=limit, stale=0)
        assert lake.ids() == known(events), f"after {steps} steps"
        assert lake.paths() == lake.parts(), "a marker is left"
        assert len(lake.parts()) == 1
        if not fault.died:
            break
        steps += 1
    # A marker, three inputs, an output, a look at the marker, the end of three inputs and of it.
    assert deaths == 10


async def test_two_at_once_do_not_disturb_each_other(lake):
    events = await fill(lake, batches=6)
    done = await asyncio.gather(*(merged(lake) for _ in range(3)))
    assert sum(one.outputs for one in done) >= 1
    assert lake.ids() == known(events)
    assert lake.paths() == lake.parts()


async def test_what_another_has_merged_since_we_looked_is_left_to_it(disk, monkeypatch):
    events = await fill(disk)
    real = Store.put

    async def late(store, path, body, **named):
        monkeypatch.setattr(Store, "put", real)
        assert (await merged(disk)).outputs == 1
        await real(store, path, body, **named)

    monkeypatch.setattr(Store, "put", late)
    done = await merged(disk)
    assert (done.outputs, done.skipped) == (0, 1)
    assert disk.ids() == known(events)
    assert len(disk.paths()) == 1


async def test_who_was_overtaken_removes_nothing(disk, monkeypatch):
    events = await fill(disk)
    real = Store.put

    async def slow(store, path, body, **named):
        await real(store, path, body, **named)
        if path.endswith("-merged.parquet"):
            monkeypatch.setattr(Store, "put", real)
            await merged(disk, stale=0)

    monkeypatch.setattr(Store, "put", slow)
    done = await merged(disk)
    assert (done.outputs, done.skipped) == (0, 1)
    assert disk.ids() == known(events)
    assert len(disk.paths()) == 1


async def test_a_file_that_is_not_ours_stops_the_merge_and_changes_nothing(disk):
    events = await fill(disk, batches=2)
    foreign = f"{disk.root}/{disk.parts()[0].rpartition('/')[0]}/foreign.parquet"
    pq.write_table(pa.table({"id": ["x"]}), foreign)
    before = disk.paths()
    with pytest.raises(StanchionError, match=r"foreign\.parquet is no file of this lake"):
        await merged(disk)
    assert disk.paths() == before
    disk.files.delete_file(foreign)
    assert (await merged(disk)).rows == len(events)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stanchion", "compact", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, **environment},
    )


async def test_the_command_merges_with_what_the_environment_knows(s3):
    lake = s3.lake()
    events = await fill(lake)
    known_there = {
        "AWS_ENDPOINT_URL": lake.options["endpoint"],
        "AWS_REGION": lake.options["region"],
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
    }
    done = command(lake.place, "--settled", "0", "--json", **known_there)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == asdict(Compaction(inputs=4, outputs=1, rows=20))
    assert lake.ids() == known(events)


async def test_the_command_says_what_it_did_and_what_went_wrong(disk):
    await fill(disk)
    done = command(disk.place, "--settled", "0")
    assert done.stdout == "4 files became 1: 20 rows, 0 more were there twice\n"
    endpoint = f"endpoint=http://127.0.0.1:{free_port()}"
    secret = (*("--option", "access_key_id=me"), "--option", f"secret_access_key={PASSWORD}")
    lost = command("s3://b", "--option", endpoint, *secret)
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr.startswith("stanchion: cannot compact: ")
    assert PASSWORD not in lost.stderr
    wrong = command(disk.place, "--stale", "never")
    assert wrong.returncode == 2
    assert "stale='never'" in wrong.stderr


# ----------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lake": ""}, "lake: expected a directory"),
        ({"lake": 7}, "lake: expected a directory"),
        ({"lake": "ftp://x/y"}, "lake='ftp://x/y'"),
        ({"lake": "/proc/nowhere"}, "lake='file:///proc/nowhere'"),
        ({"lake": "s3://b", "options": {"colour": 1}}, "lake='s3://b'"),
        ({"options": {"region": "x"}}, "options: a directory takes none"),
        ({"lake": MemoryStore(), "options": {"region": "x"}}, "options: a store"),
        ({"on": 7}, "on=7"),
        ({"timeout": 0}, "timeout=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_delay": -1}, "batch_delay=-1"),
        ({"file_size": 0}, "file_size=0"),
    ],
)
def test_what_cannot_work_is_refused_when_declared(tmp_path, arguments, told):
    with pytest.raises(ConfigError, match=told):
        ParquetSink(**{"lake": str(tmp_path), **arguments})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"prefix": "/date"}, "prefix='/date'"),
        ({"prefix": "_compaction"}, "prefix='_compaction'"),
        ({"smaller_than": 0}, "smaller_than=0"),
        ({"file_size": 0}, "file_size=0"),
        ({"settled": -1}, "settled=-1"),
        ({"stale": "never"}, "stale='never'"),
    ],
)
async def test_a_compaction_that_cannot_work_is_refused(tmp_path, arguments, told):
    with pytest.raises(ConfigError, match=told):
        await compact(tmp_path, **arguments)


@pytest.mark.parametrize(
    "place", [f"s3://me:{PASSWORD}@bucket", f"https://x.blob.core.windows.net/c?sig={PASSWORD}"]
)
def test_a_lake_with_a_password_in_it_is_refused_without_showing_it(place):
    with pytest.raises(ConfigError) as caught:
        ParquetSink(place)
    assert PASSWORD not in str(caught.value)


def test_options_are_never_shown():
    with pytest.raises(ConfigError) as caught:
        ParquetSink("s3://bucket", options={"secret_access_key": PASSWORD, "region": "x"})
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("missing", ["obstore", "arro3.core"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, missing):
    for name in [name for name in sys.modules if name.startswith(missing.partition(".")[0])]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'stanchion\[lake\]'"):
        ParquetSink(tmp_path)
