"""Reading a field of any event by its path, those of unknown types included, and showing it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from stanchion.events import UnknownEvent

if TYPE_CHECKING:
    from stanchion.events import Event

_LONGEST: Final = 200  # characters of one value


def field(event: Event, path: str) -> object:
    """Get the value at a path such as `tenant` or `metadata.region`; None where there is none."""
    first, *rest = path.split(".")
    value: object = getattr(event, first, None)
    if value is None and isinstance(event, UnknownEvent):
        value = _member(event.data, first)
    for name in rest:
        value = _member(value, name)
    return value


def shown(value: object) -> str:
    """Get a value as text for people: one line, not too long, `-` for none."""
    match value:
        case None | "":
            return "-"
        case Enum():
            text = str(cast("object", value.value))
        case datetime():
            text = value.isoformat(timespec="seconds")
        case float():
            text = f"{value:g}"
        case _:
            text = str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _member(value: object, name: str) -> object:
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value).get(name)
    return getattr(value, name, None)
