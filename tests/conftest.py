"""Fixtures that every test may use: real servers, and the checks that run around each test.

`store_url`   every kind of store, by URL: fakeredis and each real server of the matrix
`server`      each real server of the matrix, as a `RealServer`
`valkey`      one real server, where the kind does not matter
`unix_server`, `tls_server`, `cluster`, `sentinel`   servers that are reached in other ways

`open_bus`    opens buses on each kind of store, and closes them
`open_shared` opens buses that share one of the real servers; `open_valkey`, those on one kind only

`fault_record` writes down what a fault did, for the table of faults: see `tests/faults/report.py`

A server is started when a test first asks for it and lives for the session; before each test that
uses it, it is made as good as new: empty, no scripts, no users, counters at zero.
"""

from __future__ import annotations

import inspect
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pytest

from tests import leaks
from tests.busses import Buses
from tests.servers import REAL, RealServer, Reaper
from tests.topologies import Cluster, SentinelGroup, TLSServer, UnixServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytest_plugins = ["tests.faults.report"]


class Lendable(Protocol):
    """A server, or several that belong together."""

    def start(self) -> None: ...

    def refresh(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Lendable)


class Pool:
    """The servers of the session, each started on demand, and those that the current test uses."""

    def __init__(self) -> None:
        self.reaper = Reaper()
        self.watch = leaks.ProcessWatch()
        self.lent: list[RealServer] = []
        self._started: dict[str, Lendable] = {}

    def lend(self, key: str, make: Callable[[], S]) -> S:
        """Get a server as good as new."""
        if key in self._started:
            lendable = cast("S", self._started[key])
            lendable.refresh()
        else:
            lendable = make()
            self._started[key] = lendable
            lendable.start()
        return lendable

    def server(self, program: str) -> RealServer:
        """Get one of the matrix."""
        server = self.lend(program, lambda: RealServer(program, self.reaper))
        self.lent.append(server)
        return server

    def close(self) -> None:
        """End every server."""
        for lendable in self._started.values():
            lendable.stop()
        self.reaper.close()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


# ---- servers


@pytest.fixture(params=["fakeredis", *REAL])
def store_url(request: pytest.FixtureRequest, pool: Pool) -> str:
    """A URL for each kind of store; the store behind it is empty."""
    return "memory://" if request.param == "fakeredis" else pool.server(request.param).url


@pytest.fixture(params=REAL)
def server(request: pytest.FixtureRequest, pool: Pool) -> RealServer:
    """Each real server of the matrix."""
    return pool.server(request.param)


@pytest.fixture
def valkey(pool: Pool) -> RealServer:
    """One real server, where the kind does not matter."""
    return pool.server("valkey9")


@pytest.fixture
def unix_server(pool: Pool) -> UnixServer:
    """A Valkey that listens on a unix socket only."""
    server = pool.lend("unix", lambda: UnixServer("valkey9", pool.reaper))
    pool.lent.append(server)
    return server


@pytest.fixture
def tls_server(pool: Pool) -> TLSServer:
    """A Redis 7 that speaks TLS only: of the three, Debian's alone is built with it."""
    server = pool.lend("tls", lambda: TLSServer("redis7", pool.reaper))
    pool.lent.append(server)
    return server


@pytest.fixture
def cluster(pool: Pool) -> Cluster:
    """Three Valkey primaries, a third of the slots each."""
    cluster = pool.lend("cluster", lambda: Cluster("valkey9", pool.reaper))
    pool.lent.extend(cluster.nodes)
    return cluster


@pytest.fixture
def sentinel(pool: Pool) -> SentinelGroup:
    """A Valkey primary with its replica, and three sentinels that watch them."""
    group = pool.lend("sentinel", lambda: SentinelGroup("valkey9", pool.reaper))
    pool.lent.extend(group.data)
    return group


# ---- buses, over `store_url`


@pytest.fixture
async def open_bus(store_url: str) -> AsyncIterator[Buses]:
    """Opens buses on each kind of store: `bus = await open_bus(policy, ...)`."""
    async with AsyncExitStack() as stack:
        yield Buses(store_url, stack)


@pytest.fixture
async def open_shared(server: RealServer) -> AsyncIterator[Buses]:
    """Opens buses that share a store, as if in several processes: each real server."""
    async with AsyncExitStack() as stack:
        yield Buses(server.url, stack)


@pytest.fixture
async def open_valkey(valkey: RealServer) -> AsyncIterator[Buses]:
    """Opens buses that share a store, where the kind of server does not matter."""
    async with AsyncExitStack() as stack:
        yield Buses(valkey.url, stack)


# ---- what no test may leave behind


@pytest.fixture
async def _no_leaked_tasks() -> AsyncIterator[None]:
    yield
    left = await leaks.tasks_left()
    assert not left, f"tasks that the test left running: {left}"


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest, pool: Pool) -> Iterator[None]:
    """Fail the test that leaves a process, a connection, a task, or a key that never expires."""
    pool.lent = []
    function: Any = cast("pytest.Function", request.node).obj
    if inspect.iscoroutinefunction(function):
        # First of all fixtures, hence the last to end: after those that the test asked for.
        request.getfixturevalue("_no_leaked_tasks")
    yield
    problems: list[str] = []
    for server in pool.lent:
        if server.paused:
            server.resume()
        if server.alive:
            if left := leaks.connections_left(server):
                problems.append(f"connections to {server.name}: {left}")
            if keys := leaks.immortal_keys(server):
                problems.append(f"keys of {server.name} that never expire: {keys}")
    # Of the session, not of the test.
    allowed = {*pool.reaper.pids, pool.reaper.pid}
    if processes := pool.watch.left(allowed):
        problems.append(f"processes: {processes}")
    assert not problems, "the test left behind " + "; ".join(problems)
