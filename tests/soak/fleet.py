"""The workers and the relay, from the parent's side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.rights import url_of
from tests.soak.journal import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Reaper

PATIENCE = 20.0


def spawn(module: str, errors: Path) -> subprocess.Popen[str]:
    # The packages may be on this process's path only.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    with errors.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            text=True,
            start_new_session=True,
        )


class Relay:
    """The proxies, one in front of the server for each worker."""

    def __init__(self, port: int, count: int, directory: Path, reaper: Reaper) -> None:
        self._process = spawn("tests.soak.relay", directory / "relay.err")
        self._reaper = reaper
        reaper.watch(self._process.pid, directory)
        journal = directory / "relay.journal"
        self.reader = Reader(journal)
        self._tell([port, count, str(journal)])
        assert self._process.stdout is not None
        self.ports: list[int] = json.loads(self._process.stdout.readline())

    def _tell(self, what: list[Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def spoil(self, number: int, deed: str, argument: Any = None) -> None:
        self._tell([number, deed, argument])

    def close(self) -> None:
        end(self._process)
        self._reaper.forget(self._process.pid)


class Worker:
    """One worker process; a place in the fleet has several of them, one after the other."""

    def __init__(
        self,
        name: str,
        place: int,
        port: int,
        directory: Path,
        reaper: Reaper,
        *,
        seed: int,
        players: int,
        pause: float,
    ) -> None:
        self.name, self.place = name, place
        self.errors = directory / f"{name}.err"
        self._reaper = reaper
        self.process = spawn("tests.soak.worker", self.errors)
        reaper.watch(self.process.pid, directory)
        journal = directory / f"{name}.journal"
        self.reader = Reader(journal)
        self.killed = False
        told = {
            "url": url_of("worker", f"redis://127.0.0.1:{port}/0"),
            "journal": str(journal),
            "seed": seed,
            "players": players,
            "pause": pause,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.killed = True
        self.process.kill()
        self.process.wait()
        self._closed()

    def tell_to_finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> int:
        """Have it finish; get how it ended."""
        with suppress(BrokenPipeError):
            end(self.process)
        self._closed()
        return self.process.returncode

    def _closed(self) -> None:
        self._reaper.forget(self.process.pid)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
