"""A hundred thousand events, five observers, two of which do not work."""

from __future__ import annotations

import asyncio
import threading

from stanchion.events import ToolCalled
from stanchion.observers import ObserverManager, ObserverState
from tests.waiting import eventually

EVENTS = 100_000
RUNS = 100


class Collecting:
    batch_size = 500

    def __init__(self):
        self.got: list[int] = []

    async def handle_batch(self, events):
        self.got += [event.attempt for event in events]


async def test_three_that_work_get_every_event_in_order_beside_one_that_hangs_and_one_that_raises():
    release, plain = threading.Event(), Collecting()

    class Plain:
        """One that blocks, in a thread."""

        batch_size = 1000

        def handle_batch(self, events):
            plain.got += [event.attempt for event in events]

    async def hangs(event):
        del event
        await asyncio.Event().wait()

    async def raises(event):
        raise ValueError(event)

    quick, patient = Collecting(), Collecting()
    manager = ObserverManager()
    manager.register(quick, queue=EVENTS)
    manager.register(patient, queue=EVENTS, batch_delay=0.05, concurrency=1)
    manager.register(Plain(), queue=EVENTS, timeout=30)
    manager.register(hangs, timeout=0.2)
    manager.register(raises)
    events = [ToolCalled(tool="t", run_id=f"run-{n}") for n in range(RUNS)]
    async with manager:
        for number in range(1, EVENTS + 1):
            event = events[number % RUNS].model_copy(update={"attempt": number})
            manager.notify(event)
            if number % 500 == 0:
                await asyncio.sleep(0)
        everything = list(range(1, EVENTS + 1))
        await eventually(lambda: len(quick.got) == len(patient.got) == len(plain.got) == EVENTS, 30)
        assert quick.got == patient.got == plain.got == everything
        stats = manager.stats()
        for name in ("Collecting", "Collecting-2", "Plain"):
            assert (stats[name].delivered, stats[name].dropped) == (EVENTS, 0)
        for name in ("hangs", "raises"):
            assert stats[name].delivered == 0
            assert stats[name].received == EVENTS
            assert stats[name].queued <= 1000
        assert stats["raises"].state is ObserverState.QUARANTINED
        lost = await manager.close(0.2)
        assert set(lost) == {"hangs", "raises"}
    release.set()
