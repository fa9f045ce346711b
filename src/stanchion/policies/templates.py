"""Reasons for people: texts with values of the event filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LONGEST: Final = 80
_ABSENT: Final = "?"


class Template:
    """A text with `{field}`, `{metadata.plan}` or `{tokens:,}` in it.

    It reads plain values by name and nothing else, so no text can reach into an object.
    """

    __slots__ = ("_parts", "fields")

    def __init__(self, owner: str, text: str) -> None:
        """Read the text.

        Raises:
            ConfigError: a brace is alone, or what is between braces is no field.
        """
        self._parts: list[tuple[str, tuple[str, ...], str]] = []
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigError.of(owner, text, f"{error}; write {{{{ for a brace") from None
        for literal, path, spec, conversion in parsed:
            if path is not None and (not _PATH.fullmatch(path) or conversion):
                raise ConfigError.of(owner, text, f"{{{path}}} is no field such as {{tokens}}")
            names = () if path is None else tuple(path.split("."))
            self._parts.append((literal, names, spec or ""))
        self.fields = frozenset(names[0] for _, names, _ in self._parts if names)

    def check(self, owner: str, known: Iterable[str], of: str) -> None:
        """Check that `of` has what the text names, or raise ConfigError."""
        has = set(known)
        for name in sorted(self.fields - has):
            raise ConfigError(
                f"{owner}: {of} has no field {name!r}; there are {', '.join(sorted(has))}"
            )

    def filled(self, values: Mapping[str, Any]) -> str:
        """Get the text with these values; what is absent shows as a question mark."""
        return "".join(
            literal + (_shown(_found(values, names), spec) if names else "")
            for literal, names, spec in self._parts
        )


def _found(values: Mapping[str, Any], names: tuple[str, ...]) -> object:
    value: object = values
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = cast("Mapping[str, object]", value).get(name)
    return value


def _shown(value: object, spec: str) -> str:
    if value is None:
        return _ABSENT
    try:
        text = format(value, spec)
    except (ValueError, TypeError):
        text = str(value)
    text = _UNPRINTABLE.sub(" ", text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
