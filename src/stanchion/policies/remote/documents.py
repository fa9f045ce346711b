"""Templates: a JSON document with places for what an event holds, and paths into an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic_core import to_jsonable_python

from stanchion.errors import ConfigError
from stanchion.policies.fields import Reader, reader

if TYPE_CHECKING:
    from stanchion.events import Event

#: What stands in braces and is no field: the type's name, and the whole event as CloudEvents JSON.
EVENT_TYPE: Final = "event_type"
EVENT: Final = "event"
_PLACE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
MISSING: Final = object()

Filler = Callable[["Event"], Any]


def compiled(owner: str, field: str, template: object, event_class: type[Event]) -> Filler:
    """Get a function that fills a template with the fields of events of one class.

    A text that is one place, such as `"{tokens}"`, becomes the field's value; a place within a
    longer text becomes its text, nothing where it is None. `{{` and `}}` are braces.

    Raises:
        ConfigError: the class has no such field, or a brace stands alone.
    """
    if isinstance(template, str):
        return _text(owner, field, template, event_class)
    if isinstance(template, Mapping):
        members = {
            str(name): compiled(owner, f"{field}.{name}", value, event_class)
            for name, value in cast("Mapping[object, object]", template).items()
        }
        return lambda event: {name: fill(event) for name, fill in members.items()}
    if isinstance(template, list | tuple):
        items = [
            compiled(owner, f"{field}[{index}]", value, event_class)
            for index, value in enumerate(cast("list[object]", template))
        ]
        return lambda event: [fill(event) for fill in items]
    if template is None or isinstance(template, bool | int | float):
        return lambda _: template
    raise ConfigError.of(f"{owner}: {field}", template, "expected JSON, with {places} in its texts")


def _text(owner: str, field: str, template: str, event_class: type[Event]) -> Filler:
    parts: list[str | Filler] = []
    end = 0
    for found in _PLACE.finditer(template):
        parts.append(template[end : found.start()])
        end = found.end()
        if found[0] in {"{{", "}}"}:
            parts.append(found[0][0])
        elif found[1] is None or not _PATH.fullmatch(found[1]):
            raise ConfigError.of(
                f"{owner}: {field}",
                template,
                f"{found[0]!r} names no field; a brace is written {{{{",
            )
        else:
            parts.append(_place(owner, field, found[1], event_class))
    parts.append(template[end:])
    kept = [part for part in parts if part != ""]
    if len(kept) == 1 and callable(kept[0]):
        return kept[0]
    return lambda event: "".join(
        part if isinstance(part, str) else _as_text(part(event)) for part in kept
    )


def _place(owner: str, field: str, path: str, event_class: type[Event]) -> Filler:
    if path == EVENT_TYPE:
        return lambda event: event.event_type
    if path == EVENT:
        return lambda event: event.to_cloudevent()
    read: Reader = reader(owner, field, path, event_class)
    return lambda event: jsonable(read(event))


def jsonable(value: object) -> Any:
    """Get a field's value as JSON has it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return to_jsonable_python(value)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def checked_path(field: str, path: str) -> tuple[str, ...]:
    """Get the steps of a dotted path into an answer.

    Raises:
        ConfigError: a step is empty.
    """
    steps = tuple(path.split("."))
    if not all(steps):
        raise ConfigError.of(field, path, 'expected a path such as "result.allowed"')
    return steps


def found_at(document: object, steps: tuple[str, ...]) -> object:
    """Get what stands at a path of a JSON document, `MISSING` where nothing does."""
    value = document
    for step in steps:
        if isinstance(value, dict):
            value = cast("dict[str, object]", value).get(step, MISSING)
        elif isinstance(value, list) and step.isdecimal():
            items = cast("list[object]", value)
            value = items[int(step)] if int(step) < len(items) else MISSING
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value
