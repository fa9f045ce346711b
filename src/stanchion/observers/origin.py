"""Where an event on a channel came from, so that nothing goes round in circles.

Each event that is published carries the CloudEvents extension `stanchionorigin`. An event keeps it
when it is read, and one that has it is not published again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import NAMESPACE_DNS, uuid4, uuid5
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from stanchion.events import Event
    from stanchion.store.protocol import Channel

ORIGIN: Final = "stanchionorigin"
CONTROL: Final = "control"  # told by the scripts, to every process at once
ELSEWHERE: Final = "elsewhere"  # published by something that is not this library

# Of UUIDs of version 5 for control events, itself made from the project's name.
_NAMESPACE: Final = uuid5(NAMESPACE_DNS, "control.stanchion")

_origins: Final[WeakKeyDictionary[Channel, str]] = WeakKeyDictionary()


def origin_of(channel: Channel) -> str:
    """Get the name under which events go out over this channel object; every other's differs."""
    return _origins.setdefault(channel, uuid4().hex)


def told_to_all(event: Event) -> Event:
    """Get an event that every process makes by itself, so marked that none publishes it."""
    return type(event).from_cloudevent({**event.to_cloudevent(), ORIGIN: CONTROL})


def same_id(*parts: str) -> str:
    """Get the id that such an event has in every process: what it tells of is named by parts."""
    return str(uuid5(_NAMESPACE, "\n".join(parts)))


def write(event: Event, origin: str) -> bytes | None:
    """Get an event as CloudEvents JSON from `origin`; None if it has come from elsewhere.

    Raises:
        InvalidEvent: the event cannot be written as JSON.
    """
    document = event.to_cloudevent()
    if ORIGIN in document:
        return None
    text = json.dumps({**document, ORIGIN: origin}, ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def read(payload: bytes) -> tuple[dict[str, Any], str]:
    """Get a CloudEvents document, marked with its origin, and that origin.

    Raises:
        ValueError: not a JSON object.
        RecursionError: nested too deeply to be read.
    """
    loaded: object = json.loads(payload)
    if not isinstance(loaded, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - what is wrong is the text
    document = cast("dict[str, Any]", loaded)
    origin = document.get(ORIGIN)
    if not isinstance(origin, str) or not origin:
        origin = document[ORIGIN] = ELSEWHERE
    return document, origin
