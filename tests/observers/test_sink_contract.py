"""Every sink carries the same envelope; what would be wrong with one is noticed."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

import stanchion.observers.sinks
from stanchion.events import Event
from stanchion.observers import ObserverManager
from stanchion.observers.sinks.console import ConsoleSink
from stanchion.observers.sinks.jsonl import JsonlSink
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from tests.observers.contract import (
    REDACT,
    Counterpart,
    check_contract,
    contract_events,
    expected_document,
)

TESTS = Path(__file__).parent / "sinks"
#: Sinks that tell something of events and carry none of them whole.
NOT_WHOLE = {
    "DogStatsdSink": "counts and times",
    "PagerDutySink": "alerts about events",
    "PrometheusSink": "counts and times",
    "SlackSink": "alerts about events",
}


# ------------------------------------------------------------------------------- all of them


def sinks() -> list[tuple[str, str]]:
    """Get the module and the class of every sink that there is."""
    found: list[tuple[str, str]] = []
    for path in sorted(Path(stanchion.observers.sinks.__path__[0]).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            (path.stem, node.name)
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name.endswith("Sink")
        ]
    return found


def contracts(module: str) -> set[str]:
    """Get the classes that a sink's own test makes where it checks the contract."""
    path = TESTS / f"test_{module}.py"
    if not path.exists():
        return set()
    made: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {call.id for call in calls if isinstance(call, ast.Name)}
            made |= names if "check_contract" in names else set()
    return made


def test_there_are_sinks():
    assert {"ConsoleSink", "JsonlSink", "KafkaSink"} <= {name for _, name in sinks()}


@pytest.mark.parametrize(("module", "name"), sinks())
def test_every_sink_is_held_to_the_contract_against_its_counterpart(module, name):
    if name in NOT_WHOLE:
        assert name not in contracts(module), "it is held to it after all: take it off the list"
    else:
        assert name in contracts(module), f"test_{module}.py does not check the contract of {name}"


async def test_the_same_events_reach_different_systems_with_the_same_envelope(tmp_path, valkey):
    console, file = io.StringIO(), tmp_path / "events.jsonl"
    stream = RedisStreamSink(valkey.url)
    events = contract_events()
    async with ObserverManager(redact=REDACT) as manager:
        for sink in (ConsoleSink(console, style="json"), JsonlSink(file), stream):
            manager.register(sink)
        for event in events:
            manager.notify(event)
        assert await manager.drain()
        assert not await manager.close()
    with redis.Redis.from_url(valkey.url) as client:
        entries: Any = client.xrange("stanchion:{default}:stream")
    arrived = [
        [json.loads(line) for line in console.getvalue().splitlines()],
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()],
        [json.loads(entry[b"event"]) for _, entry in entries],
    ]
    expected = [expected_document(event) for event in events]
    for documents in arrived:
        assert documents == expected


# --------------------------------------------------------------------------- what is noticed


class Memory:
    """Takes every event as it should; `spoil` changes what is kept of them."""

    batch_size = 4

    def __init__(self):
        self.kept: list[dict[str, Any]] = []

    async def handle_batch(self, events: Sequence[Event]):
        self.kept += [self.spoil(event) for event in events]

    def spoil(self, event: Event) -> dict[str, Any]:
        return event.to_cloudevent()

    async def read_back(self) -> list[dict[str, Any]]:
        return self.kept


class Twice(Memory):
    async def handle_batch(self, events):
        await super().handle_batch(events)
        await super().handle_batch(events)


class Losing(Memory):
    async def handle_batch(self, events):
        await super().handle_batch(events[1:])


class Reordering(Memory):
    async def handle_batch(self, events):
        await super().handle_batch(tuple(reversed(events)))


class Cutting(Memory):
    def spoil(self, event):
        text = json.dumps(event.to_cloudevent())
        return json.loads(text.replace("0123456789abcdef" * 1000, ""))


class Asciifying(Memory):
    def spoil(self, event):
        text = json.dumps(event.to_cloudevent(), ensure_ascii=False)
        return json.loads(text.encode("ascii", "replace"))


class ForgettingNone(Memory):
    def spoil(self, event):
        document = event.to_cloudevent()
        data = {name: value for name, value in document["data"].items() if value is not None}
        return {**document, "data": data}


class Adding(Memory):
    def spoil(self, event):
        return {**event.to_cloudevent(), "partitionkey": "k"}


class Refusing(Memory):
    async def handle_batch(self, events):
        raise ConnectionError


async def check(memory: Memory, adds: frozenset[str] = frozenset()):
    await check_contract(Counterpart(memory, memory.read_back, adds), timeout=0.3)


@pytest.mark.parametrize("kind", [Memory, Twice])
async def test_a_sink_that_does_its_work_passes(kind):
    await check(kind())


@pytest.mark.parametrize(
    "kind", [Losing, Reordering, Cutting, Asciifying, ForgettingNone, Adding, Refusing]
)
async def test_a_sink_that_does_not_is_found_out(kind):
    with pytest.raises(AssertionError):
        await check(kind())


async def test_what_a_sink_adds_by_design_is_allowed_where_it_is_said():
    await check(Adding(), frozenset({"partitionkey"}))


async def test_a_secret_that_gets_through_is_found_out(monkeypatch):
    def unredacted(*, redact: object) -> ObserverManager:
        del redact
        return ObserverManager()

    monkeypatch.setattr("tests.observers.contract.ObserverManager", unredacted)
    with pytest.raises(AssertionError):
        await check(Memory())


def test_the_documents_to_expect_hold_no_secret():
    documents: list[Mapping[str, Any]] = [expected_document(event) for event in contract_events()]
    covered = [one for one in documents if "[redacted]" in json.dumps(one)]
    assert len(covered) == 2
