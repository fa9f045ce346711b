"""A process that is denied, and tells when it no longer is; spoken to as the other workers are."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from stanchion import EventBus
from tests.contention.calls import CALLS, NAMESPACE, Call
from tests.contention.worker import serve, told


class Denied:
    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def warm(self) -> int:
        await self._bus.peek(Call())
        return os.getpid()

    async def ask(self, call: str, seconds: float) -> list[str | None]:
        """Ask every millisecond for so long; get the reasons."""
        ends, reasons = time.monotonic() + seconds, list[str | None]()
        while time.monotonic() < ends:
            reasons.append((await self._bus.check(CALLS[call]())).reason)
            await asyncio.sleep(0.001)
        return reasons

    async def until_admitted(self, call: str) -> float:
        """Ask until it is admitted; get when that was, by the machine's own clock."""
        ends = time.monotonic() + 20
        while not (await self._bus.check(CALLS[call]())).allowed:
            assert time.monotonic() < ends
            await asyncio.sleep(0.001)
        return time.monotonic()

    async def leave(self) -> None:
        pass


async def work(url: str, policies: list[Any]) -> None:
    async with EventBus.from_url(url, policies=policies, namespace=NAMESPACE) as bus:
        await serve(Denied(bus))


if __name__ == "__main__":
    asyncio.run(work(*told()))
