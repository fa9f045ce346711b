"""Subscriptions that outlive their connection, and say when they may have missed something."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from stanchion.store.protocol import Message, Published, Subscribed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    import redis.asyncio as aioredis
    from redis.asyncio.client import PubSub

_log = logging.getLogger("stanchion.store")
_LONGEST_PAUSE = 2.0
_POLL = 1.0


class _Lost(Exception):
    """The subscription's connection has gone."""


@contextlib.asynccontextmanager
async def subscription(
    connect: Callable[[], aioredis.Redis], channels: tuple[str, ...]
) -> AsyncGenerator[AsyncIterator[Message]]:
    """Get messages of these channels until the context ends, across reconnections.

    A `Subscribed` comes for each channel after every connection. The client itself reconnects
    without a word, and the only trace of the gap is another subscribe frame; so that frame is
    what is passed on.
    """
    messages = _forever(connect, channels)
    try:
        yield messages
    finally:
        await messages.aclose()


async def _forever(
    connect: Callable[[], aioredis.Redis], channels: tuple[str, ...]
) -> AsyncGenerator[Message]:
    retrying = AsyncRetrying(
        wait=wait_exponential_jitter(initial=0.05, max=_LONGEST_PAUSE, jitter=0.1),
        retry=retry_if_exception_type(_Lost),
        before_sleep=_tell,
        sleep=asyncio.sleep,
    )
    while True:
        client, pubsub = connect(), None
        try:
            async for attempt in retrying.copy():
                with attempt:
                    pubsub = await _subscribe(client, channels)
            assert pubsub is not None
            while True:
                try:
                    frame = cast("dict[str, Any] | None", await pubsub.get_message(timeout=_POLL))
                except (RedisError, OSError, TimeoutError) as error:
                    _log.warning("subscription lost: %s", type(error).__name__)
                    break
                message = _message(frame)
                if message is not None:
                    yield message
        finally:
            await _let_go(client, pubsub)


async def _subscribe(client: aioredis.Redis, channels: tuple[str, ...]) -> PubSub:
    pubsub = client.pubsub()  # pyright: ignore[reportUnknownMemberType]
    try:
        await pubsub.subscribe(*channels)
    except (RedisError, OSError, TimeoutError) as error:
        await _let_go(None, pubsub)
        raise _Lost(type(error).__name__) from error
    return pubsub


def _message(frame: dict[str, Any] | None) -> Message | None:
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
