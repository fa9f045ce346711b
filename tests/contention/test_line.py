"""A hundred waiters of four processes, served as they came and as fast as the limit allows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from stanchion import RateLimit
from tests.contention.calls import PREFIX, Call
from tests.contention.fleet import fleet
from tests.contention.spans import SECOND, fullest_span

if TYPE_CHECKING:
    from tests.servers import RealServer

WORKERS = 4
EACH = 25
LIMIT = 10
LINE = f"{PREFIX}rate.order:calls:-"


async def test_a_hundred_waiters_are_served_in_order_and_within_a_tenth_of_the_ideal_time(
    valkey: RealServer,
):
    policy = RateLimit(name="calls", on=Call, limit=LIMIT, per="1s")
    # Each waiter's ticket is the server's time when it came, as long as it stands in line.
    tickets: dict[str, float] = {}

    async def look() -> None:
        while True:
            rows = valkey.control.zrange(LINE, 0, -1, withscores=True)
            tickets.update(cast("list[tuple[str, float]]", rows))
            await asyncio.sleep(0.02)

    async with fleet(valkey.url, policy, workers=WORKERS) as workers:
        looking = asyncio.create_task(look())
        logs = await workers.ask("wait_in_line", count=EACH, wait=40)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    served = sorted(((at, permit) for log in logs for permit, at in log), key=lambda row: row[0])
    assert len(served) == WORKERS * EACH
    at_once = [permit for _, permit in served if permit not in tickets]
    # The burst needs no line; whoever is next may have left it between two looks.
    assert len(at_once) <= LIMIT + 2
    assert [permit for _, permit in served[: len(at_once)]] == at_once
    in_line = [permit for _, permit in served if permit in tickets]
    assert in_line == sorted(in_line, key=lambda permit: tickets[permit])

    stamps = [at for at, _ in served]
    taken = stamps[-1] - stamps[0]
    ideal = (WORKERS * EACH - LIMIT) * SECOND // LIMIT
    print(f"{taken / SECOND:.3f} s from the first to the last; ideal: {ideal / SECOND:g} s")
    assert ideal <= taken <= ideal * 1.1
    assert fullest_span(stamps, SECOND) <= 2 * LIMIT
    holders = [permit.partition("-")[0] for permit in in_line[:EACH]]
    assert len(set(holders)) > 1, "they are of several processes, mixed"
