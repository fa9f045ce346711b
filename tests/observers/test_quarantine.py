"""An observer that fails time and again is left alone, probed, and taken back."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from stanchion.events import Event, ToolCalled
from stanchion.observers import ObserverManager, ObserverState, Quarantine, Recorder, Undelivered
from tests.observers.doubles import QUICK, Batching, Failing, call
from tests.waiting import eventually


class Broken:
    """Fails until it is mended; knows how many calls run at once."""

    def __init__(self, *, idempotent: bool = False):
        self.idempotent = idempotent
        self.mended = False
        self.calls: list[tuple[str, float]] = []
        self.got: list[str] = []
        self.running = self.most = 0

    async def handle(self, event: Event):
        assert isinstance(event, ToolCalled)
        self.calls.append((event.tool, time.monotonic()))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        if not self.mended:
            raise ConnectionError
        self.got.append(event.tool)


def state(manager: ObserverManager, name: str = "Broken") -> ObserverState:
    return manager.stats()[name].state


async def test_its_queue_fills_within_its_bound_and_is_delivered_when_it_is_mended(caplog):
    broken, recorder = Broken(), Recorder()
    async with ObserverManager() as manager:
        manager.register(broken, queue=10, quarantine=Quarantine(after=3, pause=1))
        manager.register(recorder)
        for number in range(5):
            manager.notify(call(number))
        await eventually(lambda: state(manager) is ObserverState.QUARANTINED)
        for number in range(5, 100):
            manager.notify(call(number))
        stats = manager.stats()["Broken"]
        assert (stats.queued, stats.failed, stats.dropped) == (10, 3, 87)
        # Nobody else notices.
        await recorder.wait_for(lambda _: len(recorder.events) == 100)
        broken.mended = True
        assert await manager.drain()
        assert state(manager) is ObserverState.RUNNING
        stats = manager.stats()["Broken"]
    # The newest are there: the oldest gave way while it was in quarantine.
    assert broken.got == [str(number) for number in range(90, 100)]
    assert stats.received == stats.delivered + stats.failed + stats.dropped == 100
    assert "observer 'Broken' fails time and again" in caplog.text
    assert "observer 'Broken' works again" in caplog.text


async def test_probes_come_one_at_a_time_and_ever_more_seldom():
    broken = Broken()
    async with ObserverManager() as manager:
        terms = Quarantine(after=4, pause=0.04, longest=0.16)
        manager.register(broken, concurrency=4, queue=1000, quarantine=terms)
        for number in range(1000):
            manager.notify(call(number))
        await eventually(lambda: state(manager) is ObserverState.QUARANTINED)
        first = len(broken.calls)
        broken.most = broken.running
        await eventually(lambda: len(broken.calls) >= first + 6)
        assert broken.most <= 4
        await eventually(lambda: broken.running == 0)
        broken.most = 0
        seen = len(broken.calls)
        await eventually(lambda: len(broken.calls) >= seen + 3)
        assert broken.most == 1
        pauses = [after[1] - before[1] for before, after in pairwise(broken.calls[-4:])]
        # From half of the longest pause to all of it.
        assert all(0.08 <= pause < 3 for pause in pauses), pauses
        broken.mended = True
        assert await manager.drain(10)
    assert broken.most > 1  # all workers are back


async def test_a_number_is_enough():
    broken = Broken()
    async with ObserverManager() as manager:
        manager.register(broken, quarantine=2)
        for number in range(6):
            manager.notify(call(number))
        await eventually(lambda: state(manager) is ObserverState.QUARANTINED)
        assert len(broken.calls) == 2


async def test_there_may_be_none():
    broken = Broken()
    async with ObserverManager() as manager:
        manager.register(broken, quarantine=None)
        for number in range(30):
            manager.notify(call(number))
        assert await manager.drain()
        assert len(broken.calls) == 30
        assert state(manager) is ObserverState.RUNNING


async def test_failures_count_only_in_a_row():
    class Alternating(Failing):
        async def handle(self, event):
            self.calls.append(event.tool)
            if len(self.calls) % 3:
                raise ValueError

    async with ObserverManager() as manager:
        manager.register(Alternating(), quarantine=3)
        for number in range(60):
            manager.notify(call(number))
        assert await manager.drain()
        assert state(manager, "Alternating") is ObserverState.RUNNING
        assert manager.stats()["Alternating"].failed == 40


async def test_what_an_idempotent_observer_has_in_hand_waits_with_it():
    broken = Broken(idempotent=True)
    async with ObserverManager() as manager:
        manager.register(broken, retry=QUICK, quarantine=Quarantine(after=3, pause=0.02))
        for number in range(5):
            manager.notify(call(number))
        await eventually(lambda: len(broken.calls) >= 5)
        assert state(manager) is ObserverState.QUARANTINED
        # The same event is the probe: nothing is lost over a short outage, nor out of order.
        assert {name for name, _ in broken.calls} == {"0"}
        broken.mended = True
        assert await manager.drain()
        assert manager.stats()["Broken"].failed == 0
    assert broken.got == ["0", "1", "2", "3", "4"]


async def test_an_event_that_nobody_can_deliver_holds_up_the_others_only_so_long():
    class Picky(Failing):
        async def handle(self, event):
            self.calls.append(event.tool)
            if event.tool == "poison":
                raise ValueError
            self.got.append(event.tool)

    picky = Picky(idempotent=True)
    async with ObserverManager() as manager:
        manager.register(
            picky, retry=QUICK, quarantine=Quarantine(after=3, pause=0.001, longest=0.01)
        )
        for name in ("a", "poison", "poison", "b"):
            manager.notify(call(name))
        assert await manager.drain()
        stats = manager.stats()["Picky"]
    assert picky.got == ["a", "b"]
    assert picky.calls.count("poison") == 2 * QUICK.attempts
    assert (stats.delivered, stats.failed) == (2, 2)


async def test_a_receiver_that_takes_a_part_is_not_broken():
    def fails(events):
        return Undelivered(events[1:], "throttled") if len(events) > 1 else None

    async with ObserverManager() as manager:
        manager.register(Batching(20, fails=fails), retry=QUICK, quarantine=2)
        for number in range(10):
            manager.notify(call(number))
        assert await manager.drain()
        assert manager.stats()["Batching"].delivered == 10
        assert state(manager, "Batching") is ObserverState.RUNNING


async def test_a_part_taken_ends_a_row_of_failures():
    def fails(events):
        missed = events if len(batching.batches) % 2 else events[1:]
        return Undelivered(missed, "throttled") if missed else None

    batching = Batching(20, fails=fails)
    states: set[ObserverState] = set()
    async with ObserverManager() as manager:
        manager.register(batching, retry=QUICK, quarantine=Quarantine(after=2, pause=30))
        for number in range(5):
            manager.notify(call(number))
        assert await manager.drain()
        states.add(state(manager, "Batching"))
        assert manager.stats()["Batching"].delivered == 5
    assert states == {ObserverState.RUNNING}


async def test_calls_that_take_too_long_are_failures_too():
    async def hangs(event):
        del event
        await asyncio.Event().wait()

    async with ObserverManager() as manager:
        manager.register(hangs, timeout=0.01, quarantine=Quarantine(after=2, pause=30))
        for number in range(5):
            manager.notify(call(number))
        await eventually(lambda: state(manager, "hangs") is ObserverState.QUARANTINED)
        assert manager.stats()["hangs"].timed_out == 2
        assert manager.stats()["hangs"].queued == 3


@pytest.mark.parametrize("mended", [False, True])
async def test_the_end_probes_once_more_and_waits_no_longer(mended, caplog):
    broken = Broken()
    manager = ObserverManager()
    manager.register(broken, quarantine=Quarantine(after=2, pause=600, longest=600))
    await manager.start()
    for number in range(7):
        manager.notify(call(number))
    await eventually(lambda: state(manager) is ObserverState.QUARANTINED)
    broken.mended = mended
    began = time.monotonic()
    lost = await manager.close(30)
    assert time.monotonic() - began < 10
    if mended:
        assert broken.got == ["2", "3", "4", "5", "6"]
        assert not lost
    else:
        assert len(broken.calls) <= 4
        assert lost["Broken"].events == manager.stats()["Broken"].dropped >= 3
        assert "observer 'Broken' is closed and" in caplog.text
