"""Events over Redis pub/sub, out and in: at most once, to whoever listens at that moment."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, Selector, check_selector, matches
from stanchion.observers.arguments import count
from stanchion.observers.containment import summary
from stanchion.observers.journal import Journal
from stanchion.observers.origin import origin_of, read, write
from stanchion.store.keys import Keyspace
from stanchion.store.protocol import Subscribed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

    from stanchion.store.protocol import Channel


@runtime_checkable
class NeedsChannel(Protocol):
    """An observer that wants the store's channel; a bus attaches it before it starts."""

    def attach(self, channel: Channel, namespace: str) -> None:
        """Take the channel of the store that the bus uses, and the bus's namespace."""
        ...


class RedisPublisher:
    """Publishes events as CloudEvents JSON on `stanchion:{<namespace>}:events`.

    By default vetoes and what else happens to policies (`policy:*`); `on` names other events. What
    came from a channel is not published again. An event that cannot be published counts as failed:
    there is no second attempt.
    """

    def __init__(self, *, on: Selector = "policy:*", max_bytes: int = 1_048_576) -> None:
        """Choose what to publish, and how large one message may be.

        Raises:
            ConfigError: `on` is no selector, or `max_bytes` no integer of at least 1.
        """
        check_selector(on)
        self.on: Selector = on
        self._most_bytes = count("max_bytes", max_bytes)
        self._channel: Channel | None = None
        self._name = ""
        self._origin = ""

    def attach(self, channel: Channel, namespace: str) -> None:
        """Publish through `channel` from now on.

        Raises:
            ConfigError: it is attached to another channel already, or the namespace is malformed.
        """
        if self._channel is not None and self._channel is not channel:
            raise ConfigError("RedisPublisher is attached to another bus: give each its own")
        self._name = Keyspace(namespace).events
        self._origin = origin_of(channel)
        self._channel = channel

    async def handle(self, event: Event) -> None:
        """Publish one event.

        Raises:
            StoreUnavailable: the server did not take it.
            StanchionError: no channel is attached, or the event is too large.
        """
        if self._channel is None:
            raise StanchionError("RedisPublisher has no channel: pass it to a bus, or attach one")
        payload = write(event, self._origin)
        if payload is not None:
            # A server cuts off subscribers that do not keep up with what is sent to them.
            if len(payload) > self._most_bytes:
                raise StanchionError(
                    f"RedisPublisher: an event of {len(payload)} bytes; at most {self._most_bytes}"
                )
            await self._channel.publish(self._name, payload)

    async def close(self) -> None:
        """Let go of the channel."""
        self._channel = None


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What became of the messages on a channel.

    `own` were published through the same channel object, `malformed` could not be read, and
    `gaps` counts subscriptions: before each of them messages may have been missed.
    """

    received: int = 0
    own: int = 0
    malformed: int = 0
    gaps: int = 0


class EventStream:
    """An async iterator of events that others published; leave it with `aclose` or `async with`."""

    def __init__(
        self,
        channel: Channel,
        namespace: str,
        on: Selector,
        on_gap: Callable[[], Awaitable[None] | None] | None,
    ) -> None:
        check_selector(on)
        self._channel = channel
        self._name = Keyspace(namespace).events
        self._on = on
        self._on_gap = on_gap
        self._journal = Journal()
        self._received = self._own = self._malformed = self._gaps = 0
        self._events = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription."""
        await self._events.aclose()

    @property
    def stats(self) -> StreamStats:
        """The counters as they are now."""
        return StreamStats(self._received, self._own, self._malformed, self._gaps)

    async def _read(self) -> AsyncGenerator[Event, None]:
        origin = origin_of(self._channel)
        async with self._channel.subscribe(self._name) as messages:
            async for message in messages:
                if isinstance(message, Subscribed):
                    await self._tell_gap()
                    continue
                self._received += 1
                event = self._event(message.payload, origin)
                if event is not None and matches(self._on, event):
                    yield event

    async def _tell_gap(self) -> None:
        self._gaps += 1
        told = None if self._on_gap is None else self._on_gap()
        if inspect.isawaitable(told):
            await told

    def _event(self, payload: bytes, own: str) -> Event | None:
        try:
            document, origin = read(payload)
            if origin == own:
                self._own += 1
                return None
            return Event.from_cloudevent(document)
        except (ValueError, RecursionError) as error:
            self._malformed += 1
            text = "a message on %s is no event and is left out: %s"
            self._journal.say(
                logging.WARNING, "malformed", "events", text, self._name, summary(error)
            )
            return None


def listen(
    channel: Channel,
    namespace: str,
    on: Selector = "*",
    *,
    on_gap: Callable[[], Awaitable[None] | None] | None = None,
) -> EventStream:
    """Get the events that others publish in a namespace, for `async for`.

    An event of a type that no class here is registered for is an `UnknownEvent`. Messages that are
    no events are counted, logged and left out. `on_gap` is called after every subscription, the
    first one too: what was published before it is lost.

    Raises:
        ConfigError: `on` is no selector, or the namespace is malformed.
    """
    return EventStream(channel, namespace, on, on_gap)
