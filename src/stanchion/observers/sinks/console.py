"""Events as lines for people: one line an event, in colour on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final, TextIO, cast

from stanchion.errors import ConfigError
from stanchion.events import UnknownEvent, check_selector
from stanchion.observers.arguments import choice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stanchion.events import Event, Selector

_STREAMS: Final = ("stdout", "stderr")
_LONGEST: Final = 200  # characters of one value
_PLAIN: Final = re.compile(r'[^\s"\'=\\{}\[\]]+')
# A control character would reach the terminal, and U+2028 ends a line in some of them. Characters
# that change the direction of text make a line look like another.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)
_RED, _YELLOW, _GREEN, _CYAN, _DIM, _RESET = (
    f"\x1b[{code}m" for code in ("31", "33", "32", "36", "2", "0")
)
# By the action, so that an event that only somebody else declares has its colour too.
_COLOURS: Final = {
    **dict.fromkeys(("failed", "opened", "error", "denied"), _RED),
    **dict.fromkeys(("vetoed", "halfopened", "threshold", "skipped", "changed"), _YELLOW),
    **dict.fromkeys(("completed", "closed", "received"), _GREEN),
}


class Style(StrEnum):
    """How an event is written: for people, or for what collects the lines."""

    TEXT = "text"
    JSON = "json"


class ConsoleSink:
    """Writes each event as one line: its time, its type, and the fields that say something.

    With `style="json"` the line is the event's CloudEvents JSON, whole. In text, a value is cut
    after 200 characters, and control characters in it are escaped. Colour is for terminals;
    `NO_COLOR` in the environment turns it off and `FORCE_COLOR` on. A stream that nobody reads any
    more raises, and so none of the batch counts as delivered.
    """

    idempotent: ClassVar[bool] = True
    batch_size: Final = 100
    batch_delay: Final = 0.0

    def __init__(
        self,
        stream: TextIO | str = "stderr",
        *,
        style: Style | str = Style.TEXT,
        colour: bool | None = None,
        on: Selector = "*",
    ) -> None:
        """Choose where to write.

        Args:
            stream: "stdout", "stderr", or an open text stream; it is not closed here.
            style: "text" or "json".
            colour: of text, True or False; by default what the stream and the environment say.
            on: the events to write.

        Raises:
            ConfigError: an argument cannot work.
        """
        is_name = isinstance(stream, str)
        known = stream in _STREAMS if is_name else callable(getattr(stream, "write", None))
        if not known:
            raise ConfigError.of("stream", stream, f"expected {_STREAMS} or a text stream")
        if not isinstance(cast("object", colour), bool | None):
            raise ConfigError.of("colour", colour, "expected true, false or nothing")
        check_selector(on)
        self.on: Selector = on
        self._style = choice(Style, "style", style)
        self._stream = stream
        self._colour = colour

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._stream!r})"

    def handle_batch(self, events: Sequence[Event]) -> None:
        """Write the lines of these events, all at once; may block, so it runs in a thread.

        Raises:
            OSError: the stream takes nothing.
            InvalidEvent: an event cannot be written as JSON.
        """
        # Looked up each time: a test runner or a service may have put another in its place.
        stream = getattr(sys, self._stream) if isinstance(self._stream, str) else self._stream
        if self._style is Style.JSON:
            lines = [json_line(event) for event in events]
        else:
            colour = wants_colour(stream) if self._colour is None else self._colour
            lines = [line(event, colour=colour) for event in events]
        text = "".join(f"{each}\n" for each in lines)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def wants_colour(stream: TextIO) -> bool:
    """Get whether text on this stream should be in colour."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def json_line(event: Event) -> str:
    """Get an event as CloudEvents JSON without an end of line.

    Raises:
        InvalidEvent: it cannot be written as JSON.
    """
    # Only ASCII: what a terminal or a collector might act on stays in its escapes.
    return json.dumps(event.to_cloudevent(), separators=(",", ":"))


def line(event: Event, *, colour: bool = False) -> str:
    """Get an event as one line without its end: time in UTC, type, and fields as name=value.

    Fields that are None or empty are left out, and so is the id.
    """
    moment = event.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    kind = escaped(event.event_type)
    parts = [f"{escaped(name)}={value}" for name, value in _values(event)]
    if colour:
        hue = _COLOURS.get(kind.rpartition(":")[2], _CYAN)
        moment, kind = f"{_DIM}{moment}{_RESET}", f"{hue}{kind}{_RESET}"
        parts = [f"{_DIM}{name}={_RESET}{value}" for name, _, value in _split(parts)]
    return " ".join((moment, kind, *parts))


def _split(parts: list[str]) -> Iterator[tuple[str, str, str]]:
    return (part.partition("=") for part in parts)


def _values(event: Event) -> Iterator[tuple[str, str]]:
    for name, value in _fields(event).items():
        if value is None or value in ("", [], {}):
            continue
        yield name, _text(value)


def _fields(event: Event) -> dict[str, object]:
    if isinstance(event, UnknownEvent):
        data = cast("object", event.data)
        return cast("dict[str, object]", data) if isinstance(data, dict) else {"data": data}
    fields: dict[str, object] = event.model_dump(
        mode="json", exclude={"id", "timestamp"}, fallback=repr
    )
    return fields


def _text(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)
    return escaped(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def escaped(text: str) -> str:
    """Get text with control characters and the like in escapes: it cannot act on a terminal."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
