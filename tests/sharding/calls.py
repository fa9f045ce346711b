"""What these tests ask for: tenants and models, each with limits of their own."""

from __future__ import annotations

from typing import Any

from stanchion import CircuitBreaker, Concurrency, Event, EventBus, Quota, RateLimit
from stanchion.store.keys import Keyspace
from stanchion.store.sharding import Sharding

NAMESPACE = "spread"
SHARDS = 16
BY = ("tenant", "model")
SPACE = Keyspace(NAMESPACE, Sharding(BY, SHARDS))


class Call(Event, type="shard:call"):
    tenant: str | None = "acme"
    model: str = "m1"
    tokens: int = 1


def rate(**fields: Any) -> RateLimit:
    declared = {"name": "calls", "on": Call, "by": "tenant", "limit": 1000, "per": "1h"}
    return RateLimit(**declared | fields)


def quota(**fields: Any) -> Quota:
    declared = {"name": "tokens", "on": Call, "by": "tenant", "limit": 10**6, "per": "3650d"}
    return Quota(**declared | {"cost": "tokens", "lease": "60s", "warn_at": ()} | fields)


def slots(**fields: Any) -> Concurrency:
    declared = {"name": "in-flight", "on": Call, "by": "model", "limit": 1000, "lease": "60s"}
    return Concurrency(**declared | fields)


def breaker(**fields: Any) -> CircuitBreaker:
    declared = {"name": "provider", "on": Call, "by": "model", "consecutive_failures": 3}
    return CircuitBreaker(**declared | fields)


def everyone(**fields: Any) -> RateLimit:
    """Counts for nobody in particular, and so is not spread."""
    return rate(**{"name": "everyone", "by": ()} | fields)


def chain() -> list[Any]:
    """Two policies of the tenant's shard, then two of the model's."""
    return [rate(), quota(), slots(), breaker()]


def spread_bus(url: str, policies: list[Any], **options: Any) -> EventBus:
    terms = {"namespace": NAMESPACE, "cache_denials": False, "shard_by": BY, "shards": SHARDS}
    return EventBus.from_url(url, policies=policies, **terms | options)


def shard_of(value: str) -> int:
    """Get the number of a value's shard, as the keys have it."""
    return SPACE.of(("tenant",), (value,)).shard


def in_shard(number: int, *, stem: str = "tenant") -> str:
    """Get a value whose shard is this one."""
    return next(name for n in range(10_000) if shard_of(name := f"{stem}-{n}") == number)


async def remaining(bus: EventBus, event: Call) -> dict[str, int | None]:
    """Get what each policy has left for an event."""
    return {verdict.policy: verdict.remaining for verdict in (await bus.peek(event)).verdicts}
