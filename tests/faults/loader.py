"""A process of a load: spoken to as the workers of the contention tests are."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from stanchion.events import PolicyFailed
from tests.contention.worker import serve, told
from tests.faults.calls import UNAVAILABLE, Call, bus_on
from tests.waiting import eventually

PORTS = re.compile(r"\b\d{4,5}\b")


class Loader:
    """Callers that check again and again, and what they were told."""

    def __init__(self, url: str, policies: list[Any]) -> None:
        self._url, self._policies = url, policies
        self._stack = AsyncExitStack()
        self._over = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []
        self._admitted: list[tuple[str, float]] = []
        self._unavailable: list[float] = []
        self._denied: Counter[str] = Counter()
        self._details: Counter[str] = Counter()
        self._worst = 0.0

    async def warm(self) -> int:
        return os.getpid()

    async def begin(self, callers: int, pause: float, deadline: float) -> None:
        """Connect, and check from now on."""
        bus = bus_on(self._url, self._policies, deadline=deadline)
        bus = await self._stack.enter_async_context(bus)
        bus.observers.register(self._explain, on="policy:failed")
        await eventually(lambda: bus.peek(Call()), what="the store answers")

        async def call() -> None:
            while not self._over.is_set():
                began = time.monotonic()
                decision = await bus.check(Call())
                self._worst = max(self._worst, time.monotonic() - began)
                if decision.permit is not None:
                    self._admitted.append((decision.permit.id, time.time()))
                else:
                    self._denied[str(decision.reason)] += 1
                    if decision.reason == UNAVAILABLE:
                        self._unavailable.append(time.time())
                await asyncio.sleep(pause)

        self._callers = [asyncio.create_task(call()) for _ in range(callers)]

    def _explain(self, event: PolicyFailed) -> None:
        self._details[PORTS.sub("PORT", event.error)] += 1

    async def count(self) -> dict[str, int]:
        """Get how many were told what."""
        for caller in self._callers:
            if caller.done():
                caller.result()
        return {"admitted": len(self._admitted), **self._denied}

    async def stop(self) -> dict[str, Any]:
        """End the callers, and get what they were told."""
        self._over.set()
        # What a caller raised is no veto, and ends this process.
        await asyncio.gather(*self._callers)
        return {
            "admitted": self._admitted,
            "denied": self._denied,
            "unavailable": self._unavailable,
            "details": self._details,
            "worst": self._worst,
        }

    async def leave(self) -> None:
        """Let go of the connections."""
        await self._stack.aclose()


if __name__ == "__main__":
    arguments = told()
    asyncio.run(serve(Loader(*arguments)))
