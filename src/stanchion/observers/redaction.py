"""Secrets in events: covered by field name before any observer sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final, cast

from pydantic import ValidationError

from stanchion.errors import ConfigError
from stanchion.events import Event, InvalidEvent, UnknownEvent

REDACTED: Final = "[redacted]"
_ACCEPTED: Final = 'expected names of fields such as ("prompt", "metadata.api_key", "*_token")'
_REMEMBERED: Final = 4096
_LONGEST: Final = 1000  # characters of a dotted name
# What an event is known by; without it a receiver could neither tell two apart nor order them.
_ENVELOPE: Final = frozenset({"id", "timestamp"})
_ATTRIBUTES: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "data", "data_base64"}
    | {"datacontenttype", "dataschema"}
)
_SOURCE: Final = "/stanchion"
_PLAIN: Final = (str, int, float, datetime, bytes, type(None))

Path = tuple[str | int, ...]


class _StandIn(IntEnum):
    """What takes the place of a value, from the one that says most to the one that fits most."""

    TEXT = 0
    NOTHING = 1
    EMPTY = 2


@dataclass(slots=True)
class _Place:
    holder: Any  # the dict or list of the document
    path: Path
    value: Any
    stand_in: _StandIn = _StandIn.TEXT

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step for step in self.path if isinstance(step, str))

    def cover(self, stand_in: _StandIn) -> None:
        self.stand_in = stand_in
        covers = (REDACTED, None, type(self.value)())
        self.holder[self.path[-1]] = covers[stand_in]


class Redaction:
    """Covers the values of named fields; events that have none of them stay the same object."""

    def __init__(self, names: Iterable[str]) -> None:
        """Choose the fields, by names or globs, dotted for those inside others; case is ignored.

        Raises:
            ConfigError: `names` is not a collection of texts, or one of them is empty.
        """
        given = cast("object", names)
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ConfigError.of("redact", given, _ACCEPTED)
        patterns = tuple(cast("Iterable[object]", given))
        for pattern in patterns:
            if not isinstance(pattern, str) or not all(pattern.split(".")):
                raise ConfigError.of("redact", pattern, _ACCEPTED)
        self._names = patterns
        # A name is looked for at any depth: it matches the end of the dotted path.
        any_of = "|".join(translate(cast("str", pattern)) for pattern in patterns)
        expression = re.compile(rf"(?:.*\.)?(?:{any_of})", re.IGNORECASE | re.DOTALL)

        @lru_cache(_REMEMBERED)
        def covers(dotted: str) -> bool:
            return expression.fullmatch(dotted) is not None

        self._fullmatch = covers
        self._named: dict[type[Event], tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._fits: dict[tuple[type[Event], tuple[str, ...]], _StandIn] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def _covers(self, dotted: str) -> bool:
        # To match what is longer would take too long, and to remember it too much memory.
        return len(dotted) > _LONGEST or self._fullmatch(dotted)

    def __call__(self, event: Event) -> Event:
        """Get the event with the named values covered; the one that is given is not changed.

        So is what stands under names of more than 1000 characters, those around it included.

        Text becomes "[redacted]". So does any other value, unless the field's type does not take
        it: then it is None, or else what is empty of its kind (0, False, [], {}). Where not even
        that makes a valid event, the result is an `UnknownEvent` of the same type. None stays.

        Raises:
            InvalidEvent: the event cannot be written as JSON.
        """
        if not self._names or not self._concerns(event):
            return event
        # A copy that shares nothing with the event.
        document = event.to_cloudevent()
        places = list(self._places(document))
        return self._event(type(event), document, places) if places else event

    def _concerns(self, event: Event) -> bool:
        """Whether there may be anything to cover; without writing the event as JSON."""
        kind, values = type(event), vars(event)
        if len(values) != len(kind.model_fields):
            return True  # it keeps a document, or attributes, that it was read with
        named = self._named.get(kind)
        if named is None:
            fields = [name for name in kind.model_fields if name not in _ENVELOPE]
            covered = tuple(name for name in fields if self._covers(name))
            named = covered, tuple(name for name in fields if name not in covered)
            if len(self._named) >= _REMEMBERED:
                self._named = {}
            self._named[kind] = named
        return any(values[name] is not None for name in named[0]) or any(
            self._may_hold(values[name], name) for name in named[1]
        )

    def _may_hold(self, value: Any, dotted: str) -> bool:
        if isinstance(value, _PLAIN):
            return False
        if isinstance(value, dict):
            return any(
                (item is not None and self._covers(inner)) or self._may_hold(item, inner)
                for _, inner, item in _members(value, dotted)
            )
        if isinstance(value, list | tuple):
            items = cast("Iterable[object]", value)
            return any(self._may_hold(item, dotted) for item in items)
        return True  # a model or dataclass: what it is as JSON will tell

    def _places(self, document: dict[str, Any]) -> Iterator[_Place]:
        for name, value in tuple(document.items()):
            if name not in _ATTRIBUTES and value is not None and self._covers(name):
                yield _Place(document, (name,), value)
        yield from self._below(document.get("data"), "", ())

    def _below(self, value: Any, dotted: str, path: Path) -> Iterator[_Place]:
        if isinstance(value, dict):
            for name, inner, item in _members(value, dotted):
                if item is None or (not path and name in _ENVELOPE):
                    continue
                if self._covers(inner):
                    yield _Place(value, (*path, name), item)
                else:
                    yield from self._below(item, inner, (*path, name))
        elif isinstance(value, list):
            for index, item in enumerate(cast("list[Any]", value)):
                yield from self._below(item, dotted, (*path, index))

    def _event(self, kind: type[Event], document: dict[str, Any], places: list[_Place]) -> Event:
        for place in places:
            place.cover(self._fits.get((kind, place.names), _StandIn.TEXT))
        _cover_attributes(document, {place.path[0] for place in places})
        while True:
            try:
                event = kind.from_cloudevent(document)
            except InvalidEvent as error:
                if not _fit_better(places, error):
                    break
            else:
                if len(self._fits) >= _REMEMBERED:
                    self._fits = {}
                self._fits.update(
                    ((kind, place.names), place.stand_in)
                    for place in places
                    if sum(map(len, place.names)) <= _LONGEST
                )
                return event
        for place in places:
            place.cover(_StandIn.TEXT)
        return UnknownEvent.from_cloudevent(document)


def _members(value: Any, dotted: str) -> Iterator[tuple[str, str, Any]]:
    prefix = f"{dotted}." if dotted else ""
    for name, item in tuple(cast("dict[object, Any]", value).items()):
        yield str(name), f"{prefix}{name}", item


def _cover_attributes(document: dict[str, Any], covered: set[str | int]) -> None:
    """Leave out of `source` and `subject` what they may have been made of."""
    if covered & {"run_id", "node", "policy"}:
        document.pop("subject", None)
    if "pipeline" in covered and str(document["source"]).startswith(f"{_SOURCE}/"):
        document["source"] = _SOURCE


def _fit_better(places: list[_Place], error: InvalidEvent) -> bool:
    """Give the places that were refused what fits more; False when there is nothing left."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return False
    refused: list[tuple[int | str, ...]] = [one["loc"] for one in cause.errors(include_url=False)]
    open_places = [place for place in places if place.stand_in < _StandIn.EMPTY]
    guilty = [
        place
        for place in open_places
        # A location goes on below the value (a union's branch), or ends above it (a model's own).
        if any(loc[: len(place.path)] == place.path[: len(loc)] for loc in refused)
    ]
    for place in guilty or open_places:
        place.cover(_StandIn(place.stand_in + 1))
    return bool(open_places)
