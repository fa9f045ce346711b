"""How a command that runs until it is told to stop is told: by signals, or by a closed pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stanchion.cli.output import Exit

if TYPE_CHECKING:
    from collections.abc import Generator


class Ending:
    """Set once there is a reason to end; `status` says which. A second signal ends at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.status = Exit.OK
        self._task: asyncio.Task[object] | None = None

    def end(self, status: Exit = Exit.OK) -> None:
        """Give a reason to end; the first one counts."""
        if not self.stop.is_set():
            self.status = status
            self.stop.set()

    def _interrupted(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            if self._task is not None:
                self.status = Exit.INTERRUPTED
                self._task.cancel()
            return
        self.end(Exit.INTERRUPTED if number is signal.SIGINT else Exit.OK)

    @contextmanager
    def listening(self) -> Generator[None]:
        """Listen to SIGINT and SIGTERM, and where standard output is a pipe, to its reader."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._interrupted, number)
        pipe = _pipe()
        if pipe is not None:
            # The end that is written to becomes readable when nobody reads the other any more.
            loop.add_reader(pipe, self._unheard, pipe)
        try:
            yield
        finally:
            if pipe is not None:
                loop.remove_reader(pipe)
            for number in numbers:
                loop.remove_signal_handler(number)

    def _unheard(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        hush()
        self.end()


def hush() -> None:
    """Send the rest of standard output nowhere: its reader has gone, and that is no mistake."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _pipe() -> int | None:
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None
