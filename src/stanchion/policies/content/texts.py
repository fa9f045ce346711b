"""The texts in an event's fields, and the event with other texts in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from stanchion.events import UnknownEvent

if TYPE_CHECKING:
    from stanchion.events import Event

Visit = Callable[[str], str]
_NOTHING = object()


def texts_of(event: Event, paths: tuple[str, ...]) -> dict[str, list[str]] | None:
    """Get the texts below each path; None for an event that has none of these fields."""
    root = _root(event)
    found: dict[str, list[str]] = {}
    for path in paths:
        value = _at(root, path.split("."))
        if value is not _NOTHING:
            texts: list[str] = []
            _mapped(value, _collector(texts))
            found[path] = texts
    return found or None


def rewritten(event: Event, paths: tuple[str, ...], texts: Mapping[str, str]) -> Event:
    """Get the event with other texts below the paths, checked as any event of its type is.

    Raises:
        ValidationError: the event's type does not allow such a text.
    """

    def visit(text: str) -> str:
        return texts.get(text, text)

    root = _root(event)
    for path in paths:
        if _at(root, path.split(".")) is not _NOTHING:
            root = _replaced(root, path.split("."), visit)
    if isinstance(event, UnknownEvent):
        return UnknownEvent.from_cloudevent({**event.document, "data": root})
    copied = cast("Event", root)
    type(event).model_validate({name: getattr(copied, name) for name in type(event).model_fields})
    return copied


def _root(event: Event) -> Any:
    return event.data if isinstance(event, UnknownEvent) else event


def _collector(texts: list[str]) -> Visit:
    def visit(text: str) -> str:
        texts.append(text)
        return text

    return visit


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(name, _NOTHING)
        elif isinstance(value, BaseModel):
            value = getattr(value, name, _NOTHING)
        else:
            return _NOTHING
    return value


def _replaced(value: Any, path: list[str], visit: Visit) -> Any:
    if not path:
        return _mapped(value, visit)
    name, *rest = path
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {**members, name: _replaced(members[name], rest, visit)}
    model = cast("BaseModel", value)
    return model.model_copy(update={name: _replaced(getattr(model, name), rest, visit)})


def _mapped(value: Any, visit: Visit) -> Any:
    """Get a value with every text in it visited, the keys of mappings included."""
    if isinstance(value, str):
        return value if isinstance(value, Enum) else visit(value)
    if isinstance(value, Mapping):
        members = cast("Mapping[Any, Any]", value)
        return {_mapped(key, visit): _mapped(member, visit) for key, member in members.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = cast("list[Any]", value)
        mapped = [_mapped(item, visit) for item in items]
        return mapped if isinstance(value, list) else type(items)(mapped)
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return value.model_copy(
            update={name: _mapped(item, visit) for name, item in fields.items()}
        )
    return value
