"""Events as lines of the standard log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from stanchion.errors import ConfigError
from stanchion.events import UnknownEvent, check_selector, matches

if TYPE_CHECKING:
    from stanchion.events import Event, Selector

Redaction: TypeAlias = Collection[str] | Callable[[dict[str, object]], Mapping[str, object]]

LEVELS: Final[Mapping[Selector, int]] = MappingProxyType(
    {
        ("circuit:opened", "policy:failed", "pipeline:failed"): logging.ERROR,
        ("policy:vetoed", "circuit:halfopened", "quota:threshold"): logging.WARNING,
        ("node:failed", "policy:changed"): logging.WARNING,
        "*": logging.INFO,
    }
)
# What people and models said to each other, and to their tools.
CONTENT: Final = frozenset({"prompt", "response", "arguments", "result"})

_REDACTED: Final = "[redacted]"
_LONGEST: Final = 200  # characters of one value in the line; `extra` has it whole
# JSON escapes control characters up to U+001F; these, too, begin a new line somewhere.
_BREAKS: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


class LoggingObserver:
    """Writes one line for each event, and the event itself as `extra` for structured logs.

    The line is the event's type and then its fields as `name=<JSON>`, without those that are None
    or empty and cut where they are long. A record also has the attributes `event_type`,
    `event_id`, `event_time` (a datetime in UTC) and `event`, a dict of the fields.

    Vetoes are warnings and an opened circuit is an error; see `LEVELS`. Being a plain callable, it
    runs in a thread: a handler that blocks delays nobody.
    """

    def __init__(
        self,
        logger: logging.Logger | str = "stanchion.events",
        *,
        levels: Mapping[Selector, int] | None = None,
        redact: Redaction = CONTENT,
        on: Selector = "*",
    ) -> None:
        """Choose where and how to log.

        Args:
            logger: a logger or its name.
            levels: selectors and the level of what they match; the first match counts, and what
                none of them matches has its level from `LEVELS`.
            redact: names of fields, at any depth, whose values are not logged; or a function that
                gets the fields and returns those to log. By default what was said to models and
                tools and what they answered; `()` logs everything.
            on: the events to log.

        Raises:
            ConfigError: `levels`, `redact` or `on` cannot work.
        """
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._levels = {**_checked_levels(levels or {}), **LEVELS}
        self._redact = redact if callable(redact) else _by_name(redact)
        check_selector(on)
        self.on: Selector = on

    def __call__(self, event: Event) -> None:
        """Log one event."""
        level = self._level(event)
        if not self._logger.isEnabledFor(level):
            return
        fields = dict(self._redact(_fields(event)))
        self._logger.log(
            level,
            "%s",
            _line(event.event_type, fields),
            extra={
                "event_type": event.event_type,
                "event_id": event.id,
                "event_time": event.timestamp,
                "event": fields,
            },
        )

    def _level(self, event: Event) -> int:
        return next(level for on, level in self._levels.items() if matches(on, event))


def _fields(event: Event) -> dict[str, object]:
    if isinstance(event, UnknownEvent):
        data = cast("object", event.data)
        return cast("dict[str, object]", data) if isinstance(data, dict) else {"data": data}
    fields: dict[str, object] = event.model_dump(
        mode="json", exclude={"id", "timestamp"}, fallback=repr
    )
    return fields


def _line(kind: str, fields: Mapping[str, object]) -> str:
    parts = [_text(kind).strip('"')]
    for name, value in fields.items():
        if value is None or value in ("", (), [], {}):
            continue
        text = _text(value)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}..."
        parts.append(f"{_text(name).strip(chr(34))}={text}")
    return " ".join(parts)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr).translate(_BREAKS)


def _by_name(names: Collection[str]) -> Callable[[dict[str, object]], dict[str, object]]:
    if isinstance(names, str) or not all(isinstance(cast("object", name), str) for name in names):
        raise ConfigError.of("redact", names, "expected names of fields, or a function")
    hidden = frozenset(names)

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return redacted(cast("dict[str, object]", value))
        if isinstance(value, list):
            return [clean(item) for item in cast("list[object]", value)]
        return value

    def redacted(fields: dict[str, object]) -> dict[str, object]:
        return {
            name: _REDACTED if name in hidden and value is not None else clean(value)
            for name, value in fields.items()
        }

    return redacted


def _checked_levels(levels: Mapping[Selector, int]) -> Mapping[Selector, int]:
    for on, level in levels.items():
        check_selector(on, field="levels")
        if not isinstance(cast("object", level), int):
            raise ConfigError.of("levels", level, "expected a level such as logging.WARNING")
    return levels
