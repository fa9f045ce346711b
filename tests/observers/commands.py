"""Runs `stanchion` in a process of its own, and waits for what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = (sys.executable, "-W", "error", "-m", "stanchion")


class Command:
    """A running command; what it writes grows in files."""

    def __init__(self, directory: Path, *arguments: str, stdout: int | None = None) -> None:
        number = len(list(directory.glob("out*")))
        self._out, self._err = directory / f"out{number}", directory / f"err{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                env={**os.environ, "NO_COLOR": "", "FORCE_COLOR": "", "TERM": "xterm"},
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def says(self, words: str, timeout: float = 10.0) -> None:
        """Wait until it has said this on standard error."""

        def said() -> bool:
            assert words in self.err or self.process.poll() is None, self.err
            return words in self.err

        eventually_sync(said, timeout, what=f"{words!r} in {self._err.name}")

    def signalled(self, number: signal.Signals) -> int:
        """Send a signal; the status with which it then ends."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self, timeout: float = 10.0) -> int:
        """Wait for its end; its status."""
        status = self.process.wait(timeout)
        assert "Traceback" not in self.err, self.err
        return status


@contextlib.contextmanager
def running(directory: Path, *arguments: str, stdout: int | None = None) -> Iterator[Command]:
    """Run a command; it is killed at the end if it has not ended by then."""
    command = Command(directory, *arguments, stdout=stdout)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()
