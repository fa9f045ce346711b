"""One deadline for a whole check, also where others spend what was fetched for it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.faults.calls import Call, bus_on, rate
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from stanchion import Decision, EventBus
    from tests.servers import RealServer

CALLERS = 8
DEADLINE = 1.0
SLACK = 0.4


async def test_who_finds_nothing_left_time_and_again_is_answered_by_the_deadline(
    valkey: RealServer,
):
    """What one call brings those take who asked for it; who came later asks again, and waits."""

    async def check(bus: EventBus, after: float) -> Decision:
        await asyncio.sleep(after)
        began = time.monotonic()
        decision = await bus.check(Call())
        took.append(time.monotonic() - began)
        return decision

    took: list[float] = []
    async with Proxy(valkey.port) as proxy:
        policy = rate(algorithm="fixed_window", prefetch=1)
        async with bus_on(proxy.url, [policy], deadline=DEADLINE) as bus:
            assert await bus.check(Call())
            # Half of it each way: a second answer comes after the deadline.
            proxy.delay = 0.45 * DEADLINE
            decisions = await asyncio.gather(
                *(check(bus, 0.02 * number) for number in range(CALLERS))
            )
    assert {decision.reason for decision in decisions} <= {None, "store_unavailable"}
    assert DEADLINE / 2 < max(took) < DEADLINE + SLACK, took
