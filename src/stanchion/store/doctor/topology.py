"""What stands around the one server: the nodes of a cluster, or the sentinels that watch it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from stanchion.store.doctor.findings import Check, Finding, Status
from stanchion.store.doctor.server import pairs, text
from stanchion.store.tls import sentinel_options

if TYPE_CHECKING:
    from stanchion.store.doctor.server import Server
    from stanchion.store.urls import Target

_SLOTS: Final = 16384
_SENTINELS: Final = 3
_PATIENCE = 1.0  # seconds for one sentinel


async def cluster(server: Server, namespace: str) -> Finding:
    """Judge whether every slot has a node, and say which has the namespace's."""
    client, node = server.connections.client, server.node
    assert isinstance(client, RedisCluster)
    assert node is not None
    primaries, replicas = client.get_primaries(), client.get_replicas()
    found = (
        f"{len(primaries)} primaries, {len(replicas)} replicas; "
        f"namespace {namespace} is on {node.host}:{node.port}"
    )
    raw = await server.try_asking("CLUSTER", "INFO")
    told: dict[str, str] = {}
    if raw is not None:
        told = _lines(raw)
    state = told.get("cluster_state", "ok")
    served = int(told.get("cluster_slots_ok") or 0) if told else _SLOTS
    if state != "ok" or served < _SLOTS:
        found = f"state {state}, {served} of {_SLOTS} slots served; {found}"
        remedy = "redis-cli --cluster check, and fix; add a replica to each primary"
        return Finding(Check.CLUSTER, Status.ERROR, found, remedy)
    if not told:
        found = f"{found}; whether all slots are served is not known (CLUSTER INFO)"
        return Finding(Check.CLUSTER, Status.HINT, found, "ask as an operator")
    return Finding(Check.CLUSTER, Status.OK, f"all slots served; {found}")


@dataclass(frozen=True, slots=True)
class _Told:
    """What one sentinel says: of how many it knows, and where the primary is."""

    primary: tuple[str, str]
    sentinels: int
    quorum: int
    down: bool


async def sentinels(server: Server, target: Target) -> Finding:
    """Judge whether a failover could be agreed on, by asking every sentinel of the URL."""
    patience = min(_PATIENCE, server.left)
    asked = await asyncio.gather(
        *(_ask(host, port, target, patience) for host, port in target.hosts)
    )
    told = [one for one in asked if one is not None]
    silent = [
        f"{host}:{port}"
        for (host, port), one in zip(target.hosts, asked, strict=True)
        if one is None
    ]
    if not told:
        return _finding(Status.ERROR, f"none of {len(silent)} answers", "start them")
    known, quorum = max(one.sentinels for one in told), max(one.quorum for one in told)
    found = f"{len(told)} of {len(asked)} answer, {known} know {target.service}, quorum {quorum}"
    status, what, remedy = _judged(told, silent, known, quorum)
    return _finding(status, f"{found}{what}", remedy)


def _judged(
    told: list[_Told], silent: list[str], known: int, quorum: int
) -> tuple[Status, str, str]:
    if len(places := sorted({":".join(one.primary) for one in told})) > 1:
        what = f"; they do not agree who leads: {', '.join(places)}"
        return Status.ERROR, what, "see whether they reach each other"
    if any(one.down for one in told):
        remedy = "see whether they reach the primary"
        return Status.WARNING, "; one of them takes the primary for down", remedy
    what = f"; silent: {', '.join(silent)}" if silent else ""
    if len(told) < max(quorum, known // 2 + 1):
        return Status.ERROR, f"; that is too few to agree on a failover{what}", "start the others"
    if silent:
        return Status.WARNING, what, "start them"
    if known < _SENTINELS:
        remedy = "run three or more, on different machines"
        return Status.WARNING, "; if one fails, no failover can be agreed", remedy
    return Status.OK, "", ""


async def _ask(host: str, port: int, target: Target, patience: float) -> _Told | None:
    client = aioredis.Redis(
        host=host,
        port=port,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=patience,
        protocol=2,
        client_name="stanchion",
        **sentinel_options(target),
    )
    try:
        async with asyncio.timeout(patience):
            # Not by the client's own method, whose reply has another form in each version.
            raw = await cast("Any", client).execute_command("SENTINEL", "MASTER", target.service)
        told = pairs(raw)
        return _Told(
            (told["ip"], told["port"]),
            int(told["num-other-sentinels"]) + 1,
            int(told["quorum"]),
            "down" in told["flags"],
        )
    except (RedisError, OSError, TimeoutError, KeyError, ValueError):
        return None
    finally:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await client.aclose()


def _lines(raw: object) -> dict[str, str]:
    """Get a reply of lines as a mapping, which the client may have done already."""
    if isinstance(raw, dict):
        return pairs(cast("object", raw))
    return dict(line.split(":", 1) for line in text(raw).split() if ":" in line)


def _finding(status: Status, found: str, remedy: str = "") -> Finding:
    return Finding(Check.SENTINEL, status, found, remedy)
