"""A look at how the server is set up, for what would undo limits without an error."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisClusterException, RedisError

if TYPE_CHECKING:
    from stanchion.store.clients import Connections

_log = logging.getLogger("stanchion.store")


async def warn_of_eviction(connections: Connections, key: str, *, patience: float) -> None:
    """Log a warning if the server that holds `key` may evict limits when its memory is full.

    A limit that is evicted starts anew, as if nothing had been used. A server that does not answer,
    or does not tell, is passed over: this is advice, and decides nothing.
    """
    try:
        async with asyncio.timeout(patience):
            memory = await connections.info("memory", key)
    except (RedisError, RedisClusterException, OSError) as error:
        _log.debug("the server's memory settings are not known: %s", type(error).__name__)
        return
    policy, limit = str(memory.get("maxmemory_policy", "")), int(memory.get("maxmemory", 0))
    if limit and policy not in {"", "noeviction"}:
        _log.warning(
            "Redis evicts keys when it has %d bytes (maxmemory-policy %s): a limit that is evicted "
            "starts anew, so set maxmemory-policy noeviction",
            limit,
            policy,
        )


async def warn_of_replicas(
    connections: Connections, key: str, copies: int, patience: float
) -> None:
    """Log a warning if the server that holds `key` has fewer replicas than quotas wait for.

    A server that does not answer, or does not tell, is passed over here as well.
    """
    try:
        async with asyncio.timeout(patience):
            told = await connections.info("replication", key)
    except (RedisError, RedisClusterException, OSError) as error:
        _log.debug("how many replicas there are is not known: %s", type(error).__name__)
        return
    if (there := int(told.get("connected_slaves", copies))) < copies:
        _log.warning(
            "Redis has %d replicas, and a quota waits for %d of them (replicas=%d): until they are "
            "there, what it guards is as while Redis cannot be asked",
            there,
            copies,
            copies,
        )
