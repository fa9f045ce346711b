"""Events between processes, over a real server's pub/sub."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from stanchion.decisions import Signal, Verdict
from stanchion.errors import ConfigError
from stanchion.events import Event, PolicyVetoed, ToolCalled, UnknownEvent
from stanchion.observers import (
    NeedsChannel,
    ObserverManager,
    Recorder,
    RedisPublisher,
    listen,
)
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore
from tests.waiting import eventually

NAMESPACE = "observed"
EVENTS = "stanchion:{observed}:events"
NONSENSE: Any = 5
SECRET = "a prompt that nobody but the model may read"


@pytest.fixture
async def store_at():
    """Opens stores, each with connections of its own, as if in other processes."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_store(server, deadline=1.0):
            store = RedisStore(server.url, Keyspace(NAMESPACE), deadline=deadline)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_store


@contextlib.asynccontextmanager
async def listening(channel, on="*", **options):
    """Everything that arrives, as a list that grows; begins when the subscription stands."""
    got, stands = [], asyncio.Event()
    given_on_gap = options.pop("on_gap", None)

    async def on_gap():
        stands.set()
        if given_on_gap is not None:
            given_on_gap()

    stream = listen(channel, NAMESPACE, on, on_gap=on_gap, **options)
    keep = got.append

    async def collect():
        async with stream:
            async for event in stream:
                keep(event)

    task = asyncio.create_task(collect())
    try:
        await asyncio.wait_for(stands.wait(), 5)
        yield got, stream
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def publishing(manager, channel, **options):
    publisher = RedisPublisher(**options)
    publisher.attach(channel, NAMESPACE)
    manager.register(publisher)
    return publisher


def veto():
    return PolicyVetoed(
        policy="calls",
        reason="limit_reached",
        asked_type="llm:call",
        asked_id="1",
        signal=Signal.RETRY,
        retry_after=0.25,
        tenant="acme",
        verdicts=(Verdict("calls", allowed=False, reason="limit_reached", retry_after=0.25),),
    )


def counted(counts):
    """The PUBLISH commands among counted ones."""
    return counts["publish"]


# ------------------------------------------------------------------------------------ publishing


async def test_a_veto_reaches_another_process_as_it_was(valkey, store_at):
    here, there = await store_at(valkey), await store_at(valkey)
    event = veto()
    async with listening(there) as (got, _), ObserverManager() as manager:
        publishing(manager, here)
        manager.notify(event)
        manager.notify(ToolCalled(tool="not a policy's"))
        await eventually(lambda: got)
        assert await manager.drain()
        assert manager.stats()["RedisPublisher"].delivered == 1
    assert got == [event]
    assert isinstance(got[0], PolicyVetoed)


async def test_other_events_go_out_where_asked_for(valkey, store_at):
    here, there = await store_at(valkey), await store_at(valkey)
    async with listening(there) as (got, _), ObserverManager() as manager:
        publishing(manager, here, on=("tool:*", "policy:*"))
        for event in (ToolCalled(tool="t"), veto()):
            manager.notify(event)
        await eventually(lambda: len(got) == 2)
    assert [event.event_type for event in got] == ["tool:called", "policy:vetoed"]


async def test_on_the_wire_it_is_cloudevents_json(valkey, store_at):
    event = ToolCalled(tool="søk", run_id="r1")
    async with valkey.client() as client, client.pubsub() as raw, ObserverManager() as manager:
        await raw.subscribe(EVENTS)
        publishing(manager, await store_at(valkey), on="*")
        manager.notify(event)

        async def arrived():
            message = await raw.get_message(ignore_subscribe_messages=True, timeout=0.1)
            return message and message["data"]

        document = json.loads(await eventually(arrived))
    origin = document.pop("stanchionorigin")
    assert origin.isalnum()
    assert document == event.to_cloudevent()
    assert document["specversion"] == "1.0"
    assert document["data"]["tool"] == "søk"


async def test_an_event_that_cannot_be_published_is_counted_and_nobody_waits(
    valkey, store_at, caplog
):
    store = await store_at(valkey, deadline=0.2)
    recorder = Recorder()
    async with ObserverManager() as manager:
        publishing(manager, store)
        manager.register(recorder)
        valkey.pause()
        manager.notify(veto())
        await recorder.wait_for(PolicyVetoed)
        await eventually(lambda: manager.stats()["RedisPublisher"].failed == 1)
        valkey.resume()
        manager.notify(veto())
        await eventually(
            lambda: (
                manager.stats()["RedisPublisher"].delivered
                + manager.stats()["RedisPublisher"].failed
                == 2
            )
        )
    assert (
        "'RedisPublisher' failed on a policy:vetoed: stanchion.errors.StoreUnavailable"
        in caplog.text
    )


async def test_a_publisher_without_a_bus_fails_and_says_why(caplog):
    publisher = RedisPublisher()
    assert isinstance(publisher, NeedsChannel)
    assert not isinstance(Recorder(), NeedsChannel)
    async with ObserverManager() as manager:
        manager.register(publisher)
        manager.notify(veto())
        assert await manager.drain()
        assert manager.stats()["RedisPublisher"].failed == 1
    assert "StanchionError" in caplog.text


async def test_a_publisher_belongs_to_one_bus_at_a_time(valkey, store_at):
    one, other = await store_at(valkey), await store_at(valkey)
    publisher = RedisPublisher()
    publisher.attach(one, NAMESPACE)
    publisher.attach(one, NAMESPACE)
    with pytest.raises(ConfigError, match="another bus"):
        publisher.attach(other, NAMESPACE)
    await publisher.close()
    publisher.attach(other, NAMESPACE)
    with pytest.raises(ConfigError, match="namespace="):
        RedisPublisher().attach(one, "a}{b")
    with pytest.raises(ConfigError, match="on=5"):
        RedisPublisher(on=NONSENSE)


# ------------------------------------------------------------------------------------- listening


async def test_one_hears_others_and_not_oneself(valkey, store_at):
    here, there = await store_at(valkey), await store_at(valkey)
    async with (
        listening(here) as (got_here, stream),
        listening(there) as (got_there, _),
        ObserverManager() as manager,
    ):
        publishing(manager, here)
        event = veto()
        manager.notify(event)
        await eventually(lambda: got_there == [event])
        await eventually(lambda: stream.stats.own == 1)
        assert got_here == []


async def test_nothing_goes_round_in_circles(valkey, store_at):
    """Two processes that pass on whatever they hear, and publish whatever they are told."""
    stores = [await store_at(valkey), await store_at(valkey)]
    recorders = [Recorder(), Recorder()]
    async with contextlib.AsyncExitStack() as stack:
        managers = [await stack.enter_async_context(ObserverManager()) for _ in stores]
        heard = []
        for store, manager, recorder in zip(stores, managers, recorders, strict=True):
            publishing(manager, store, on="*")
            manager.register(recorder)
            got, _ = await stack.enter_async_context(listening(store))
            heard.append(got)
        with valkey.counting() as counts:
            managers[0].notify(ToolCalled(tool="t"))
            await eventually(lambda: heard[1])
            managers[1].notify(heard[1][0])
            copied = heard[1][0].model_copy(update={"tenant": "changed on the way"})
            managers[1].notify(copied)
            # Something that does go out, after which nothing of the above can follow.
            managers[1].notify(veto())
            await eventually(lambda: heard[0])
        assert counted(counts) == 2
        assert [event.event_type for event in heard[0]] == ["policy:vetoed"]
        assert [event.event_type for event in heard[1]] == ["tool:called"]


@pytest.mark.parametrize("origin", [{}, {"stanchionorigin": "somebody"}])
async def test_what_others_publish_is_not_published_again(origin, valkey, store_at):
    store = await store_at(valkey)
    event = ToolCalled(tool="t")
    async with listening(store) as (got, _), ObserverManager() as manager:
        publishing(manager, store, on="*")
        valkey.execute("PUBLISH", EVENTS, json.dumps({**event.to_cloudevent(), **origin}))
        await eventually(lambda: got)
        assert got == [event]
        with valkey.counting() as counts:
            manager.notify(got[0])
            assert await manager.drain()
            assert manager.stats()["RedisPublisher"].delivered == 1
    assert counted(counts) == 0


async def test_unknown_types_come_back_without_loss(valkey, store_at):
    document = {
        "specversion": "1.0",
        "id": "17",
        "source": "https://their.example/things",
        "type": "example.their.thing",
        "theirextension": "kept",
        "stanchionorigin": "somebody",
        "data": {"deep": [{"x": 1.5}, None]},
    }
    async with listening(await store_at(valkey)) as (got, _):
        valkey.execute("PUBLISH", EVENTS, json.dumps(document))
        await eventually(lambda: got)
    assert isinstance(got[0], UnknownEvent)
    assert got[0].event_type == "example.their.thing"
    assert got[0].to_cloudevent() == document


NOT_EVENTS = {
    "nothing": b"",
    "text": SECRET.encode(),
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "no attributes": b"{}",
    "an old version": b'{"specversion": "0.3", "id": "1", "source": "/x", "type": "tool:called"}',
    "no data": b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "tool:called"}',
    "a bad id": b'{"specversion": "1.0", "id": 1, "source": "/x", "type": "a.b"}',
    "a bad origin": b'{"stanchionorigin": {"a": 1}}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "not a number": b'{"n": NaN}',
    "a large number": b'{"n": ' + b"9" * 10_000 + b"}",
}


async def test_what_is_no_event_is_counted_and_left_out(valkey, store_at, caplog):
    event = ToolCalled(tool="t")
    async with listening(await store_at(valkey)) as (got, stream), valkey.client() as client:
        for payload in NOT_EVENTS.values():
            await client.publish(EVENTS, payload)
        await client.publish(EVENTS, json.dumps(event.to_cloudevent()))
        await eventually(lambda: got)
        stats = stream.stats
    assert got == [event]
    assert stats.malformed == len(NOT_EVENTS)
    assert stats.received == len(NOT_EVENTS) + 1
    assert "a message on stanchion:{observed}:events is no event" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("tool:*", ["tool:called"]),
        (PolicyVetoed, ["policy:vetoed"]),
        ("their:*", ["their:thing"]),
        (Event, ["tool:called", "policy:vetoed", "their:thing"]),
    ],
)
async def test_a_listener_chooses(on, expected, valkey, store_at):
    unknown = {"specversion": "1.0", "id": "1", "source": "/x", "type": "their:thing"}
    documents = [ToolCalled(tool="t").to_cloudevent(), veto().to_cloudevent(), unknown]
    async with listening(await store_at(valkey), on) as (got, stream):
        for document in documents:
            valkey.execute("PUBLISH", EVENTS, json.dumps(document))
        await eventually(lambda: stream.stats.received == 3)
        await eventually(lambda: [event.event_type for event in got] == expected)


async def test_every_subscription_is_told_as_a_gap(valkey, store_at):
    gaps = []
    store = await store_at(valkey)
    async with listening(store, on_gap=lambda: gaps.append(True)) as (got, stream):
        assert len(gaps) == 1
        for number in range(2, 4):
            assert valkey.execute("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await eventually(lambda number=number: len(gaps) == number)
        event = ToolCalled(tool="after the gaps")
        valkey.execute("PUBLISH", EVENTS, json.dumps(event.to_cloudevent()))
        await eventually(lambda: got == [event])
        assert stream.stats.gaps == 3


def test_listening_to_nonsense_is_refused():
    with pytest.raises(ConfigError, match="on=5"):
        listen(NONSENSE, NAMESPACE, NONSENSE)
    with pytest.raises(ConfigError, match="namespace="):
        listen(NONSENSE, "a}{b")
