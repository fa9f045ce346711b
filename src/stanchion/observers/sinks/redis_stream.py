"""Events in a Redis Stream: a log that is kept, for readers that were not there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Final

from stanchion.durations import seconds
from stanchion.errors import ConfigError, StanchionError
from stanchion.events import InvalidEvent, check_selector
from stanchion.observers.arguments import count
from stanchion.observers.delivery import Undelivered
from stanchion.observers.origin import CONTROL, ORIGIN
from stanchion.store.keys import Keyspace
from stanchion.store.streams import stream_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from stanchion.events import Event, Selector
    from stanchion.store.protocol import Channel
    from stanchion.store.streams import RedisStream

STREAM: Final = "stream:"  # of origin, and then the key


class RedisStreamSink:
    """Appends each event to a Redis Stream, as CloudEvents JSON in the entry's field `event`.

    By default to `stanchion:{<namespace>}:stream` in the Redis of the bus, over connections of its
    own. What every process of a fleet tells of, the changes of circuits and quotas, is there once.
    An event that was read from this very stream is not appended to it again. After a lost reply a
    batch is sent again, so a reader may meet an event twice, with the same id.
    """

    idempotent: ClassVar[bool] = True
    batch_delay: Final = 0.0

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        key: str | None = None,
        max_length: int | None = 100_000,
        max_age: timedelta | float | str | None = "7d",
        deadline: timedelta | float | str = "2s",
        batch_size: int = 100,
        max_bytes: int = 1_048_576,
        on: Selector = "*",
    ) -> None:
        """Choose the stream; nothing connects before `start`.

        Args:
            url: where it is; None: where the bus has its state.
            namespace: whose stream, where `key` does not say; by default the bus's, or "default".
            key: its name.
            max_length: about how many entries stay; None: all of them.
            max_age: about how long entries stay, and the stream after the last one; None: for ever.
            deadline: seconds that a batch may take.
            batch_size: the most events in one call.
            max_bytes: of one event as JSON; a larger one is refused, and the others are appended.
            on: the events to append.

        Raises:
            ConfigError: an argument cannot work.
        """
        if max_length is not None:
            count("max_length", max_length)
        count("batch_size", batch_size)
        if key is not None and not key:
            raise ConfigError.of("key", key, "expected the name of a key")
        check_selector(on)
        self.on: Selector = on
        self.batch_size = batch_size
        self._url = url
        self._namespace = namespace
        self._key = key
        self._keep = max_length
        self._most_bytes = count("max_bytes", max_bytes)
        self._age = None if max_age is None else seconds(max_age, field="max_age")
        self._deadline = seconds(deadline, field="deadline")
        Keyspace(namespace or "default")
        if url is not None:
            stream_at(url, self.key, deadline=self._deadline)
        self._channel: Channel | None = None
        self._stream: RedisStream | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key={self.key!r})"

    @property
    def key(self) -> str:
        """The stream's name in Redis."""
        return self._key or Keyspace(self._namespace or "default").stream

    def writes_to(self, url: str, key: str | None) -> bool:
        """Get whether it appends to this stream, where a bus would be at `url`."""
        return self.key == key and self._url in {None, url}

    def attach(self, channel: Channel, namespace: str) -> None:
        """Take the store of a bus, for a sink that was given no URL, and its namespace.

        Raises:
            ConfigError: it belongs to another bus already.
        """
        if self._channel is not None and self._channel is not channel:
            raise ConfigError("RedisStreamSink is attached to another bus: give each its own")
        self._channel = channel
        self._namespace = self._namespace or namespace

    async def start(self) -> None:
        """Connect.

        Raises:
            StanchionError: there is neither a URL nor a bus.
            StoreUnavailable: the server does not answer.
        """
        place = self._url or self._channel
        if place is None:
            raise StanchionError("RedisStreamSink has no place: give it a URL, or pass it to a bus")
        stream = stream_at(place, self.key, deadline=self._deadline)
        await stream.open()
        try:
            await stream.last()
        except BaseException:
            await stream.close()
            raise
        self._stream = stream

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Append these events, all of them or none.

        Raises:
            StoreUnavailable: the server did not take them in time.
            Undelivered: some of them cannot be written as JSON, or are too large; the others are
                there.
        """
        if self._stream is None:
            raise StanchionError("RedisStreamSink was not started")
        entries: list[tuple[str, bytes]] = []
        refused: list[Event] = []
        for event in events:
            try:
                document = event.to_cloudevent()
            except InvalidEvent:
                refused.append(event)
                continue
            origin = document.get(ORIGIN)
            if origin != f"{STREAM}{self.key}":
                text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
                if len(text) > self._most_bytes:
                    refused.append(event)
                else:
                    entries.append((event.id if origin == CONTROL else "", text))
        if entries:
            await self._stream.append(entries, keep=self._keep, age=self._age)
        if refused:
            reason = f"they cannot be written as JSON of at most {self._most_bytes} bytes"
            raise Undelivered(refused, reason, permanent=True)

    async def close(self) -> None:
        """Let go of the connections."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
