"""Events that an observer will not take, kept apart in a stream, each with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from stanchion.durations import seconds
from stanchion.store.streams import stream_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from stanchion.events import Event
    from stanchion.observers.streams import Delivery
    from stanchion.store.protocol import Channel
    from stanchion.store.streams import RedisStream

# CloudEvents extensions of an event that is kept so.
OBSERVER: Final = "stanchionobserver"
REASON: Final = "stanchionreason"
ENTRY: Final = "stanchionentry"
_KEEP: Final = 10_000
_AGE: Final = 7 * 86_400.0  # seconds
_LONGEST: Final = 500  # characters of a reason


class Dead(NamedTuple):
    """What is to be kept apart, and why."""

    delivery: Delivery
    reason: str


def dead_of(key: str) -> str:
    """Get the name of the stream with what could not be delivered of another stream."""
    return f"{key}.dead"


def epitaph(event: Event) -> str:
    """Get who would not take an event, and why; empty where nothing says so."""
    document = event.to_cloudevent()
    words = [str(document[name]) for name in (OBSERVER, REASON) if document.get(name)]
    return ": ".join(words)


class DeadLetters:
    """The stream beside another, with about the last 10,000 events of a week.

    Each carries, as CloudEvents extensions, the observer's name, the reason, and the id of the
    entry that it was.
    """

    def __init__(
        self, place: str | Channel, key: str, *, deadline: timedelta | float | str = "2s"
    ) -> None:
        """Choose the stream beside `key`; it connects when it is first needed.

        Raises:
            ConfigError: an argument cannot work.
        """
        self.key = dead_of(key)
        limit = seconds(deadline, field="deadline")
        self._place, self._deadline = place, limit
        self._stream: RedisStream | None = None

    async def add(self, observer: str, dead: Sequence[Dead]) -> None:
        """Keep these, each once however often it is told.

        Raises:
            StoreUnavailable: the server did not take them; perhaps it did, if there was no answer.
        """
        if self._stream is None:
            stream = stream_at(self._place, self.key, deadline=self._deadline)
            await stream.open()
            self._stream = stream
        entries = [
            (f"{observer}:{delivery.id}", _written(observer, delivery, reason))
            for delivery, reason in dead
        ]
        await self._stream.append(entries, keep=_KEEP, age=_AGE)

    async def close(self) -> None:
        """Let go of the connections."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


def _written(observer: str, delivery: Delivery, reason: str) -> bytes:
    document = delivery.event.to_cloudevent() | {
        OBSERVER: _printable(observer),
        REASON: _printable(reason),
        ENTRY: delivery.id,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _printable(text: str) -> str:
    # An extension of CloudEvents is one line.
    return "".join(one if one.isprintable() else " " for one in text[:_LONGEST])
