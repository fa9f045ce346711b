"""A process that holds a slot, told what to do by lines on stdin: run with a URL and a lease."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.faults.calls import Call, bus_on, quota, slots
from tests.waiting import eventually


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def hold(url: str, lease: str) -> None:
    async with (
        bus_on(url, [quota(lease=lease), slots(limit=1, lease=lease)], deadline=5) as bus,
        bus.guard(Call()) as permit,
    ):
        say("holding")
        await asyncio.to_thread(sys.stdin.readline)
        await eventually(lambda: permit.lost, what="the loss is noticed")
        renewed = await bus.renew(permit)
        settlement = await bus.settle(permit, tokens=50)
        told = {"lost": permit.lost, "renewed": renewed, "stale": sorted(settlement.stale)}
        say(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
