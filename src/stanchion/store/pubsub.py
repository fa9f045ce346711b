"""Subscriptions that outlive their connection, and say when they may have missed something."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from stanchion.store.cancelling import heeded
from stanchion.store.protocol import Message, Published, Subscribed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    import redis.asyncio as aioredis
    from redis.asyncio.client import PubSub

Frame = dict[str, Any] | None
_log = logging.getLogger("stanchion.store")
_LONGEST_PAUSE = 2.0
_POLL = 1.0


class _Lost(Exception):
    """The subscription's connection has gone."""


@contextlib.asynccontextmanager
async def subscription(
    connect: Callable[[], aioredis.Redis],
    channels: tuple[str, ...],
    *,
    patience: float,
    lost: Callable[[], None] | None = None,
) -> AsyncGenerator[AsyncIterator[Message]]:
    """Get messages of these channels until the context ends, across reconnections.

    A `Subscribed` comes for each channel after every connection. The client itself reconnects
    without a word, and the only trace of the gap is another subscribe frame; so that frame is
    what is passed on. A server that has not answered for `patience` seconds is left for another
    connection, of a client that `connect` makes anew: it may lead to another node. `lost` is
    called as soon as a connection is known to be gone.
    """
    messages = _forever(connect, channels, patience, lost)
    try:
        yield messages
    finally:
        await messages.aclose()


async def _forever(
    connect: Callable[[], aioredis.Redis],
    channels: tuple[str, ...],
    patience: float,
    lost: Callable[[], None] | None,
) -> AsyncGenerator[Message]:
    retrying = AsyncRetrying(
        wait=wait_exponential_jitter(multiplier=0.05, max=_LONGEST_PAUSE, jitter=0.1),
        retry=retry_if_exception_type(_Lost),
        before_sleep=_tell,
        sleep=asyncio.sleep,
    )
    while True:
        client: aioredis.Redis | None = None
        pubsub: PubSub | None = None
        try:
            async for attempt in retrying.copy():
                with attempt:
                    client, pubsub = await _subscribe(connect(), channels, patience)
            assert pubsub is not None
            while True:
                try:
                    with heeded():
                        async with asyncio.timeout(_POLL + patience):
                            frame = cast("Frame", await pubsub.get_message(timeout=_POLL))
                except (RedisError, OSError, TimeoutError) as error:
                    _log.warning("subscription lost: %s", type(error).__name__)
                    if lost is not None:
                        lost()
                    break
                message = _message(frame)
                if message is not None:
                    yield message
        finally:
            await _let_go(client, pubsub)


async def _subscribe(
    client: aioredis.Redis, channels: tuple[str, ...], patience: float
) -> tuple[aioredis.Redis, PubSub]:
    pubsub = client.pubsub()  # pyright: ignore[reportUnknownMemberType]
    try:
        with heeded():
            async with asyncio.timeout(patience):
                await pubsub.subscribe(*channels)
    except BaseException as error:
        await _let_go(client, pubsub)
        if isinstance(error, RedisError | OSError):
            raise _Lost(type(error).__name__) from error
        raise
    return client, pubsub


def _message(frame: Frame) -> Message | None:
    if frame is None:
        return None
    channel = frame["channel"].decode()
    if frame["type"] == "subscribe":
        return Subscribed(channel)
    if frame["type"] == "message":
        return Published(channel, frame["data"])
    return None


async def _let_go(client: aioredis.Redis | None, pubsub: PubSub | None) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        if pubsub is not None:
            await pubsub.aclose()
        if client is not None:
            await client.aclose(close_connection_pool=True)


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.warning("cannot subscribe (%s); trying again", error)
