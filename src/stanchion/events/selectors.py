"""Selectors: which events a policy or an observer is about."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, cast

from stanchion.errors import ConfigError
from stanchion.events.base import Event
from stanchion.events.declaration import TYPE_NAME

Selector: TypeAlias = type[Event] | str | tuple[type[Event] | str, ...]

_ACCEPTED: Final = (
    'expected an event class, a type such as "llm:call", a glob such as "llm:*", '
    "or a tuple of these"
)
_GLOB: Final = re.compile(r"[*?\[]")
# Text that could match a type of ours: what types are made of, and the signs of a glob.
_OUR_GLOB: Final = re.compile(r"(?:[a-z0-9_:*?]|\[!?[a-z0-9_:\-]+\])+")
# CloudEvents of other makers are named after a domain.
_THEIR_TYPE: Final = re.compile(r"[!-~]*\.[!-~]*")


def check_selector(selector: object, *, field: str = "on") -> None:
    """Check a selector where it is declared; `field` is what the error calls it.

    Raises:
        ConfigError: not a selector, or one that cannot match any event.
    """
    if isinstance(selector, tuple) and selector:
        for one in cast("tuple[object, ...]", selector):
            _check_one(one, field)
    else:
        _check_one(cast("object", selector), field)


def matches(selector: Selector, event: Event | type[Event]) -> bool:
    """Get whether `selector` is about `event`, which is an event or an event class.

    A class selects itself and its subclasses, and knows them after either was defined again (a
    notebook cell, a reload); text selects by type, exactly or as a glob. An `UnknownEvent` has its
    type on the event, not on the class: pass the event.
    """
    if isinstance(selector, tuple):
        return any(matches(one, event) for one in selector)
    if isinstance(selector, str):
        return fnmatchcase(event.event_type, selector)
    kind = event if isinstance(event, type) else type(event)
    return issubclass(kind, selector) or any(
        base.__qualname__ == selector.__qualname__ and base.__module__ == selector.__module__
        for base in kind.__mro__
    )


def _check_one(selector: object, field: str) -> None:
    if isinstance(selector, str):
        ours = _OUR_GLOB if _GLOB.search(selector) else TYPE_NAME
        known = bool(ours.fullmatch(selector) or _THEIR_TYPE.fullmatch(selector))
    else:
        known = isinstance(selector, type) and issubclass(selector, Event)
    if not known:
        raise ConfigError.of(field, cast("object", selector), _ACCEPTED)
