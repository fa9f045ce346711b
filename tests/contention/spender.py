"""A process that spends as fast as it may, and writes down each admission where it survives it.

Spoken to as the other workers are. Every moment is of the machine's own clocks: that a span of
time holds an admission is certain where the span holds both the moment before the check and the
one after it.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from typing import Any

from stanchion import EventBus
from tests.contention.calls import CALLS, NAMESPACE, Call
from tests.contention.worker import serve, told

#: Before and after, by the clock that never jumps, and by the one that the server goes by; in us.
RECORD = struct.Struct("<QQQQ")


class Spender:
    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def warm(self) -> int:
        await self._bus.peek(Call())
        return os.getpid()

    async def press(self, until_us: int, tasks: int, calls: list[str], path: str) -> int:
        """Ask until then by the clock that never jumps; get how often it asked."""
        counts = await asyncio.gather(
            *(self._press(until_us, CALLS[name], path) for name in calls for _ in range(tasks))
        )
        return sum(counts)

    async def _press(self, until_us: int, call: type[Call], path: str) -> int:
        log = os.open(f"{path}.{call.event_type}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        event, asked = call(), 0
        while (before := time.monotonic_ns() // 1000) < until_us:
            wall = time.time_ns() // 1000
            decision = await self._bus.check(event)
            asked += 1
            if decision.allowed:
                after = time.time_ns() // 1000
                os.write(log, RECORD.pack(before, time.monotonic_ns() // 1000, wall, after))
            if asked % 16 == 0 or not decision.allowed:
                await asyncio.sleep(0 if decision.allowed else 0.001)
        os.close(log)
        return asked

    async def spend(self, count: int) -> int:
        """Have so many calls admitted."""
        return sum([(await self._bus.check(Call())).allowed for _ in range(count)])

    async def leave(self) -> None:
        pass


async def work(url: str, policies: list[Any]) -> None:
    bus = EventBus.from_url(url, policies=policies, namespace=NAMESPACE, deadline=10)
    async with bus:
        await serve(Spender(bus))


if __name__ == "__main__":
    asyncio.run(work(*told()))
