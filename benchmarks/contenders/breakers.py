"""Circuit breakers around a call that succeeds: admitted before it, recorded after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from harness.measure import Contender

from stanchion import CircuitBreaker, CircuitOpen, Event, EventBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAILURES = 3
OPEN_SECONDS = 60

#: Makes one guarded call that succeeds or fails as told; gets whether it was admitted.
Guarded = Callable[[bool], Awaitable[bool]]
Opener = Callable[[str, int, str], AbstractAsyncContextManager[Guarded]]


class Call(Event, type="bench:guarded"):
    provider: str


class Failed(Exception):
    """What the guarded call raises when it is told to fail."""


async def work(succeed: bool) -> None:  # noqa: FBT001 - what is to come of it is all it is told
    await asyncio.sleep(0)
    if not succeed:
        raise Failed


@asynccontextmanager
async def stanchion(url: str, callers: int, circuit: str) -> AsyncIterator[Guarded]:
    del callers
    breaker = CircuitBreaker(
        name="provider",
        on=Call,
        by="provider",
        failure_rate=0.5,
        minimum_calls=FAILURES,
        window="30s",
        open_for=OPEN_SECONDS,
    )
    async with EventBus.from_url(url, policies=[breaker], deadline=10) as bus:

        async def call(succeed: bool) -> bool:  # noqa: FBT001
            try:
                async with bus.guard(Call(provider=circuit)):
                    await work(succeed)
            except CircuitOpen:
                return False
            except Failed:
                pass
            return True

        yield call


@asynccontextmanager
async def purgatory(url: str, callers: int, circuit: str) -> AsyncIterator[Guarded]:
    from purgatory import AsyncCircuitBreakerFactory, AsyncRedisUnitOfWork
    from purgatory.domain.model import OpenedState

    store = AsyncRedisUnitOfWork(f"{url}?max_connections={2 * callers}")
    factory = AsyncCircuitBreakerFactory(
        default_threshold=FAILURES, default_ttl=OPEN_SECONDS, uow=store
    )
    await factory.initialize()

    async def call(succeed: bool) -> bool:  # noqa: FBT001
        try:
            async with await factory.get_breaker(circuit):
                await work(succeed)
        except OpenedState:
            return False
        except Failed:
            pass
        return True

    yield call
    await store.contexts.redis.aclose()  # pyright: ignore[reportAttributeAccessIssue]


@asynccontextmanager
async def interlock(url: str, callers: int, circuit: str) -> AsyncIterator[Guarded]:
    import redis.asyncio
    from interlock import CircuitBreaker, CircuitOpenError, Config
    from interlock.integrations.redis import AsyncRedisStorage

    async with redis.asyncio.Redis.from_url(url, max_connections=2 * callers) as client:
        breaker = CircuitBreaker(
            name=circuit,
            config=Config(
                failure_rate_threshold=0.5,
                minimum_number_of_calls=FAILURES,
                wait_duration_in_open=OPEN_SECONDS,
            ),
            storage=AsyncRedisStorage(client),
        )

        async def call(succeed: bool) -> bool:  # noqa: FBT001
            try:
                await breaker.call_async(work, succeed)
            except CircuitOpenError:
                return False
            except Failed:
                pass
            return True

        yield call
        await breaker.aclose()


@asynccontextmanager
async def pybreaker(url: str, callers: int, circuit: str) -> AsyncIterator[Callable[[bool], bool]]:
    import redis
    from pybreaker import STATE_CLOSED, CircuitBreaker, CircuitBreakerError, CircuitRedisStorage

    def blocking_work(succeed: bool) -> None:  # noqa: FBT001
        # Threads take turns at its own I/O; to give way here too would only slow it down.
        if not succeed:
            raise Failed

    with redis.Redis.from_url(url, max_connections=2 * callers) as client:
        breaker = CircuitBreaker(
            fail_max=FAILURES,
            reset_timeout=OPEN_SECONDS,
            state_storage=CircuitRedisStorage(STATE_CLOSED, client, namespace=circuit),
        )

        def call(succeed: bool) -> bool:  # noqa: FBT001
            try:
                breaker.call(blocking_work, succeed)
            except CircuitBreakerError:
                return False
            except Failed:
                pass
            return True

        yield call


async def _prove(opener: Opener, url: str) -> None:
    """See that it breaks: after enough failures a call is refused."""
    async with opener(url, 2, "proof") as guarded:
        for _ in range(FAILURES):
            await guarded(False)  # noqa: FBT003
        if await guarded(True):  # noqa: FBT003
            raise AssertionError(f"still admitted after {FAILURES} failures")


@asynccontextmanager
async def _succeeding(
    opener: Opener, url: str, callers: int
) -> AsyncIterator[Callable[[], object]]:
    async with opener(url, callers, "hot") as guarded:
        yield partial(guarded, True)  # noqa: FBT003


@asynccontextmanager
async def _awaited(url: str, callers: int, circuit: str) -> AsyncIterator[Guarded]:
    async with pybreaker(url, callers, circuit) as guarded:

        async def call(succeed: bool) -> bool:  # noqa: FBT001
            return guarded(succeed)

        yield call


def contenders(url: str, callers: int) -> list[Contender]:
    rivals = (
        ("stanchion", stanchion, "stanchion", "shared window"),
        ("purgatory", purgatory, "purgatory", "shared count"),
        ("interlock-cb", interlock, "interlock-cb", "window of each process, shared state"),
    )
    made = [
        Contender(
            name,
            partial(_succeeding, opener, url, callers),
            needs,
            note=note,
            prove=partial(_prove, opener, url),
        )
        for name, opener, needs, note in rivals
    ]
    threaded = Contender(
        "pybreaker",
        partial(_succeeding, pybreaker, url, callers),  # pyright: ignore[reportArgumentType]
        "pybreaker",
        threads=True,
        note="shared count, threads",
        prove=partial(_prove, _awaited, url),
    )
    return [*made, threaded]
