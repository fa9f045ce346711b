"""Checks of what several sinks are declared with, beside those in `observers.arguments`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import check_selector
from stanchion.observers.arguments import count

if TYPE_CHECKING:
    from stanchion.events import Selector


def at_most(most: int, field: str, value: int) -> int:
    """Get a whole number from 1 to `most`.

    Raises:
        ConfigError: something else.
    """
    if count(field, value) > most:
        raise ConfigError.of(field, value, f"expected at most {most}")
    return value


def selection(on: object, default: Selector) -> Selector:
    """Get a selector, which a YAML file may have as a list.

    Raises:
        ConfigError: not a selector.
    """
    if on is None:
        return default
    selector = tuple(cast("list[object]", on)) if isinstance(on, list) else on
    check_selector(selector)
    return cast("Selector", selector)


def text(field: str, value: object, *, most: int = 256) -> str:
    """Get text of one line that is neither empty nor longer than `most` characters.

    Raises:
        ConfigError: something else.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise ConfigError.of(field, value, f"expected 1 to {most} characters of one line")
    return value


def not_started(sink: object) -> StanchionError:
    """Get the error for a sink that is used before `start` or after `close`."""
    return StanchionError(f"{sink!r} is not started")
