"""The events of one run reach an observer one after another, however many calls run at once."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from stanchion.observers import ObserverManager, Quarantine, Undelivered
from tests.observers.doubles import QUICK, call
from tests.waiting import eventually

RUNS = [f"run-{number}" for number in range(7)]


class Watching:
    """Takes time, fails now and then, and sees whether two calls are about the same run."""

    def __init__(self, seed: int, size: int | None = None):
        self.chance = random.Random(seed)
        self.idempotent = True
        self.running: list[str | None] = []
        self.most = 0
        self.overlaps: list[str | None] = []
        self.got: dict[str | None, list[int]] = defaultdict(list)
        if size is not None:
            self.batch_size = size
            self.handle_batch = self._take
        else:
            self.handle = self._one

    async def _one(self, event):
        await self._take((event,))

    async def _take(self, events):
        runs = {event.run_id for event in events} - {None}
        self.overlaps += runs & set(self.running)
        self.running += runs
        self.most = max(self.most, len(self.running))
        try:
            for _ in range(self.chance.randrange(4)):
                await asyncio.sleep(0)
            if self.chance.random() < 0.1:
                raise ConnectionError
            missed = []
            if len(events) > 1 and self.chance.random() < 0.3:
                missed = list(events[self.chance.randrange(len(events)) :])
            for event in events:
                if event not in missed:
                    self.got[event.run_id].append(int(event.tool))
            if missed:
                raise Undelivered(missed, "throttled")
        finally:
            for run in runs:
                self.running.remove(run)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("size", "concurrency"), [(None, 1), (None, 4), (None, 16), (5, 1), (5, 4), (50, 3)]
)
async def test_the_order_of_a_run_is_kept_also_where_calls_fail(seed, size, concurrency):
    watching = Watching(seed, size)
    chance = random.Random(seed)
    told: dict[str | None, list[int]] = defaultdict(list)
    async with ObserverManager() as manager:
        manager.register(
            watching, queue=10_000, concurrency=concurrency, retry=QUICK, quarantine=None
        )
        for number in range(400):
            # One run has most of the events; some events belong to none.
            run = chance.choice([*RUNS, *[RUNS[0]] * 6, None])
            told[run].append(number)
            manager.notify(call(number, run))
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        assert await manager.drain(30)
        stats = manager.stats()["Watching"]
    assert (stats.delivered, stats.dropped, stats.failed) == (400, 0, 0)
    assert stats.retried > 0
    assert not watching.overlaps
    for run in RUNS:
        assert watching.got[run] == told[run], run
    assert sorted(watching.got[None]) == told[None]
    if concurrency == 1:
        assert watching.got[None] == told[None]
    elif size is None:
        assert watching.most > 1


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
@pytest.mark.parametrize("size", [None, 3])
async def test_it_is_kept_among_what_is_left_when_events_give_way(overflow, size):
    watching = Watching(1, size)
    async with ObserverManager() as manager:
        manager.register(
            watching, queue=9, concurrency=3, overflow=overflow, priority="x:y", retry=QUICK
        )
        for number in range(2000):
            manager.notify(call(number, RUNS[number % 3 if number % 2 else 0]))
            if number % 9 == 0:
                await asyncio.sleep(0)
        assert await manager.drain(30)
        stats = manager.stats()["Watching"]
    assert not watching.overlaps
    assert 0 < stats.dropped < 2000
    assert sum(len(numbers) for numbers in watching.got.values()) == stats.delivered
    assert stats.delivered + stats.dropped == stats.received == 2000
    for numbers in watching.got.values():
        assert numbers == sorted(set(numbers))


async def test_a_run_that_hangs_holds_up_only_itself():
    gate, got = asyncio.Event(), []

    async def slow(event):
        if event.run_id == "slow":
            await gate.wait()
        got.append(event.tool)

    async with ObserverManager() as manager:
        manager.register(slow, concurrency=2, timeout=30)
        for number in range(20):
            manager.notify(call(f"s{number}", "slow"))
            manager.notify(call(f"f{number}", "fast"))
        await eventually(lambda: len(got) == 20)
        assert got == [f"f{number}" for number in range(20)]
        gate.set()
        assert await manager.drain()
    assert got[20:] == [f"s{number}" for number in range(20)]


async def test_runs_that_become_free_together_go_on_side_by_side():
    first, second = asyncio.Event(), asyncio.Event()
    batches: list[list[str]] = []

    class Waiting:
        batch_size = 2

        async def handle_batch(self, events):
            batches.append([event.tool for event in events])
            await (first if len(batches) == 1 else second).wait()

    async with ObserverManager() as manager:
        manager.register(Waiting(), concurrency=2, timeout=30)
        for name in ("a1", "b1", "a2", "a3", "b2", "b3"):
            manager.notify(call(name, run=name[0]))
        await eventually(lambda: batches)
        await asyncio.sleep(0.01)
        first.set()
        await eventually(lambda: len(batches) == 3)
        second.set()
    assert batches == [["a1", "b1"], ["a2", "a3"], ["b2", "b3"]]


async def test_it_is_kept_through_a_quarantine():
    broken, got, attempts = True, defaultdict(list), 0

    class Broken:
        idempotent = True

        async def handle(self, event):
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(0)
            if broken:
                raise ConnectionError
            got[event.run_id].append(int(event.tool))

    async with ObserverManager() as manager:
        terms = Quarantine(after=3, pause=0.01, longest=0.02)
        manager.register(Broken(), concurrency=4, retry=QUICK, quarantine=terms)
        for number in range(40):
            manager.notify(call(number, RUNS[number % 5]))
        await eventually(lambda: attempts > 8)
        broken = False
        assert await manager.drain()
        assert manager.stats()["Broken"].delivered == 40
    for index, run in enumerate(RUNS[:5]):
        assert got[run] == list(range(index, 40, 5))
