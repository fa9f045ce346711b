"""The calls into one observer that are under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from stanchion.observers.containment import Containment

if TYPE_CHECKING:
    from contextvars import Context

    from stanchion.observers.target import Step
    from stanchion.observers.threads import Threads

_NUDGE: Final = 0.05  # seconds

Call = asyncio.Future[BaseException | None]


class Calls:
    """Begins calls, and knows those that have not ended yet."""

    def __init__(self, name: str, threads: Threads) -> None:
        self._name = name
        self._threads = threads
        self._open: set[Call] = set()

    def begin(self, step: Step, context: Context, *args: object) -> Call:
        """Get a future of what the call raises, None if nothing."""
        call = step.begin(self._threads, context, self._name, *args)
        self._open.add(call)
        call.add_done_callback(self._open.discard)
        return call

    async def abandon(self, until: float) -> int:
        """Cancel what runs, again and again until `until` (loop time); how many run on.

        A task may catch its cancellation and a thread cannot be cancelled at all.
        """
        loop = asyncio.get_running_loop()
        while tasks := [call for call in self._open if isinstance(call, asyncio.Task)]:
            for task in tasks:
                task.cancel()
            # The first time at least one turn of the loop, however late it is.
            await asyncio.wait(tasks, timeout=_NUDGE)
            if loop.time() >= until:
                break
        return sum(not call.done() for call in self._open)


async def ended(call: Call, timeout: float | None) -> bool:
    """Wait for the end of a call without cancelling it; False when the time is up."""
    await asyncio.wait((call,), timeout=timeout)
    return call.done()


def error_of(call: Call) -> BaseException | None:
    """Get what an ended call raised."""
    with Containment() as held:
        return call.result()
    return held.error
