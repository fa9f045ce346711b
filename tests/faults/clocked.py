"""A process whose clock may be wrong, told what to do by lines on stdin: run with a URL.

Each line is a JSON list of how many calls to check, and how they end; the answer has what each was
told, and the time here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from stanchion import Outcome
from tests.faults.calls import Call, breaker, bus_on, quota, rate, slots

if TYPE_CHECKING:
    from stanchion import EventBus

LIMIT = 100


def policies() -> list[Any]:
    """Get limits that count in windows of the calendar, in rolling ones, and leases."""
    return [
        rate(name="fixed", limit=LIMIT, algorithm="fixed_window"),
        rate(name="bucket", limit=LIMIT, per="365d"),
        quota(limit=LIMIT, per="hour"),
        slots(limit=LIMIT),
        breaker(consecutive_failures=1, open_for="20s"),
    ]


async def deed(bus: EventBus, who: str, count: int, outcome: str) -> dict[str, Any]:
    """Check so many times and settle; get what was told."""
    told: list[Any] = []
    for _ in range(count):
        decision = await bus.check(Call(who=who))
        remaining = [verdict.remaining for verdict in decision.verdicts[:3]]
        at = decision.decided_at.timestamp() if decision.decided_at else None
        told.append((decision.reason or "ok", remaining, at, decision.retry_after))
        if decision.permit is not None:
            settlement = await bus.settle(decision.permit, Outcome(outcome))
            assert settlement, settlement.statuses
    return {"told": told, "here": time.time()}


async def main(url: str) -> None:
    async with bus_on(url, policies(), deadline=5) as bus:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await deed(bus, *json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
