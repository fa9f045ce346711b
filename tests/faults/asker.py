"""A process that asks without a pause while its server goes away and comes back empty."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from stanchion import EventBus
from stanchion.events import StateLost
from stanchion.observers import Recorder
from tests.contention.calls import micros
from tests.contention.worker import serve, told
from tests.faults.calls import NAMESPACE, Call
from tests.waiting import eventually

PATIENCE = 20.0


class Asker:
    """One such process. Moments are the server's, in microseconds."""

    def __init__(self, bus: EventBus, recorder: Recorder) -> None:
        self._bus = bus
        self._recorder = recorder
        self._asking: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._admitted: list[int] = []

    async def warm(self) -> int:
        """Know the server and what it keeps."""
        await self._bus._parts.epochs.looked()
        return os.getpid()

    async def press(self) -> bool:
        """Ask in the background from now on."""
        self._asking = asyncio.create_task(self._ask())
        await eventually(lambda: self._admitted, PATIENCE)
        return True

    async def _ask(self) -> None:
        while not self._over.is_set():
            decision = await self._bus.check(Call())
            if decision.decided_at is not None and decision.allowed:
                self._admitted.append(micros(decision.decided_at))
            await asyncio.sleep(0.002)

    async def served_since(self, moment: int) -> bool:
        """Wait until something was admitted after a moment."""
        await eventually(lambda: self._admitted[-1] > moment, PATIENCE)
        return True

    async def answer(self) -> dict[str, Any]:
        """Stop asking; tell what was admitted when, and of which losses was heard."""
        await eventually(lambda: self._recorder.of(StateLost), PATIENCE, what="the loss is told")
        self._over.set()
        assert self._asking is not None
        await self._asking
        losses = [event.id for event in self._recorder.of(StateLost)]
        return {"admitted": self._admitted, "losses": losses}

    async def leave(self) -> None:
        """Have nothing to leave."""


async def work(url: str, policies: list[Any]) -> None:
    recorder = Recorder()
    bus = EventBus.from_url(
        url,
        policies=policies,
        observers=[recorder],
        namespace=NAMESPACE,
        deadline=1,
        cache_denials=False,
    )
    async with bus:
        await serve(Asker(bus, recorder))


if __name__ == "__main__":
    asyncio.run(work(*told()))
