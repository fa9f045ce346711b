"""When an observer may be called: at once while it works, one probe at a time when it does not."""

from __future__ import annotations

import asyncio
import math
import random
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from stanchion.observers.retry import Quarantine

# A receiver that asks for more has made a mistake, which shall not silence an observer for good.
_LONGEST_ASKED: Final = 3600.0  # seconds


class Gate:
    """Counts failed calls in a row, and holds back those who want to call; the loop's alone."""

    def __init__(self, quarantine: Quarantine | None) -> None:
        self._terms = quarantine
        self._failures = 0
        self._turn = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._probe_at = 0.0  # on the monotonic clock, as the next one
        self._asked_until = 0.0
        self.quarantined = False

    @property
    def shut(self) -> bool:
        """Whether a call has to go through `enter`."""
        return self.quarantined or (self._asked_until > 0 and self._asked_until > monotonic())

    @property
    def asked(self) -> float:
        """For how many seconds the receiver still wants to be left alone."""
        return max(0.0, self._asked_until - monotonic())

    @property
    def hurried(self) -> bool:
        """Whether there is no time left to wait for an observer to recover."""
        return self._hurry.is_set()

    async def enter(self) -> None:
        """Wait for one's turn and until the observer may be called; `leave` after the call."""
        await self._turn.acquire()
        try:
            await self.wait()
        except BaseException:
            self._turn.release()
            raise

    async def wait(self) -> None:
        """Wait until the observer may be called, for one who has entered already."""
        while (pause := self._pause()) > 0:
            await self.rest(pause)

    def leave(self) -> None:
        """Let the next one have its turn."""
        self._turn.release()

    async def rest(self, pause: float) -> None:
        """Sleep so long, or until there is no time left for that."""
        if self.hurried:
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(pause):
                await self._hurry.wait()
        except TimeoutError:
            return

    def hurry(self) -> None:
        """Probe at once from now on; what a receiver asked for is still kept."""
        self._hurry.set()

    def leave_alone(self, pause: float | None) -> float:
        """Make no call before the end of a pause that the receiver asked for; how long that is."""
        if pause is None or not 0 < pause < math.inf:
            return 0.0
        pause = min(pause, _LONGEST_ASKED)
        self._asked_until = max(self._asked_until, monotonic() + pause)
        return pause

    def succeeded(self) -> bool:
        """Note a call that worked; True when that ends a quarantine."""
        self._failures = 0
        ended, self.quarantined = self.quarantined, False
        return ended

    def failed(self) -> bool:
        """Note a call that did not work; True when that begins a quarantine."""
        self._failures += 1
        terms = self._terms
        if terms is None or self._failures < terms.after:
            return False
        began, self.quarantined = not self.quarantined, True
        longest = cast("float", terms.longest)
        doubled = min(self._failures - terms.after, 30)
        pause = min(longest, cast("float", terms.pause) * 2**doubled)
        # Spread out, or all workers would probe what they share at the same moment.
        self._probe_at = monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return began

    def _pause(self) -> float:
        until = self._asked_until
        if self.quarantined and not self.hurried:
            until = max(until, self._probe_at)
        return until - monotonic()
