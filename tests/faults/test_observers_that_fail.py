"""Observers that raise, hang, block or flood: nobody who asks may notice."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stanchion.events import ToolCalled
from stanchion.observers import ObserverState
from tests.faults.calls import DEADLINE, ask, bus_on, charged, quota, rate, within
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion import Event, EventBus
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer

CHECKS = 400
LIMIT = 100
QUEUE = 50


def raising(bus: EventBus) -> Callable[[Event], Any]:
    """Raise for every event."""

    async def handle(event: Event) -> None:
        raise RuntimeError(event.event_type)

    return handle


def hanging(bus: EventBus) -> Callable[[Event], Any]:
    """Never come to an end."""

    async def handle(event: Event) -> None:
        await asyncio.Event().wait()

    return handle


def flooding(bus: EventBus) -> Callable[[Event], Any]:
    """Make three events of each."""

    async def handle(event: Event) -> None:
        for _ in range(3):
            bus.notify(ToolCalled(tool="echo"))

    return handle


RELEASED = threading.Event()


def blocking(bus: EventBus) -> Callable[[Event], Any]:
    """Block the thread that it is given."""

    def handle(event: Event) -> None:
        RELEASED.wait(5)

    return handle


KINDS = [raising, hanging, flooding, blocking]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_an_observer_changes_no_verdict_and_delays_nobody(
    valkey: RealServer,
    kind: Callable[[EventBus], Callable[[Event], Any]],
    fault_record: FaultRecords,
):
    """Hundreds of vetoes are told to it, and the answers are those that come without it."""
    record = fault_record(28, f"an observer that is {kind.__name__}", valkey, deadline=DEADLINE)
    policies = [rate(limit=LIMIT, per="365d"), quota()]
    RELEASED.clear()
    try:
        async with bus_on(valkey.url, policies) as bus:
            usual, without = await _answers(bus)
        valkey.execute("FLUSHALL")
        async with bus_on(valkey.url, policies) as bus:
            bus.observers.register(kind(bus), name="bad", queue=QUEUE, timeout=30)
            async with within(CHECKS * DEADLINE):
                told, with_it = await _answers(bus, record)
            assert told == usual == ["ok"] * LIMIT + ["limit_reached"] * (CHECKS - LIMIT)
            assert charged(valkey) == LIMIT
            record.charge(charged(valkey))
            # The medians of a noisy machine: an observer that is waited for would be far above.
            assert statistics.median(with_it) <= 5 * statistics.median(without) + 0.005
            stats = bus.observers.stats()["bad"]
            assert stats.queued <= QUEUE
            assert stats.received >= CHECKS - LIMIT
            if kind is raising:
                await eventually(lambda: _state(bus) is ObserverState.QUARANTINED)
            else:
                assert stats.dropped > 0, "it was more than the queue holds"
            RELEASED.set()
            began = time.monotonic()
            await bus.close(0.2)
            assert time.monotonic() - began < 0.2 + 2 * DEADLINE
    finally:
        RELEASED.set()


def _state(bus: EventBus) -> ObserverState:
    return bus.observers.stats()["bad"].state


async def _answers(
    bus: EventBus, record: FaultRecord | None = None
) -> tuple[list[str], list[float]]:
    told: list[str] = []
    took: list[float] = []
    for _ in range(CHECKS):
        began = time.monotonic()
        decision = await ask(bus, record)
        took.append(time.monotonic() - began)
        told.append(decision.reason or "ok")
    return told, took
