"""Connections for a target: no retries of their own, a bounded pool, and a timeout everywhere."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import redis.asyncio as aioredis
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from stanchion.errors import ConfigError
from stanchion.store.urls import Scheme, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Client = aioredis.Redis | RedisCluster
_POOL = 16


@dataclass(frozen=True, slots=True)
class Connections:
    """The client for commands, makers of more of the same, and how to let go.

    `again` makes connections to the same place for another event loop; they own no server.
    """

    client: Client
    subscriber: Callable[[], aioredis.Redis]
    again: Callable[[], Connections]
    release: Callable[[], Awaitable[None]]

    async def run(self, *command: str | bytes | int) -> Any:
        """Run one command, once; errors are the client's own."""
        client = cast("Any", self.client)
        return await client.execute_command(*command)

    async def drop(self) -> None:
        """Disconnect everything, so that the next call starts on fresh connections."""
        if isinstance(self.client, RedisCluster):
            await self.client.aclose()
        else:
            await self.client.connection_pool.disconnect(inuse_connections=True)

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob; on a cluster those of every primary."""
        client = cast("Any", self.client)
        async for key in client.scan_iter(match=pattern, count=500):
            yield key.decode()

    async def close(self) -> None:
        """Close the client and what was made for it."""
        await self.client.aclose()
        await self.release()


async def _nothing() -> None:
    return None


def _options(deadline: float) -> dict[str, Any]:
    return {
        # A lost reply must never be asked for again: the script may have charged already.
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": deadline,
        "socket_connect_timeout": deadline,
        "protocol": 2,
        "client_name": "stanchion",
    }


async def connect(target: Target, *, deadline: float) -> Connections:
    """Get connections for a target; they connect on first use, except that a server is started.

    Raises:
        ConfigError: the target's options are not ones that the client takes, or the embedded
            server cannot be started as asked.
        StoreUnavailable: the embedded server did not start in time.
    """
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
    server = server or FakeServer()

    def client() -> aioredis.Redis:
        return cast("aioredis.Redis", FakeAsyncRedis(server=server, protocol=2))

    return Connections(client(), client, lambda: _memory(server), _nothing)


def _single(
    url: str, deadline: float, release: Callable[[], Awaitable[None]] = _nothing
) -> Connections:
    def client(size: int) -> aioredis.Redis:
        try:
            pool = aioredis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
                url, max_connections=size, timeout=deadline, **_options(deadline)
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"url: the Redis client does not take it: {error}") from error
        return aioredis.Redis.from_pool(pool)

    return Connections(client(_POOL), lambda: client(2), lambda: _single(url, deadline), release)


async def _embedded(target: Target, deadline: float) -> Connections:
    from stanchion.store.embedded import start_embedded

    server = await start_embedded(target.directory, deadline=max(deadline, 10.0))
    return _single(f"unix://{quote(server.socket_path)}", deadline, server.close)


def _login(target: Target) -> dict[str, Any]:
    options: dict[str, Any] = dict(target.options)
    if options.get("ssl") is not None:
        options["ssl"] = options["ssl"].lower() in {"1", "true", "yes"}
    return {"username": target.username, "password": target.password, **options}


def _cluster(target: Target, deadline: float) -> Connections:
    login = _login(target)
    try:
        client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
            max_connections=_POOL,
            **login,
            **_options(deadline),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"url: the Redis client does not take it: {error}") from error

    def subscriber() -> aioredis.Redis:
        # Classic pub/sub reaches every node of a cluster, so any known node will do.
        node = client.get_default_node() or ClusterNode(*target.hosts[0])
        options = {**_options(deadline), **login}
        if options.pop("ssl", False):
            options["connection_class"] = aioredis.SSLConnection
        pool = aioredis.BlockingConnectionPool(
            host=node.host, port=int(node.port), max_connections=2, timeout=deadline, **options
        )
        return aioredis.Redis.from_pool(pool)

    return Connections(client, subscriber, lambda: _cluster(target, deadline), _nothing)


def _sentinel(target: Target, deadline: float) -> Connections:
    login = _login(target)
    sentinel = Sentinel(
        list(target.hosts),
        sentinel_kwargs={**_options(deadline), "username": None, "password": None},
        db=target.database,
        **login,
        **_options(deadline),
    )

    def client() -> aioredis.Redis:
        return sentinel.master_for(  # pyright: ignore[reportUnknownMemberType]
            target.service, connection_pool_class=SentinelConnectionPool
        )

    async def release() -> None:
        for node in sentinel.sentinels:
            with contextlib.suppress(OSError):
                await node.aclose()

    return Connections(client(), client, lambda: _sentinel(target, deadline), release)
