"""Ctrl-C, once to end the run and see its summary, twice to leave at once."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns signals into an orderly end; for use in the task that is to be ended.

    Until `graceful` is set, and from the second signal on, the task is cancelled.
    """

    def __init__(self) -> None:
        self.graceful = False
        self.asked = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            if self.asked.is_set():
                # The process is about to end by itself, with a status that says so.
                signal.signal(number, signal.SIG_IGN)

    async def enter(self) -> None:
        """Wait for Enter, where there is a terminal to press it on, or for a signal."""
        self.asked.clear()
        loop = asyncio.get_running_loop()
        terminal = sys.stdin.isatty()
        if terminal:
            loop.add_reader(sys.stdin, self.asked.set)
        try:
            await self.asked.wait()
        finally:
            if terminal:
                loop.remove_reader(sys.stdin)

    def _arrived(self) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        if first and self.graceful:
            return
        if self._task is not None:
            # Once: a further one would break off the cleaning up.
            self._task.cancel()
            self._task = None
