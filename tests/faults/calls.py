"""What the fault tests ask for: one event under every kind of limit, and how it went."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from stanchion import (
    CircuitBreaker,
    Concurrency,
    Decision,
    Event,
    EventBus,
    Quota,
    RateLimit,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterable
    from typing import Any

    from tests.faults.report import FaultRecord
    from tests.servers import RealServer

#: Seconds that a check may take in these tests.
DEADLINE = 0.4
SLACK = 0.05
NAMESPACE = "faults"
PREFIX = f"stanchion:{{{NAMESPACE}}}:"
UNAVAILABLE = "store_unavailable"


class Call(Event, type="fault:call"):
    who: str = "acme"
    tokens: int = 1


def rate(**fields: Any) -> RateLimit:
    return RateLimit(
        **{"name": "calls", "on": Call, "by": "who", "limit": 10**6, "per": "1h"} | fields
    )


def quota(**fields: Any) -> Quota:
    # A window long enough that no test run sees its end.
    declared = {"limit": 10**9, "per": "3650d", "cost": "tokens", "lease": "60s", "warn_at": ()}
    return Quota(**{"name": "tokens", "on": Call, "by": "who"} | declared | fields)


def slots(**fields: Any) -> Concurrency:
    declared = {"limit": 10**6, "lease": "60s"}
    return Concurrency(**{"name": "slots", "on": Call, "by": "who"} | declared | fields)


def breaker(**fields: Any) -> CircuitBreaker:
    declared = {"failure_rate": 0.5, "minimum_calls": 2, "open_for": "60s"}
    return CircuitBreaker(**{"name": "provider", "on": Call, "by": "who"} | declared | fields)


def chain() -> list[Any]:
    """Every kind of limit, none of them near its end."""
    return [rate(), quota(), slots(), breaker()]


def bus_on(
    url: str, policies: Iterable[Any] | None = None, *, deadline: float = DEADLINE, **options: Any
) -> EventBus:
    """Get a bus in the namespace of these tests, by default with the whole chain."""
    asked = chain() if policies is None else policies
    options.setdefault("cache_denials", False)
    return EventBus.from_url(url, policies=asked, namespace=NAMESPACE, deadline=deadline, **options)


def state(server: RealServer, kind: str, policy: str, who: str = "acme") -> dict[str, str]:
    """Get a subject's state hash, as the server has it."""
    return cast("dict[str, str]", server.control.hgetall(f"{PREFIX}{kind}:{policy}:{who}"))


def charged(server: RealServer, who: str = "acme") -> int:
    """Get what the quota `tokens` has counted for a subject, held and settled."""
    fields = state(server, "quota", "tokens", who)
    return int(fields.get("used", 0)) + int(fields.get("held", 0))


def in_use(server: RealServer, who: str = "acme") -> int:
    """Get the number of leases on `slots` that a subject has, ended ones included."""
    return cast("int", server.control.zcard(f"{PREFIX}slots.leases:slots:{who}"))


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Fail a block that takes more than `seconds` and 50 ms, all lateness of the loop aside."""
    late = 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            due = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            late += max(0.0, time.monotonic() - due)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    began = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - began
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    assert taken <= seconds + SLACK + late, f"took {taken:.3f} s (the loop was {late:.3f} s late)"


async def ask(bus: EventBus, record: FaultRecord | None = None, **fields: Any) -> Decision:
    """Check once, written down if there is a record."""
    answer = bus.check(Call(**fields))
    return await (answer if record is None else record.ask(answer))


async def denied(
    bus: EventBus, count: int = 1, who: str = "acme", record: FaultRecord | None = None
) -> list[Decision]:
    """Check so many times at once, and see each denied for want of the store."""
    decisions = await asyncio.gather(*(ask(bus, record, who=who) for _ in range(count)))
    for decision in decisions:
        assert not decision.allowed
        assert decision.reason == UNAVAILABLE
        assert decision.retry_after is None
    return decisions


async def shut(bus: EventBus, record: FaultRecord | None = None) -> int:
    """Check until the gate around Redis is shut; get how many checks had to wait for that."""
    waited = 0

    async def at_once() -> bool:
        nonlocal waited
        began = time.monotonic()
        await denied(bus, record=record)
        waited += (slow := time.monotonic() - began > DEADLINE / 4)
        return not slow

    await eventually(at_once, 10 * DEADLINE, what="a denial at once", interval=0)
    return waited


async def recovered(
    bus: EventBus, timeout: float = 5.0, record: FaultRecord | None = None
) -> Decision:
    """Check until admitted; to be called as soon as the fault is over."""
    with nullcontext() if record is None else record.recovering():
        return await eventually(lambda: cast("Awaitable[Decision]", ask(bus, record)), timeout)
