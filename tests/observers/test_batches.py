"""How batches are put together: size, delay, and what ends the wait early."""

from __future__ import annotations

import asyncio
import time

import pytest

from stanchion.errors import ConfigError
from stanchion.events import NodeFailed
from stanchion.observers import ObserverManager
from tests.observers.doubles import Batching, call
from tests.waiting import eventually

LONG = 30.0  # seconds that no test has


class Anything(Batching):
    async def handle_batch(self, events):
        self.batches.append([event.event_type for event in events])


async def test_a_batch_waits_until_it_is_full():
    batching = Batching(3, delay=LONG)
    async with ObserverManager() as manager:
        manager.register(batching)
        for number in range(2):
            manager.notify(call(number))
            await asyncio.sleep(0.01)
        assert not batching.batches
        manager.notify(call(2))
        await eventually(lambda: batching.batches)
    assert batching.batches == [["0", "1", "2"]]


async def test_a_batch_that_does_not_fill_goes_out_after_its_delay():
    batching = Batching(100, delay=0.15)
    async with ObserverManager() as manager:
        manager.register(batching)
        began = time.monotonic()
        for number in range(3):
            manager.notify(call(number))
            await asyncio.sleep(0.02)
        await eventually(lambda: batching.batches, interval=0.002)
        # Counted from the first event, not from the last.
        assert 0.14 <= time.monotonic() - began < 2
        assert batching.batches == [["0", "1", "2"]]


async def test_the_time_that_an_event_waited_for_a_worker_counts():
    gate = asyncio.Event()

    class Waiting(Batching):
        async def handle_batch(self, events):
            await super().handle_batch(events)
            await gate.wait()

    batching = Waiting(2, delay=0.8)
    async with ObserverManager() as manager:
        manager.register(batching)
        for number in range(3):
            manager.notify(call(number))
        await asyncio.sleep(0.85)
        began = time.monotonic()
        gate.set()
        await eventually(lambda: len(batching.batches) == 2)
        assert time.monotonic() - began < 0.6


async def test_events_of_another_thread_fill_a_batch_too():
    batching = Batching(3, delay=LONG)
    async with ObserverManager() as manager:
        manager.register(batching)
        for number in range(3):
            await asyncio.to_thread(manager.notify, call(number))
        await eventually(lambda: batching.batches)


async def test_a_priority_event_ends_the_wait_and_keeps_its_place():
    batching = Anything(100, delay=LONG)
    async with ObserverManager() as manager:
        manager.register(batching, priority=(NodeFailed, "circuit:*"))
        manager.notify(call())
        await asyncio.sleep(0.02)
        assert not batching.batches
        manager.notify(NodeFailed(node="n", error="e"))
        await eventually(lambda: batching.batches)
        assert batching.batches == [["tool:called", "node:failed"]]
        manager.notify(call())
        await asyncio.sleep(0.02)
        assert len(batching.batches) == 1


@pytest.mark.parametrize("how", ["drain", "close", "unregister"])
async def test_nothing_is_kept_waiting_at_the_end(how):
    batching = Batching(100, delay=LONG)
    async with ObserverManager() as manager:
        name = manager.register(batching)
        manager.notify(call())
        await asyncio.sleep(0.02)
        began = time.monotonic()
        if how == "drain":
            assert await manager.drain()
        elif how == "close":
            assert not await manager.close()
        else:
            manager.unregister(name)
            await eventually(lambda: batching.batches)
        assert time.monotonic() - began < 10
    assert batching.batches == [["t"]]


async def test_register_overrules_the_size_and_the_delay_of_the_observer():
    batching = Batching(100, delay=LONG)
    manager = ObserverManager()
    manager.register(batching, batch_size=2, batch_delay=0)
    for number in range(3):
        manager.notify(call(number))
    async with manager:
        await eventually(lambda: len(batching.batches) == 2)
    assert batching.batches == [["0", "1"], ["2"]]


async def test_batches_of_several_workers_wait_for_their_delay_too():
    batching = Batching(2, delay=0.05)
    async with ObserverManager() as manager:
        manager.register(batching, concurrency=4)
        for number in range(9):
            manager.notify(call(number))
        await eventually(lambda: len(batching.got) == 9)
    assert sorted(len(batch) for batch in batching.batches) == [1, 2, 2, 2, 2]


async def test_what_waits_for_its_run_does_not_cut_short_the_wait_of_others():
    gate = asyncio.Event()

    class Waiting(Batching):
        async def handle_batch(self, events):
            await super().handle_batch(events)
            if events[0].run_id == "r":
                await gate.wait()

    batching = Waiting(2, delay=0.6)
    async with ObserverManager() as manager:
        manager.register(batching, concurrency=2)
        for number in range(3):
            manager.notify(call(number, "r"))
        await eventually(lambda: batching.batches)
        await asyncio.sleep(0.65)  # the third is older than any batch may wait
        manager.notify(call("s", "s"))
        await asyncio.sleep(0.03)
        assert batching.batches == [["0", "1"]]
        gate.set()
        assert await manager.drain()
    assert sorted(map(len, batching.batches)) in ([1, 1, 2], [2, 2])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_delay": -1}, "batch_delay=-1"),
        ({"batch_delay": "soon"}, "batch_delay='soon'"),
        ({"priority": "bad text"}, "priority='bad text'"),
        ({"block_for": -1}, "block_for=-1"),
        ({"overflow": "wait"}, "drop_oldest, drop_newest, block"),
        ({"retry": 5}, "retry=5"),
        ({"quarantine": 0}, "quarantine.after=0"),
        ({"quarantine": "never"}, "quarantine='never'"),
    ],
)
def test_a_misuse_is_refused_and_named(arguments, named):
    manager = ObserverManager()
    with pytest.raises(ConfigError, match=named):
        manager.register(Batching(), **arguments)
    assert not manager.stats()


@pytest.mark.parametrize("arguments", [{"batch_size": 5}, {"batch_delay": 1}])
def test_only_an_observer_of_batches_can_be_told_how_to_fill_them(arguments):
    async def single(event):
        del event

    with pytest.raises(ConfigError, match="single has no `handle_batch`"):
        ObserverManager().register(single, **arguments)


@pytest.mark.parametrize(
    ("attribute", "value"), [("batch_delay", "soon"), ("batch_delay", -1), ("idempotent", "yes")]
)
def test_an_observer_that_contradicts_itself_is_refused(attribute, value):
    batching = Batching()
    setattr(batching, attribute, value)
    with pytest.raises(ConfigError, match=f"{attribute}="):
        ObserverManager().register(batching)


async def test_a_queue_that_is_full_ends_the_wait_although_a_batch_has_not_filled():
    gate = asyncio.Event()

    class Waiting(Batching):
        async def handle_batch(self, events):
            self.batches.append([event.node or event.tool for event in events])
            await gate.wait()

    batching = Waiting(10, delay=LONG)
    async with ObserverManager() as manager:
        name = manager.register(batching, queue=10, concurrency=3, priority=NodeFailed)
        manager.notify(NodeFailed(node="first", error="e", run_id="a"))
        # The run is in hand now, so that what comes of it has to wait and takes up room.
        await eventually(lambda: batching.batches)
        for number in range(9):
            manager.notify(call(number, run="a"))
        manager.notify(NodeFailed(node="other", error="e", run_id="b"))
        await eventually(lambda: len(batching.batches) == 2)
        manager.notify(call("free"))
        await eventually(lambda: len(batching.batches) == 3)
        assert manager.stats()[name].dropped == 0
        gate.set()
    assert [batch[0] for batch in batching.batches[:3]] == ["first", "other", "free"]


def test_a_queue_has_room_for_a_batch_that_waits_to_fill():
    manager = ObserverManager()
    with pytest.raises(ConfigError, match=r"queue=499.*batch_size is 500"):
        manager.register(Batching(500, delay=1.0), queue=499)
    manager.register(Batching(500, delay=1.0), queue=500)
    manager.register(Batching(500), queue=1)


async def test_without_a_word_there_is_room_for_two_batches():
    batching = Batching(1500, delay=LONG)
    async with ObserverManager() as manager:
        name = manager.register(batching)
        for number in range(3001):
            manager.notify(call(number))
        stats = manager.stats()[name]
        assert (stats.queued + stats.in_hand, stats.dropped) == (3000, 1)
