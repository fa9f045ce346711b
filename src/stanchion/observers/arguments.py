"""Checks of what several sinks are declared with."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from stanchion.durations import seconds
from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet
    from datetime import timedelta

S = TypeVar("S", bound=StrEnum)


def choice(kind: type[S], field: str, value: str) -> S:
    """Get the member of `kind` that `value` names.

    Raises:
        ConfigError: it names none.
    """
    try:
        return kind(value)
    except ValueError:
        accepted = f"expected one of {', '.join(kind)}"
        raise ConfigError.of(field, value, accepted) from None


def count(field: str, value: object, *, least: int = 1) -> int:
    """Get a whole number of at least `least`.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError.of(field, value, f"expected an integer of at least {least}")
    return value


def delay(field: str, value: timedelta | float | str) -> float:
    """Get a duration in seconds; zero, unlike elsewhere, means no wait.

    Raises:
        ConfigError: not a duration, or a negative one.
    """
    is_zero = value == 0 and not isinstance(value, bool)
    return 0.0 if is_zero else seconds(value, field=field)


def known_options(
    options: Mapping[str, object], taker: Callable[..., object], ours: AbstractSet[str]
) -> dict[str, object]:
    """Get the options that go to a client library as they are.

    Raises:
        ConfigError: `taker` has no such parameter, or it is one of `ours`.
    """
    known = set(inspect.signature(taker).parameters) - ours
    for name in options:
        if name not in known:
            raise ConfigError.of("options", name, f"expected one of {', '.join(sorted(known))}")
    return dict(options)
