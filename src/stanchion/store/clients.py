"""Connections for a target: no retries of their own, a bounded pool, and a timeout everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, urlsplit

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.exceptions import TimeoutError as ClientTimeout

from stanchion.errors import ConfigError
from stanchion.store.cluster import ClusterClient
from stanchion.store.keys import tag_of
from stanchion.store.tls import client_options, sentinel_options, try_files
from stanchion.store.urls import Scheme, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from fakeredis import FakeServer

    from stanchion.store.lane import Dialled

Client = aioredis.Redis | ClusterClient
_POOL = 16
# The share of a call's deadline for which it is offered to nodes that do not run it, so that there
# is time left to say why.
_OFFERED = 0.75
# What a URL must not change: how often a call is sent, how long it waits, how replies are read.
_OURS = {
    *("retry", "retry_on_error", "retry_on_timeout", "socket_timeout", "timeout"),
    *("max_connections", "protocol", "decode_responses", "encoding", "encoding_errors"),
}


@dataclass(frozen=True, slots=True)
class Connections:
    """The client for commands, makers of more of the same, and how to let go.

    `again` makes connections to the same place for another event loop; they own no server. `wired`
    says that there is a network between, and `replicated` that another server may come to take its
    place.
    """

    client: Client
    subscriber: Callable[[], aioredis.Redis]
    again: Callable[[], Connections]
    release: Callable[[], Awaitable[None]]
    wired: bool = True
    replicated: bool = True

    @property
    def dial(self) -> Callable[[], Dialled] | None:
        """What makes a connection for a lane; None where calls go through the client alone.

        On a cluster the client finds the node; in memory there is no connection.
        """
        if isinstance(self.client, ClusterClient) or not self.wired:
            return None
        return cast("Callable[[], Dialled]", self.client.connection_pool.make_connection)

    def node_of(self, key: str) -> str:
        """Get the name of the node that has a key, as far as is known; "" where there is one."""
        if not key or not isinstance(self.client, ClusterClient):
            return ""
        try:
            node = self.client.get_node_from_key(key)
        except RedisClusterException:
            # The layout is not known yet, or the slot is nobody's.
            return ""
        return "" if node is None else node.name

    async def run(self, *command: str | bytes | int) -> Any:
        """Run one command, once; errors are the client's own."""
        client = cast("Any", self.client)
        if command[0] == "PUBLISH" and isinstance(self.client, ClusterClient):
            # Any node would do, so let it be the one without which nothing else works either.
            node = await self._owner(self.client, str(command[1]))
            return await client.execute_command(*command, target_nodes=node)
        return await client.execute_command(*command)

    async def drop(self) -> None:
        """Have the next call start on a fresh connection, and find its server anew."""
        if isinstance(self.client, ClusterClient):
            self.client.relearn()
        else:
            await self.client.connection_pool.disconnect(inuse_connections=True)

    async def info(self, section: str, key: str) -> Mapping[str, Any]:
        """Get a section of INFO from the server that holds a key."""
        client = cast("Any", self.client)
        if isinstance(self.client, ClusterClient):
            node = await self._owner(self.client, key)
            return await client.execute_command("INFO", section, target_nodes=node)
        return await client.execute_command("INFO", section)

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob, whose hash tag may be a glob as well."""
        options: list[dict[str, Any]] = [{}]
        if isinstance(self.client, ClusterClient):
            options = [{"target_nodes": node} for node in await self._holders(self.client, pattern)]
        client = cast("Any", self.client)
        for where in options:
            async for key in client.scan_iter(match=pattern, count=500, **where):
                # Names of ours are ASCII; of others nothing is known, not even that they are text.
                if key.isascii():
                    yield key.decode("ascii")

    @classmethod
    async def _holders(cls, client: ClusterClient, pattern: str) -> list[ClusterNode | None]:
        """Get the nodes that may hold keys of a glob."""
        if "*" in tag_of(pattern):
            await client.initialize()
            return [*client.get_primaries()]
        return [await cls._owner(client, pattern)]

    @staticmethod
    async def _owner(client: ClusterClient, key: str) -> ClusterNode | None:
        await client.initialize()
        return client.get_node_from_key(key)

    async def close(self) -> None:
        """Close the client and what was made for it."""
        try:
            await self.client.aclose()
        finally:
            # Also when the server is too slow to say goodbye to.
            await self.release()


async def _nothing() -> None:
    return None


def _options(deadline: float) -> dict[str, Any]:
    return {
        # A lost reply must never be asked for again: the script may have charged already.
        "retry": Retry(NoBackoff(), 0),
        # Every call has a deadline of its own. With one of the client's, each write would be a
        # task more, under a wait_for that loses cancellations on Python 3.11.
        "socket_timeout": None,
        "socket_connect_timeout": deadline,
        "protocol": 2,
        "decode_responses": False,
        "client_name": "stanchion",
    }


def _refused(error: Exception) -> ConfigError:
    return ConfigError(f"url: the Redis client does not take it: {error}")


async def connect(target: Target, *, deadline: float) -> Connections:
    """Get connections for a target; they connect on first use, except that a server is started.

    Raises:
        ConfigError: the target's options are not ones that the client takes, or the embedded
            server cannot be started as asked.
        StoreUnavailable: the embedded server did not start in time.
    """
    asked = {name for name, _ in parse_qsl(urlsplit(target.url).query)}
    if clash := sorted(asked & _OURS):
        raise ConfigError(f"url: option {clash[0]} is not for the URL to set")
    if target.tls:
        try_files(target)
    if target.scheme is Scheme.MEMORY:
        return _memory()
    if target.scheme is Scheme.EMBEDDED:
        return await _embedded(target, deadline)
    if target.scheme is Scheme.CLUSTER:
        return _cluster(target, deadline)
    if target.scheme is Scheme.SENTINEL:
        return _sentinel(target, deadline)
    return _single(target.url, deadline)


def _memory(server: FakeServer | None = None) -> Connections:
    # With its Lua it takes as long to import as the rest of this library; most buses need neither.
    from fakeredis import FakeAsyncRedis, FakeServer

    server = server or FakeServer()

    def client() -> aioredis.Redis:
        return cast("aioredis.Redis", FakeAsyncRedis(server=server, protocol=2))

    def again() -> Connections:
        return _memory(server)

    return Connections(client(), client, again, _nothing, wired=False, replicated=False)


def _single(
    url: str,
    deadline: float,
    release: Callable[[], Awaitable[None]] = _nothing,
    *,
    replicated: bool = True,
) -> Connections:
    def client(size: int) -> aioredis.Redis:
        try:
            pool = aioredis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
                url, max_connections=size, timeout=deadline, **_options(deadline)
            )
            # Options that it does not know show only when a connection is made.
            pool.make_connection()
        except (ValueError, TypeError) as error:
            raise _refused(error) from error
        return aioredis.Redis.from_pool(pool)

    def again() -> Connections:
        return _single(url, deadline, replicated=replicated)

    return Connections(client(_POOL), lambda: client(2), again, release, replicated=replicated)


async def _embedded(target: Target, deadline: float) -> Connections:
    from stanchion.store.embedded import start_embedded

    server = await start_embedded(target.directory, deadline=max(deadline, 10.0))
    url = f"unix://{quote(server.socket_path)}"
    return _single(url, deadline, server.close, replicated=False)


def _login(target: Target, *, tls: bool) -> dict[str, Any]:
    # A login may stand among the options as well.
    login = {"username": target.username, "password": target.password}
    options = login | client_options(target)
    return options | {"ssl": True} if tls else options


def _cluster(target: Target, deadline: float) -> Connections:
    login = _login(target, tls=target.tls)
    try:
        client = ClusterClient(
            startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
            # One node may have to take what was on its way to another.
            max_connections=2 * _POOL,
            **login,
            **_options(deadline),
        )
    except (TypeError, ValueError) as error:
        raise _refused(error) from error
    client.patience = _OFFERED * deadline

    def subscriber() -> aioredis.Redis:
        # Classic pub/sub reaches every node of a cluster; one that does not answer is drawn again.
        known = [(node.host, int(node.port)) for node in client.get_nodes()]
        host, port = random.choice(known or target.hosts)  # noqa: S311 - no secret
        options = {**_options(deadline), **login}
        if options.pop("ssl", False):
            options["connection_class"] = aioredis.SSLConnection
        pool = aioredis.BlockingConnectionPool(
            host=host, port=port, max_connections=2, timeout=deadline, **options
        )
        return aioredis.Redis.from_pool(pool)

    return Connections(client, subscriber, lambda: _cluster(target, deadline), _nothing)


class _Witness(aioredis.Redis):
    """A sentinel that is given up on while there is still time to ask the others."""

    patience = 1.0
    #: Why it gave no answer when it was last asked.
    silent = ""

    async def sentinel_masters(self) -> Any:
        self.silent = ""
        try:
            async with asyncio.timeout(self.patience):
                return await super().sentinel_masters()
        except TimeoutError as error:
            self.silent = "no answer"
            raise ClientTimeout("a sentinel does not answer") from error
        except RedisError as error:
            self.silent = str(error).split("\n", 1)[0]
            raise


class _Witnesses(Sentinel):
    """Sentinels that are all asked, however many ask at a time.

    The client's own puts the one that answered first while others walk the same list, and so some
    of them are lost from it for good, with their connections.
    """

    async def discover_master(self, service_name: str) -> Any:
        asked = copy.copy(self)
        asked.sentinels = list(self.sentinels)
        try:
            address = await cast("Any", Sentinel).discover_master(asked, service_name)
        except MasterNotFoundError:
            # Its own text shows the clients, with all that they were made with.
            text = f"no sentinel that answers knows a primary for {service_name!r}"
            witnesses = cast("list[_Witness]", asked.sentinels)
            why = "; ".join(dict.fromkeys(one.silent for one in witnesses if one.silent))
            raise MasterNotFoundError(f"{text} ({why})" if why else text) from None
        first = asked.sentinels[0]
        self.sentinels = [first, *(one for one in self.sentinels if one is not first)]
        return address


def _sentinel(target: Target, deadline: float) -> Connections:
    login = _login(target, tls=target.tls)
    sentinel = _Witnesses([], db=target.database, **{**_options(deadline), **login})
    tls = sentinel_options(target)
    witnesses: list[aioredis.Redis] = []
    for host, port in target.hosts:
        try:
            witness = _Witness(host=host, port=port, **_options(deadline), **tls)
        except TypeError as error:
            raise _refused(error) from error
        witness.patience = deadline / (len(target.hosts) + 1)
        witnesses.append(witness)
    sentinel.sentinels = list(witnesses)

    def client() -> aioredis.Redis:
        made: aioredis.Redis = sentinel.master_for(  # pyright: ignore[reportUnknownMemberType]
            target.service, connection_pool_class=SentinelConnectionPool
        )
        try:
            made.connection_pool.make_connection()
        except (ValueError, TypeError) as error:
            raise _refused(error) from error
        return made

    async def release() -> None:
        for witness in witnesses:
            with contextlib.suppress(OSError, RedisError):
                await witness.aclose()

    return Connections(client(), client, lambda: _sentinel(target, deadline), release)
