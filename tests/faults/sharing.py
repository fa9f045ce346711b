"""A process of several that share a limit, each with a share of its own for an outage.

It is told what to do by lines on stdin, as `tests.contention.worker` is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from stanchion import EventBus
from tests.contention.worker import serve, told
from tests.faults.calls import DEADLINE, Call, bus_on, rate
from tests.waiting import eventually


class Sharer:
    """Checks, and keeps count of what it was told."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._told = Counter[str]()
        self._worst = 0.0

    async def warm(self) -> int:
        """Open the connection; get something that no other process answers."""
        assert not (await self._bus.peek(Call())).vetoes
        return id(self) ^ time.monotonic_ns()

    async def check(self, times: int) -> dict[str, int]:
        """Check so many times, some of them at once."""
        answered = Counter[str]()
        for first in range(0, times, 5):
            several = range(first, min(first + 5, times))
            answered.update(await asyncio.gather(*(self._one() for _ in several)))
        return answered

    async def _one(self) -> str:
        began = time.monotonic()
        decision = await self._bus.check(Call())
        self._worst = max(self._worst, time.monotonic() - began)
        reason = str(decision.verdicts[0].reason)
        self._told[reason] += 1
        return reason

    async def until(self, reason: str) -> None:
        """Check until told so."""

        async def so() -> bool:
            return await self._one() == reason

        await eventually(so, 10, what=f"told {reason}", interval=0.02)

    async def tell(self) -> tuple[dict[str, int], float]:
        """Get how often it was told what since it told of it, and the longest that it took."""
        told, worst = self._told, self._worst
        self._told, self._worst = Counter(), 0.0
        return told, worst

    async def leave(self) -> None:
        """Nothing is held."""


async def main(url: str, given: list[Any]) -> None:
    processes, limit = map(int, given)
    policies = [rate(limit=limit, per="365d", on_outage="local")]
    async with bus_on(url, policies, deadline=DEADLINE, processes=processes) as bus:
        await serve(Sharer(bus))


if __name__ == "__main__":
    asyncio.run(main(*told()))
