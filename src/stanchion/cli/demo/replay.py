"""Recorded calls, made when they are due; each is asked for once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stanchion import Vetoed
from stanchion.cli.demo.calls import ProviderFailed, Stopped
from stanchion.cli.demo.plan import MODEL, TENANTS
from stanchion.events import LLMPromptSent

if TYPE_CHECKING:
    from stanchion.cli.demo.calls import Caller
    from stanchion.cli.demo.plan import Call


class Replay:
    """Makes each call at its time, whether or not earlier ones have ended.

    `largest` is what every answer is reserved with. `latest_us` is how far behind its time, at
    worst, a call was begun.
    """

    def __init__(self, caller: Caller, calls: tuple[Call, ...], *, largest: int) -> None:
        self._caller = caller
        self._calls = calls
        self._largest = largest
        self.latest_us = 0

    async def run(self) -> None:
        """Make all calls, or those that are due before the run is stopped."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, call in enumerate(self._calls):
                ahead = began + call.due - loop.time()
                try:
                    if ahead > 0:
                        await self._caller.pause(ahead)
                    self._caller.check_running()
                except Stopped:
                    # Not out of the group: that would cancel what is in flight.
                    return
                self.latest_us = max(self.latest_us, round(-ahead * 1e6))
                group.create_task(self._make(call, number))

    async def _make(self, call: Call, number: int) -> None:
        prompt = LLMPromptSent(
            pipeline="trace",
            node=str(number),
            tenant=TENANTS[0],
            model=MODEL,
            tokens=call.prompt + self._largest,
            prompt_tokens=call.prompt,
            max_tokens=self._largest,
        )
        try:
            await self._caller.chat(prompt, generate=call.generated)
        except (Vetoed, ProviderFailed, Stopped):
            # As it was recorded, so it is asked: what is refused or fails is not tried again.
            return
        self._caller.counts.runs += 1
