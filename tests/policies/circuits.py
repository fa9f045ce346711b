"""What the tests of breakers share: calls that end well or badly, and what a circuit says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from stanchion import CircuitBreaker, CircuitState, Event, EventBus, Outcome
from stanchion.testing import memory_bus
from tests.busses import Call, values

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from stanchion import Decision, Settlement
    from stanchion.testing import TestBus

CALL = Call(tenant="acme")
B = TypeVar("B", bound=EventBus)


async def hearing(bus: B) -> B:
    """Wait until a bus hears of every change from now on."""
    assert await bus._listener.synced(5)
    return bus


@asynccontextmanager
async def circuit_bus(*policies: CircuitBreaker) -> AsyncGenerator[TestBus]:
    """Get a bus with a clock to move that hears of every change from its first call on."""
    async with memory_bus(*policies) as bus:
        yield await hearing(bus)


async def end(
    bus: EventBus, outcome: Outcome, times: int = 1, *, event: Event = CALL
) -> Settlement:
    """Let calls in, one after the other, and end each so; get the last settlement."""
    assert times > 0
    for _ in range(times):
        settlement = await bus.settle(await bus.admit(event), outcome)
        assert settlement
    return settlement


async def succeed(bus: EventBus, times: int = 1, *, event: Event = CALL) -> Settlement:
    return await end(bus, Outcome.SUCCESS, times, event=event)


async def fail(bus: EventBus, times: int = 1, *, event: Event = CALL) -> Settlement:
    return await end(bus, Outcome.FAILURE, times, event=event)


async def take(bus: TestBus, seconds: float, outcome: Outcome = Outcome.SUCCESS) -> None:
    """Let a call in that ends after so many seconds of the bus's own clock."""
    permit = await bus.admit(CALL)
    await bus.clock.advance(seconds)
    assert await bus.settle(permit, outcome)


async def state(bus: EventBus, name: str = "provider") -> CircuitState:
    """Get a circuit's state as it is stored; what no state is stored for is closed."""
    stored = [found async for found in bus.inspect(name)]
    if not stored:
        return CircuitState.CLOSED
    fields = await values(bus, name)
    return CircuitState(fields["forced"] or fields["state"])


async def closed_and_untouched(bus: EventBus) -> bool:
    """Get whether a circuit is closed, has counted nothing, and awaits nothing."""
    fields = await values(bus, "provider")
    seen = fields["state"], fields["window_calls"], fields["streak"], fields["in_flight"]
    return seen == ("closed", "0", "0", "0")


async def vetoed(bus: EventBus, event: Event = CALL) -> Decision:
    """Check, and see it vetoed."""
    decision = await bus.check(event)
    assert not decision, decision
    return decision
