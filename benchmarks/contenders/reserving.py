"""Requests and tokens reserved together, settled with what was really used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from harness.measure import Contender

from contenders import floor
from stanchion import Event, EventBus, Quota, RateLimit, Vetoed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ESTIMATE, USED = 900, 640
PLENTY = 10**9  # requests a minute; of tokens a thousand times as many

Work = Callable[[], Awaitable[bool]]


class Call(Event, type="bench:reserving"):
    tokens: int


@asynccontextmanager
async def stanchion(url: str, callers: int, requests: int) -> AsyncIterator[Work]:
    del callers
    policies = [
        RateLimit(name="requests", on=Call, limit=requests, per="1m"),
        Quota(name="tokens", on=Call, limit=requests * 1000, per="1m", cost="tokens"),
    ]
    namespace = f"reserving-{requests}"
    async with EventBus.from_url(url, policies=policies, namespace=namespace, deadline=10) as bus:

        async def work() -> bool:
            try:
                async with bus.guard(Call(tokens=ESTIMATE)) as permit:
                    await asyncio.sleep(0)
                    permit.charge(tokens=USED)
            except Vetoed:
                return False
            return True

        yield work


@asynccontextmanager
async def token_throttle(url: str, callers: int, requests: int) -> AsyncIterator[Work]:
    import redis.asyncio
    from token_throttle import PerModelConfig, Quota, RateLimiter, RedisBackendBuilder, UsageQuotas

    quotas = UsageQuotas(
        [
            Quota(metric="requests", limit=requests, per_seconds=60),
            Quota(metric="tokens", limit=requests * 1000, per_seconds=60),
        ]
    )
    # A blocking pool with room to spare is what its documentation advises.
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=2 * callers + 16)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        backend = RedisBackendBuilder(client, key_prefix=f"reserving-{requests}")
        limiter = RateLimiter(PerModelConfig(quotas=quotas), backend=backend)
        usage = {"requests": 1, "tokens": ESTIMATE}
        # A lone request has to be refused to prove something; all others may wait their turn.
        patience = 0.2 if requests == 1 else 30.0

        async def work() -> bool:
            try:
                async with limiter.reserve(usage, model="m", timeout=patience) as handle:
                    await asyncio.sleep(0)
                    handle.set_actual_usage({"requests": 1, "tokens": USED})
            except TimeoutError:
                return False
            return True

        yield work
        await limiter.aclose()


@asynccontextmanager
async def bare(url: str, callers: int, requests: int) -> AsyncIterator[Work]:
    step = 60_000_000 / requests
    reserve = (str(step), str(requests), "1", str(step / 1000), str(requests * 1000), str(ESTIMATE))
    settle = (str(step / 1000), str(ESTIMATE - USED))
    keys = (f"bare:{requests}:requests", f"bare:{requests}:tokens")
    async with floor.scripted(url, callers, floor.RESERVE, floor.SETTLE) as run:

        async def work() -> bool:
            if not await run(0, 2, *keys, *reserve):
                return False
            await asyncio.sleep(0)
            await run(1, 1, keys[1], *settle)
            return True

        yield work


async def prove(
    opener: Callable[[str, int, int], AbstractAsyncContextManager[Work]], url: str
) -> None:
    """See that it limits: of two calls where one is allowed a minute, the second is refused."""
    async with opener(url, 2, 1) as work:
        first, second = await work(), await work()
        if not first or second:
            raise AssertionError(f"allowed {first} and {second} where one a minute may pass")


def contenders(url: str, callers: int) -> list[Contender]:
    rivals = (
        ("stanchion", stanchion, "stanchion"),
        ("token-throttle", token_throttle, "token-throttle"),
        ("bare EVALSHA", bare, "redis"),
    )
    return [
        Contender(
            name,
            partial(opener, url, callers, PLENTY),
            needs,
            prove=partial(prove, opener, url),
        )
        for name, opener, needs in rivals
    ]
