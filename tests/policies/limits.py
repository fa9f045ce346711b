"""Asking about rate limits, quotas and slots, and taking the answers apart."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from stanchion.testing import TestBus, memory_bus
from tests.busses import Call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from stanchion import Decision, Event, EventBus, Permit, Verdict
    from stanchion.chain import AnyPolicy

SECOND = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(seconds: float | None) -> int:
    """Get seconds that must be given as whole microseconds."""
    assert seconds is not None
    return round(seconds * SECOND)


def us(moment: datetime) -> int:
    """Get microseconds since the epoch."""
    return (moment - EPOCH) // timedelta(microseconds=1)


async def admitted(bus: EventBus, event: Event | None = None, **fields: object) -> Permit:
    """Get the permit of a call that must be admitted."""
    decision = await bus.check(event or Call.model_validate(fields))
    assert decision, decision
    assert decision.permit is not None
    return decision.permit


async def vetoed(bus: EventBus, event: Event | None = None, **fields: object) -> Decision:
    """Get the decision about a call that must be vetoed."""
    decision = await bus.check(event or Call.model_validate(fields))
    assert not decision, decision
    return decision


async def seen(bus: EventBus, event: Event | None = None) -> Verdict:
    """Look what the first policy says of a call, by default of one that costs nothing."""
    return (await bus.peek(event or Call(tokens=0))).verdicts[0]


async def left(bus: EventBus, event: Event | None = None) -> int:
    """Look how much is left before a call, by default one that costs nothing."""
    remaining = (await seen(bus, event)).remaining
    assert remaining is not None
    return remaining


async def is_admitted_at(bus: TestBus, now_us: int, event: Event) -> bool:
    """Look what would be answered at another moment, and come back."""
    then = bus.clock.now_us
    await bus.clock.set_us(now_us)
    answer = await bus.peek(event)
    await bus.clock.set_us(then)
    return answer.allowed


async def retry_is_exact(bus: TestBus, event: Event) -> int:
    """Check that a call that is vetoed would pass when it is told to, and not just before.

    Gets how many microseconds that is.
    """
    decision = await bus.peek(event)
    assert not decision
    now, wait = bus.clock.now_us, micros(decision.retry_after)
    assert await is_admitted_at(bus, now + wait, event), f"not admitted after {wait} us"
    assert not await is_admitted_at(bus, now + wait - 1, event), f"admitted before {wait} us"
    return wait


def redeclare(bus: EventBus, policy: AnyPolicy) -> None:
    """Put another declaration in the place of the one of the same name."""
    bus.unregister(policy.name)
    bus.register(policy)


@asynccontextmanager
async def two_busses(url: str, *policies: AnyPolicy) -> AsyncGenerator[tuple[TestBus, TestBus]]:
    """Get two buses on one server, as in two processes, that go by the first one's clock."""
    async with memory_bus(*policies, url=url) as one, memory_bus(*policies, url=url) as two:
        yield one, two
