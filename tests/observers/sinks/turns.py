"""How long a loop is kept from its other work."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def longest_turn(work: Awaitable[object]) -> float:
    """Get the longest turn of the loop while something is awaited, in seconds of its thread.

    What the thread has computed counts, not what the clock says: a busy machine changes nothing.
    """
    running = asyncio.ensure_future(work)
    longest, before = 0.0, time.thread_time()
    while not running.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    await running
    return longest
