"""Every event is accounted for, at any moment and from any thread."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from stanchion.observers import (
    ObserverManager,
    ObserverState,
    ObserverStats,
    Quarantine,
    Undelivered,
)
from tests.observers.doubles import QUICK, Batching, call
from tests.waiting import eventually


def accounted(stats: ObserverStats) -> bool:
    ended = stats.delivered + stats.dropped + stats.failed + stats.timed_out
    return stats.received == ended + stats.queued + stats.in_hand


class Unreliable:
    """Raises, takes a part, refuses, hangs and works, by chance; single events or batches."""

    idempotent = True

    def __init__(self, size: int | None):
        self.chance = random.Random(7)
        if size is None:
            self.handle = self._one
        else:
            self.batch_size = size
            self.handle_batch = self._take

    async def _one(self, event):
        await self._take((event,))

    async def _take(self, events):
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        dice = self.chance.random()
        if dice < 0.1:
            raise ValueError
        if dice < 0.3:
            permanent = self.chance.random() < 0.5
            raise Undelivered(events[: len(events) // 2 + 1], "no", permanent=permanent)
        if dice < 0.32:
            await asyncio.Event().wait()


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("size", [None, 4])
async def test_what_was_received_is_the_sum_of_what_became_of_it(concurrency, size):
    snapshots: list[ObserverStats] = []
    done = threading.Event()

    def look():
        while not done.wait(0.0005):
            snapshots.append(manager.stats()["Unreliable"])

    manager = ObserverManager()
    manager.register(
        Unreliable(size),
        queue=50,
        concurrency=concurrency,
        retry=QUICK,
        timeout=0.02,
        quarantine=Quarantine(after=3, pause=0.005, longest=0.01),
    )
    onlooker = threading.Thread(target=look)
    async with manager:
        onlooker.start()
        for number in range(1000):
            manager.notify(call(number, f"run-{number % 5}"))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
            assert accounted(manager.stats()["Unreliable"])
        assert await manager.drain(30)
        done.set()
        await asyncio.to_thread(onlooker.join)
        manager.notify(call("on its way when it ends"))
    manager.notify(call("too late"))
    stats = manager.stats()["Unreliable"]
    assert accounted(stats)
    assert (stats.received, stats.queued, stats.in_hand) == (1002, 0, 0)
    assert min(stats.delivered, stats.dropped, stats.failed, stats.retried) > 0
    assert len(snapshots) > 10
    assert all(accounted(snapshot) for snapshot in snapshots)


async def test_lag_is_the_age_of_the_oldest_event_that_is_not_delivered():
    gate = asyncio.Event()

    async def waits(event):
        del event
        await gate.wait()

    async with ObserverManager() as manager:
        manager.register(waits)
        assert manager.stats()["waits"].lag == 0
        manager.notify(call())
        await asyncio.sleep(0.1)
        # It is in hand, not in the queue, and still not delivered.
        assert manager.stats()["waits"].queued == 0
        assert 0.1 <= manager.stats()["waits"].lag < 2
        manager.notify(call())
        assert manager.stats()["waits"].lag >= 0.1
        gate.set()
        assert await manager.drain()
        assert manager.stats()["waits"].lag == 0


async def test_lag_is_that_of_what_waited_for_its_run_too():
    async def fails(event):
        del event
        await asyncio.sleep(0.01)
        raise ValueError

    async with ObserverManager() as manager:
        manager.register(fails, concurrency=2, quarantine=Quarantine(after=1, pause=30))
        # The second has been put aside until the first is done; then nobody is called any more.
        manager.notify(call("first", "r"))
        manager.notify(call("second", "r"))
        await eventually(lambda: manager.stats()["fails"].failed == 1)
        await asyncio.sleep(0.1)
        manager.notify(call("late", "s"))
        stats = manager.stats()["fails"]
        assert (stats.state, stats.queued) == (ObserverState.QUARANTINED, 2)
        assert stats.lag >= 0.1


async def test_lag_does_not_count_what_was_taken_of_a_batch():
    seen: list[float] = []

    def fails(events):
        if len(events) > 1:
            return Undelivered(events[1:], "later")
        seen.append(manager.stats()["Batching"].lag)
        return None

    async with ObserverManager() as manager:
        manager.register(Batching(2, delay=30, fails=fails), retry=QUICK)
        manager.notify(call(1))
        await asyncio.sleep(0.4)
        manager.notify(call(2))
        assert await manager.drain()
    assert 0 <= seen[0] < 0.4


async def test_states_say_how_an_observer_is_served():
    gate, stop, fails = asyncio.Event(), asyncio.Event(), True

    class Slow:
        async def start(self):
            await gate.wait()

        async def handle(self, event):
            if event.tool == "hangs":
                while not stop.is_set():
                    try:
                        await stop.wait()
                    except asyncio.CancelledError:
                        continue
            if fails:
                raise ValueError

    def state() -> ObserverState:
        return manager.stats()["Slow"].state

    async with ObserverManager() as manager:
        manager.register(Slow(), timeout=0.05, quarantine=Quarantine(after=2, pause=0.05))
        assert state() is ObserverState.STARTING
        gate.set()
        await eventually(lambda: state() is ObserverState.RUNNING)
        manager.notify(call())
        manager.notify(call())
        await eventually(lambda: state() is ObserverState.QUARANTINED)
        fails = False
        manager.notify(call())
        await eventually(lambda: state() is ObserverState.RUNNING)
        manager.notify(call("hangs"))
        await eventually(lambda: state() is ObserverState.HANGING)
        stop.set()
        await eventually(lambda: state() is ObserverState.RUNNING)
    assert state() is ObserverState.CLOSED
    assert state() == "closed"
