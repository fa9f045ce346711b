"""Server programs of wheels and of npm: started on a free port, gone with the session."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import START_DEADLINE, Reaper, free_port
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Sequence


class Daemon(ABC):
    """One server process; its port and its directory stay the same when it is started again."""

    host = "127.0.0.1"

    def __init__(self, reaper: Reaper) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="stanchion-test-"))
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]: ...

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, stdout=log, stderr=log
            )
        self._reaper.watch(self._process.pid, self.directory)
        name = type(self).__name__
        eventually_sync(
            lambda: self._accepts() or not self._alive(), START_DEADLINE, what=f"{name} answers"
        )
        if not self._alive():
            pytest.fail(f"{name} did not start:\n{self.log[-2000:]}")

    def refresh(self) -> None:
        """Start it again if a test has ended it; what it stores is told apart by name."""
        self.resume()
        if not self._alive():
            self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and never answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None and self._alive():
            self._process.kill()
            self._process.wait()
            self._reaper.forget(self._process.pid)

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _accepts(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False
