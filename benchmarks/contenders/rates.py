"""Rate limits: stanchion, limits, throttled-py, pyrate-limiter, and the floor.

Each is used as its own documentation says, with as many connections as it may want, and with the
cheapest algorithm that it has: GCRA, except limits, whose fixed window is its fastest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from harness.measure import Contender

from contenders import floor, pipelined
from stanchion import Event, EventBus, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

#: Far above what any machine asks for, so that every measured decision is an admission.
PLENTY = 1_000_000
HOUR = 3600
BY_HAND = "bare pipeline"

Ask = Callable[[str], Awaitable[bool]]
Opener = Callable[..., AbstractAsyncContextManager[Ask]]


class Call(Event, type="bench:call"):
    subject: str


@asynccontextmanager
async def stanchion(
    url: str,
    callers: int,
    limit: int,
    seconds: int,
    limits: int = 1,
    *,
    prefetch: int = 0,
    cache_denials: bool = True,
) -> AsyncIterator[Ask]:
    del callers  # it has its own connections, and calls share them
    policies = [
        RateLimit(
            name=f"r{n}",
            on=Call,
            by="subject",
            limit=limit * (n + 1),
            per=seconds * (n + 1),
            prefetch=prefetch,
        )
        for n in range(limits)
    ]
    async with EventBus.from_url(
        url, policies=policies, deadline=10, cache_denials=cache_denials
    ) as bus:

        async def ask(subject: str) -> bool:
            return (await bus.check(Call(subject=subject))).allowed

        yield ask


@asynccontextmanager
async def limits(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[Ask]:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import FixedWindowRateLimiter

    storage = RedisStorage(f"async+{url}", max_connections=2 * callers)
    limiter = FixedWindowRateLimiter(storage)
    item = RateLimitItemPerSecond(limit, seconds)

    async def ask(subject: str) -> bool:
        return await limiter.hit(item, subject)

    yield ask
    client: Any = storage.bridge
    client.storage.connection_pool.disconnect()


@asynccontextmanager
async def throttled(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[Ask]:
    from datetime import timedelta

    from throttled.asyncio import RateLimiterType, RedisStore, Throttled, per_duration

    options = {"CONNECTION_POOL_KWARGS": {"max_connections": 2 * callers}}
    store = RedisStore(server=url, options=options)
    limiter = Throttled(
        using=RateLimiterType.GCRA.value,
        quota=per_duration(timedelta(seconds=seconds), limit, burst=limit),
        store=store,
    )

    async def ask(subject: str) -> bool:
        return not (await limiter.limit(subject)).limited

    yield ask
    client: Any = store._backend.get_client()  # noqa: SLF001 - it has no way of its own to close
    await client.aclose()


@asynccontextmanager
async def pyrate(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[Ask]:
    import redis.asyncio
    from pyrate_limiter import Limiter, Rate, RedisStateStore, StateBucket

    async with redis.asyncio.Redis.from_url(url, max_connections=2 * callers) as client:
        limiters: dict[str, Limiter] = {}

        def limiter(subject: str) -> Limiter:
            store = RedisStateStore(client, f"pyrate:{subject}")
            return Limiter(StateBucket([Rate(limit, seconds * 1000)], store=store))

        async def ask(subject: str) -> bool:
            if subject not in limiters:
                limiters[subject] = limiter(subject)
            return await limiters[subject].try_acquire_async(subject, blocking=False)

        yield ask
        for made in limiters.values():
            made.close()


@asynccontextmanager
async def bare(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[Ask]:
    step, burst = str(seconds * 1_000_000 / limit), str(limit)
    async with floor.scripted(url, callers, floor.GCRA) as run:

        async def ask(subject: str) -> bool:
            reply = cast("list[int]", await run(0, 1, f"floor:{subject}", step, burst))
            return bool(reply[0])

        yield ask


@asynccontextmanager
async def by_hand(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[Ask]:
    del callers  # they share one connection
    step, burst = str(seconds * 1_000_000 / limit), str(limit)
    async with pipelined.connected(url) as pipeline:
        loaded = cast("bytes", await pipeline.ask("SCRIPT", "LOAD", floor.GCRA))
        digest = loaded.decode()

        async def ask(subject: str) -> bool:
            reply = await pipeline.ask("EVALSHA", digest, "1", f"pipeline:{subject}", step, burst)
            return bool(cast("list[int]", reply)[0])

        yield ask


@dataclass(frozen=True)
class Rival:
    name: str
    open: Opener
    needs: str = "stanchion"
    note: str = ""


RIVALS = (
    Rival("stanchion", stanchion),
    Rival("limits", limits, "limits", "fixed window, coredis"),
    Rival("throttled-py", throttled, "throttled-py", "GCRA"),
    Rival("pyrate-limiter", pyrate, "pyrate-limiter", "GCRA"),
    Rival("bare EVALSHA", bare, "redis", "minimal GCRA script"),
    Rival(BY_HAND, by_hand, "hiredis", "the same script, one connection, no client library"),
)
PEERS = ("limits", "throttled-py", "pyrate-limiter")


async def prove(open_rival: Opener, url: str) -> None:
    """See that it limits: of two calls where one is allowed an hour, the second is refused."""
    async with open_rival(url, 2, 1, HOUR) as ask:
        first, second = await ask("proof"), await ask("proof")
        if not first or second:
            raise AssertionError(f"allowed {first} and {second} where one an hour may pass")


def contenders(
    url: str, callers: int, names: Sequence[str] | None = None, *, calls: int = 1
) -> list[Contender]:
    """Get those named; each measured call asks for `calls` limits, one after another."""
    return [
        Contender(
            rival.name,
            partial(_hot, rival.open, url, callers, calls),
            rival.needs,
            note=rival.note,
            prove=partial(prove, rival.open, url),
        )
        for rival in RIVALS
        if names is None or rival.name in names
    ]


@asynccontextmanager
async def _hot(
    open_rival: Opener, url: str, callers: int, calls: int
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    async with AsyncExitStack() as stack:
        asks = [
            await stack.enter_async_context(open_rival(url, callers, PLENTY * (n + 1), n + 1))
            for n in range(calls)
        ]
        one = asks[0]

        async def call() -> bool:
            return await one("hot")

        async def one_after_another() -> bool:
            for n, ask in enumerate(asks):
                if not await ask(f"hot{n}"):
                    return False
            return True

        yield call if calls == 1 else one_after_another
