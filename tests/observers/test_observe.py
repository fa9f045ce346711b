"""`stanchion observe`: sinks in a process of their own, and what is acknowledged when."""

from __future__ import annotations

import asyncio
import json
import signal
from functools import partial

import pytest

from stanchion import CircuitState, Event, EventBus
from stanchion.cli.app import run
from stanchion.observers import RedisPublisher
from stanchion.observers.delivery import Undelivered
from tests.busses import breaker
from tests.observers.commands import running
from tests.observers.relays import (
    FAST,
    Step,
    Target,
    appended,
    naming,
    notified,
    pending,
    relaying,
    steps,
)
from tests.waiting import eventually, eventually_sync

READY = "observing stanchion:{default}:"


class Grumpy:
    """An observer of somebody else's that takes no odd number, ever."""

    idempotent = True
    batch_size = 10

    async def handle_batch(self, events) -> None:
        odd = [event for event in events if event.to_cloudevent()["data"]["number"] % 2]
        if odd:
            raise Undelivered(odd, "odd", permanent=True)


def configured(directory, url, *observers, **more):
    """Write a file that names these observers."""
    file = directory / "observers.yaml"
    file.write_text(json.dumps({"url": url, "observers": [*observers], **more}))
    return str(file)


def written(file):
    """The numbers in a JSONL file."""
    if not file.is_file():
        return []
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    return [document["data"].get("number") for document in documents]


# ---- the command, from pub/sub


async def test_what_workers_publish_reaches_the_sinks_and_the_end_delivers_the_rest(
    valkey, tmp_path
):
    file = tmp_path / "events.jsonl"
    sink = {"kind": "jsonl", "path": str(file), "terms": {"name": "file", "batch_delay": "1h"}}
    config = configured(tmp_path, valkey.url, sink, redact=["tenant"])
    with running(tmp_path, "observe", "--config", config, "--json", "--every", "0.1") as command:
        command.says(READY)
        await notified(valkey.url, RedisPublisher(on="*"), *steps(20), Step(number=20, tenant="t"))

        def told():
            return json.loads(command.lines[-1])["observers"]["file"] if command.lines else {}

        # The batch is yet to fill.
        eventually_sync(lambda: told().get("received") == 21)
        assert written(file) == []
        assert command.signalled(signal.SIGTERM) == 0
    assert written(file) == list(range(21))
    assert "[redacted]" in file.read_text()
    last = json.loads(command.lines[-1])
    assert last["final"] is True
    assert last["observers"]["file"]["delivered"] == 21
    assert [json.loads(line)["final"] for line in command.lines[:-1]].count(True) == 0


async def test_changes_of_circuits_reach_the_sinks_although_no_worker_publishes(valkey, tmp_path):
    file = tmp_path / "events.jsonl"
    config = configured(tmp_path, valkey.url, {"kind": "jsonl", "path": str(file)})
    with running(tmp_path, "observe", "--config", config) as command:
        command.says(READY)
        async with EventBus.from_url(valkey.url, policies=[breaker()]) as bus:
            await bus.force("provider", CircuitState.OPEN)
            eventually_sync(lambda: file.is_file() and "circuit:opened" in file.read_text())
        assert command.signalled(signal.SIGINT) == 130
    assert "JsonlSink: 1 delivered (" in command.err


async def test_events_that_are_lost_at_the_end_are_a_failure(valkey, tmp_path):
    (tmp_path / "a-directory").mkdir()
    sink = {"kind": "jsonl", "path": str(tmp_path / "a-directory" / "x.jsonl")}
    config = configured(tmp_path, valkey.url, sink)
    (tmp_path / "a-directory" / "x.jsonl").mkdir()
    options = ("--config", config, "--drain", "0.2", "--json", "--every", "0.1")
    # Being a directory is found at once; it becomes one behind the file's back.
    (tmp_path / "a-directory" / "x.jsonl").rmdir()
    with running(tmp_path, "observe", *options) as command:
        command.says(READY)
        (tmp_path / "a-directory" / "x.jsonl").unlink()
        (tmp_path / "a-directory" / "x.jsonl").mkdir()
        await notified(valkey.url, RedisPublisher(on="*"), *steps(3))
        eventually_sync(lambda: '"received": 3' in command.out)
        assert command.signalled(signal.SIGTERM) == 1
    assert "JsonlSink did not take 3 events in time: they are lost" in command.err


# ---- the command, from a stream


async def test_nothing_of_a_stream_is_lost_when_the_process_is_killed_time_and_again(
    valkey, tmp_path
):
    file = tmp_path / "events.jsonl"
    sink = {"kind": "jsonl", "path": str(file), "terms": {"name": "file"}}
    config = configured(tmp_path, valkey.url, sink)
    await appended(valkey.url, *steps(1500))
    options = ("observe", "--config", config, "--stream", "--claim-after", "300ms")
    for least in (1, 500):
        with running(tmp_path, *options) as command:
            await eventually(partial(has_more_than, file, least), 10, interval=0.001)
            assert command.signalled(signal.SIGKILL) == -9
    with running(tmp_path, *options) as command:
        eventually_sync(lambda: len(set(written_so_far(file))) == 1500, 10)
        eventually_sync(lambda: pending(valkey, "file") == 0)
        assert command.signalled(signal.SIGTERM) == 0
    assert set(written(file)) == set(range(1500))


def has_more_than(file, least):
    return len(written_so_far(file)) > least


def written_so_far(file):
    """The lines of a file whose writer may be in the middle of one."""
    return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []


async def test_what_a_sink_does_not_take_stays_in_the_stream_and_holds_up_no_other(
    valkey, tmp_path
):
    (tmp_path / "broken").mkdir()
    broken = {"kind": "jsonl", "path": str(tmp_path / "broken" / "x"), "terms": {"name": "broken"}}
    works = {"kind": "jsonl", "path": str(tmp_path / "works"), "terms": {"name": "works"}}
    config = configured(tmp_path, valkey.url, broken, works)
    await appended(valkey.url, *steps(5))
    (tmp_path / "broken").rmdir()
    (tmp_path / "broken").touch()
    options = ("observe", "--config", config, "--stream", "--drain", "0.2", "--claim-after", "1s")
    with running(tmp_path, *options) as command:
        command.says(READY)
        eventually_sync(lambda: written(tmp_path / "works") == [*range(5)])
        eventually_sync(lambda: pending(valkey, "broken") == 5)
        assert pending(valkey, "works") == 0
        assert command.signalled(signal.SIGTERM) == 0
    assert pending(valkey, "broken") == 5
    (tmp_path / "broken").unlink()
    with running(tmp_path, *options) as command:
        eventually_sync(lambda: written(tmp_path / "broken" / "x") == [*range(5)])
        eventually_sync(lambda: pending(valkey, "broken") == 0)
        assert command.signalled(signal.SIGTERM) == 0
    assert written(tmp_path / "works") == [*range(5)]


async def test_what_will_never_be_taken_is_done_with(valkey, tmp_path):
    grumpy = {"factory": "tests.observers.test_observe:Grumpy", "terms": {"name": "grumpy"}}
    config = configured(tmp_path, valkey.url, grumpy)
    await appended(valkey.url, *steps(10))
    with running(tmp_path, "observe", "--config", config, "--stream", "--every", "0.1") as command:
        command.says("grumpy: 5 delivered, 5 not")
        assert pending(valkey, "grumpy") == 0
        assert command.signalled(signal.SIGTERM) == 0


async def test_it_ends_while_the_server_is_away(valkey, tmp_path):
    config = configured(tmp_path, valkey.url, {"kind": "console", "terms": {"name": "lines"}})
    await appended(valkey.url, *steps(1))
    with running(tmp_path, "observe", "--config", config, "--stream") as command:
        command.says("observed:step number=0")
        eventually_sync(lambda: pending(valkey, "lines") == 0)
        valkey.kill()
        command.says("trying again")
        assert command.signalled(signal.SIGTERM) == 0


# ---- what cannot be


@pytest.mark.parametrize(
    ("observers", "options", "words"),
    [
        ([], (), "observers: expected one at least"),
        ([{"kind": "redis_pubsub"}], (), "here it has nothing to do"),
        ([{"kind": "redis_stream"}], ("--stream",), "events are read from there"),
        ([{"kind": "redis_stream", "key": "k"}], ("--key", "k"), "events are read from there"),
        ([{"kind": "console"}], ("--from", "soon"), "from='soon'"),
        ([{"kind": "console"}], ("--stream", "--claim-after", "soon"), "claim_after='soon'"),
        ([{"kind": "paper"}], (), "kind='paper'"),
    ],
)
def test_a_mistake_is_said_in_a_line(
    valkey, tmp_path, observers, options, words, monkeypatch, capsys
):
    config = configured(tmp_path, valkey.url, *observers)
    monkeypatch.setattr("sys.argv", ["stanchion", "observe", "--config", config, *options])
    assert run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_server_that_is_not_there_is_said(valkey, tmp_path, monkeypatch, capsys):
    valkey.kill()
    config = configured(tmp_path, valkey.url, {"kind": "console"})
    for how in ((), ("--stream",)):
        monkeypatch.setattr("sys.argv", ["stanchion", "observe", "--config", config, *how])
        assert run() == 1
        assert "cannot read redis://" in capsys.readouterr().err


# ---- a relay, by itself


async def test_an_observer_that_may_have_an_event_twice_gets_it_until_it_takes_it(valkey):
    observer = Target(*[RuntimeError("no")] * 5, idempotent=True)
    await appended(valkey.url, *steps(2))
    async with relaying(valkey, observer, retry=FAST, quarantine=None) as relay:
        await eventually(lambda: relay.reader.stats.in_hand == 0 and observer.calls)
        await eventually(lambda: pending(valkey, "it") == 0 and len(observer.calls) == 6)
    assert observer.calls == [[0, 1]] * 6


async def test_another_gets_again_only_what_it_named(valkey):
    observer = Target(naming(1), naming(1), RuntimeError("who knows"))
    await appended(valkey.url, *steps(3))
    async with relaying(valkey, observer) as relay:
        await eventually(lambda: pending(valkey, "it") == 0 and len(observer.calls) == 3)
        assert relay.stats.failed == 1
    assert observer.calls == [[0, 1, 2], [1], [1]]


async def test_only_events_that_the_observer_wants_are_in_hand(valkey):
    class Another(Event, type="observed:another"):
        number: int = 0

    observer = Target(on="observed:another")
    await appended(valkey.url, *steps(3), Another(number=9))
    async with relaying(valkey, observer) as relay:
        await eventually(lambda: pending(valkey, "it") == 0 and observer.calls)
        assert relay.stats.received == 1
    assert observer.calls == [[9]]


async def test_a_plain_function_is_an_observer_too_and_fields_are_covered(valkey):
    seen = []
    await appended(valkey.url, Step(number=1, tenant="acme"))
    async with relaying(valkey, seen.append, redact=["tenant"]):
        await eventually(lambda: seen and pending(valkey, "it") == 0)
    assert seen[0].tenant == "[redacted]"


async def test_what_takes_too_long_is_not_acknowledged_before_it_is_done(valkey):
    done = asyncio.Event()

    async def slowly(events):
        await done.wait()

    observer = Target(slowly, idempotent=True)
    await appended(valkey.url, *steps(2))
    async with relaying(valkey, observer, timeout="10s") as relay:
        await eventually(lambda: relay.stats.in_hand == 2)
        assert pending(valkey, "it") == 2
        done.set()
        await eventually(lambda: pending(valkey, "it") == 0)
