"""A process that does not get to its own local share in time answers all the same."""

from __future__ import annotations

import asyncio
import time

from tests.faults.calls import Call, bus_on, rate
from tests.servers import free_port

DEADLINE = 0.05
ROUNDS = 3


async def test_a_check_never_raises_where_the_process_itself_is_late():
    """No server, and a loop that is kept busy for longer than the deadline, again and again."""

    async def keep_busy() -> None:
        while True:
            time.sleep(1.2 * DEADLINE)  # noqa: ASYNC251 - that is the fault
            await asyncio.sleep(0)

    policy = rate(on_outage="local")
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with bus_on(url, [policy], deadline=DEADLINE, processes=1) as bus:
        busy = asyncio.create_task(keep_busy())
        reasons: set[str | None] = set()
        for _ in range(ROUNDS):
            decision = await bus.check(Call())
            peeked = await bus.peek(Call())
            reasons |= {decision.reason, peeked.reason}
        busy.cancel()
        await asyncio.wait([busy])
    assert "store_unavailable" in reasons, "it was never late, so nothing was seen"
    assert reasons <= {None, "store_unavailable"}
