"""How late a loop was, and when: for what it lacked a processor no library can be blamed."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from tests.soak.journal import Line, now_us

if TYPE_CHECKING:
    from tests.soak.journal import Journal

TICK = 0.01
TICK_US = 10_000
#: Microseconds from which on it is written down.
STALL_US = 20_000


class Lateness:
    """Watches the loop that it runs on."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._due = now_us()
        self._seen: deque[tuple[int, int]] = deque(maxlen=4096)

    async def watch(self) -> None:
        while True:
            self._due = now_us() + TICK_US
            await asyncio.sleep(TICK)
            late = now_us() - self._due
            self._seen.append((now_us(), late))
            if late > STALL_US:
                self._journal.write(Line.STALL, self._due, late)

    def since(self, began: int) -> int:
        """Get for how many microseconds it was away since then, altogether."""
        late = max(0, now_us() - self._due)
        for at, late_us in reversed(self._seen):
            if at < began:
                break
            late += late_us if late_us > TICK_US // 2 else 0
        return late
