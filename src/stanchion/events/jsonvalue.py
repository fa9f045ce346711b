"""What JSON can carry: checked, copied, and refused with the place where it is not JSON."""

from __future__ import annotations

import math
from typing import Any, Final, cast

DEEPEST: Final = 100
# Python itself refuses to write or read a longer integer as decimal text.
_MOST_DIGITS: Final = 4300
_MOST_BITS: Final = int(_MOST_DIGITS * math.log2(10))
_ACCEPTED: Final = "JSON has str, int, finite float, bool, None, list, and dict with str keys"


class NotJson(ValueError):
    """A value that JSON cannot carry unchanged; `path` leads to it from the outermost value."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: tuple[object, ...] = ()

    def __str__(self) -> str:
        place = "".join(f"[{step!r}]" for step in self.path)
        return f"at {place}: {self.problem}" if place else self.problem


def json_copy(value: Any, deepest: int = DEEPEST) -> Any:
    """Get a copy of `value` that shares no container with it, made of the plain JSON types.

    Subclasses of the plain types (a `StrEnum` member, an `OrderedDict`) become plain; they compare
    equal to what they were.

    Raises:
        NotJson: JSON cannot carry the value unchanged: another type, NaN, an infinity, a lone
            surrogate, a container within itself, or nesting below `deepest` levels.
    """
    return _copy(value, deepest, set())


def _copy(value: object, deepest: int, outer: set[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise NotJson(f"an integer of more than {_MOST_DIGITS} digits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson(f"{float(value)} is not finite; {_ACCEPTED}")
        return float(value)
    if isinstance(value, dict | list):
        return _items(cast("dict[object, object] | list[object]", value), deepest, outer)
    raise NotJson(f"{type(value).__name__} is no JSON type; {_ACCEPTED}")


def _items(
    value: dict[object, object] | list[object], deepest: int, outer: set[int]
) -> dict[str, Any] | list[Any]:
    if id(value) in outer:
        raise NotJson(f"a {type(value).__name__} that holds itself")
    if len(outer) == deepest:
        raise NotJson(f"nested deeper than {deepest} levels")
    outer.add(id(value))
    copied: dict[str, Any] | list[Any]
    if isinstance(value, list):
        copied = [_step(index, item, deepest, outer) for index, item in enumerate(value)]
    else:
        copied = {_key(key): _step(key, item, deepest, outer) for key, item in value.items()}
    outer.discard(id(value))
    return copied


def _step(step: object, value: object, deepest: int, outer: set[int]) -> Any:
    try:
        return _copy(value, deepest, outer)
    except NotJson as error:
        error.path = (step, *error.path)
        raise


def _key(key: object) -> str:
    if isinstance(key, str):
        return _text(key)
    raise NotJson(f"the key {key!r} is {type(key).__name__}; {_ACCEPTED}")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise NotJson(f"a lone surrogate in {value[error.start : error.end]!r}") from None
    return str.__str__(value)
