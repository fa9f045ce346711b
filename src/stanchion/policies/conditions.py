"""Conditions over an event's fields, in CEL: compiled once, and closed where a field is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_jsonable_python

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stanchion.events import Event

EVENT_TYPE: Final = "event_type"
_LONGEST: Final = 4000
_PLAIN: Final = (str, bool, int, float, datetime, timedelta, bytes, type(None))
_FUNCTIONS: Final = frozenset(
    {
        *("size", "contains", "startsWith", "endsWith", "matches", "dyn", "type"),
        *("int", "uint", "double", "string", "bytes", "timestamp", "duration"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    }
)
_OPERATOR: Final = re.compile(r"[@!_-].*")
_PLACE: Final = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?(.*)")
_TEXT: Final = re.compile(r"""[rR]?("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
# Calls whose text can be tried out where it is declared.
_FIXED: Final = re.compile(rf"\b(matches|timestamp|duration)\(\s*({_TEXT.pattern})\s*\)")
_BOUND: Final = re.compile(r"\.(?:all|exists|exists_one|map|filter)\(\s*([A-Za-z_]\w*)\s*,")


class Undecidable(Exception):
    """A condition has no answer for an event; `str` says why."""


class Values:
    """Values by name, made ready for any number of conditions at once."""

    __slots__ = ("_ready", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self._ready: Any = None

    @property
    def ready(self) -> Any:
        """The values as CEL has them; raises what it raises for one that it cannot have."""
        if self._ready is None:
            import cel

            self._ready = cel.Context(variables=dict(self.given))
        return self._ready


@dataclass(frozen=True, slots=True)
class Condition:
    """One expression that is true or false of an event.

    `fields` are the names at the top of what it reads.
    """

    source: str
    fields: frozenset[str]
    _program: Any

    def holds(self, values: Values) -> bool:
        """Get whether it is true of these values.

        Raises:
            Undecidable: something it needs is not there, is not of a kind that can be compared, or
                what comes out is neither true nor false.
        """
        try:
            result = self._program.execute(values.ready)
        # Undefined names are RuntimeErrors, missing keys KeyErrors, kinds that do not compare
        # TypeErrors, and so on: none of them is an answer.
        except Exception as error:
            raise Undecidable(_why(error, self.fields - values.given.keys())) from error
        if result is True or result is False:
            return result
        raise Undecidable(f"it gives {type(result).__name__}, and not true or false")

    def place(self, name: str) -> tuple[int, int]:
        """Get the line and the column, both from 1, at which a name first stands in it."""
        return _line_column(self.source, _offset(self.source, name))


def compiled(owner: str, source: str) -> Condition:
    """Get the condition that `source` describes; `owner` is what errors call its place.

    Raises:
        ConfigError: it is no CEL, or calls what is not there; the text points at the column. Or
            the extra `rules` is not installed.
    """
    try:
        import cel
    except ImportError:
        raise ConfigError(
            'rules need common-expression-language: pip install "stanchion[rules]"'
        ) from None
    if not hasattr(cel, "compile"):
        raise ConfigError(
            "the package `cel` here is not that of common-expression-language; python-cel brings "
            'another of that name: uninstall it, then pip install "stanchion[rules]"'
        )
    if len(source) > _LONGEST:
        raise ConfigError(f"{owner}: {len(source)} characters, expected at most {_LONGEST}")
    try:
        program: Any = cel.compile(source)
    except ValueError as error:
        raise ConfigError(_pointed(owner, source, *_place(source, str(error)))) from None
    unknown = [
        name
        for name in program.functions()
        if name not in _FUNCTIONS and not _OPERATOR.fullmatch(name)
    ]
    if unknown:
        known = ", ".join(sorted(_FUNCTIONS))
        problem = f"no function {unknown[0]!r}; there are {known}"
        place = _line_column(source, _offset(source, unknown[0]))
        raise ConfigError(_pointed(owner, source, *place, problem))
    for found in _FIXED.finditer(source):
        call = f"''.{found[0]}" if found[1] == "matches" else found[0]
        try:
            cel.compile(call).execute({})
        except Exception as error:  # noqa: BLE001 - each function has exceptions of its own
            problem = f"{found[2]} is nothing that {found[1]} takes: {_short(error)}"
            place = _line_column(source, found.start(2))
            raise ConfigError(_pointed(owner, source, *place, problem)) from None
    bound = frozenset(_BOUND.findall(_without_texts(source)))
    return Condition(source, frozenset(program.variables()) - bound, program)


def check_names(owner: str, condition: Condition, known: Iterable[str], of: str) -> None:
    """Check that `of` has what a condition reads.

    Raises:
        ConfigError: it has not; the text points at the column.
    """
    has = set(known)
    for name in sorted(condition.fields - has, key=condition.place):
        problem = f"{of} has no field {name!r}; there are {', '.join(sorted(has))}"
        raise ConfigError(_pointed(owner, condition.source, *condition.place(name), problem))


def values_of(event: Event, names: Iterable[str]) -> dict[str, Any]:
    """Get those of an event's fields that it has, as a condition can read them."""
    values: dict[str, Any] = {}
    for name in names:
        if name == EVENT_TYPE:
            values[name] = event.event_type
            continue
        try:
            value = getattr(event, name)
        except AttributeError:
            continue
        values[name] = value if type(value) in _PLAIN else _converted(value)
    return values


def _converted(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    return to_jsonable_python(value, serialize_unknown=True)


def _why(error: Exception, missing: frozenset[str]) -> str:
    if missing:
        return f"the event has no {', '.join(sorted(missing))}"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r} in it"
    if isinstance(error, TypeError):
        return "values of kinds that do not go together, or none at all"
    return f"{type(error).__name__}: {_short(error)}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _place(source: str, text: str) -> tuple[int, int, str]:
    found = _PLACE.search(text)
    if found is None:
        return 1, 1, " ".join(text.removeprefix(f"Failed to parse expression '{source}'").split())
    problem = found[3].partition(" expecting {")[0].replace("<EOF>", "end")
    return int(found[1]), int(found[2]), problem


def _pointed(owner: str, source: str, line: int, column: int, problem: str) -> str:
    lines = source.splitlines() or [""]
    where = f"column {column}" if len(lines) == 1 else f"line {line}, column {column}"
    shown, at = lines[min(line, len(lines)) - 1], column
    if at > 60:
        shown, at = "..." + shown[at - 40 :], 43
    return f"{owner}, {where}: {problem}\n    {shown[:100]}\n    {' ' * (at - 1)}^"


def _without_texts(source: str) -> str:
    return _TEXT.sub(lambda found: " " * len(found[0]), source)


def _line_column(source: str, offset: int) -> tuple[int, int]:
    return 1 + source.count("\n", 0, offset), offset - source.rfind("\n", 0, offset)


def _offset(source: str, name: str) -> int:
    found = re.search(rf"(?<![\w.]){re.escape(name)}\b", _without_texts(source))
    found = found or re.search(rf"\b{re.escape(name)}\b", _without_texts(source))
    return found.start() if found else 0
