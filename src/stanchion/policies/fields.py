"""Reading an event's fields by name, checked against the event class beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, GetPydanticSchema, JsonValue

from stanchion.errors import ConfigError, shown
from stanchion.events.jsonvalue import json_copy

if TYPE_CHECKING:
    from stanchion.events import Event

Reader = Callable[["Event"], object]
MAX_COST = 2**53 - 1
_LEAVES = (str, bytes, int, float, list, tuple)
#: JSON values by name, copied when they are declared.
Data = Annotated[dict[str, JsonValue], AfterValidator(json_copy)]


def either(kind: type[Enum]) -> GetPydanticSchema:
    """Get what makes a field of an enum take its members' texts as well, and keep the member."""
    return GetPydanticSchema(lambda _, handler: handler(kind))


def as_tuple(value: object) -> object:
    """Get a list as a tuple, for a field that takes either and keeps what cannot be changed."""
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def handed_out(data: Data | None) -> Data | None:
    """Get declared data for a verdict, whose reader may do with it what he likes; None for none."""
    return json_copy(data) if data else None


def reader(owner: str, field: str, path: str, event_class: type[Event]) -> Reader:
    """Get a function that reads `path` (a field, dotted into nested models and mappings).

    Raises:
        ConfigError: the event class has no such field; the text lists those that it has.
    """
    first, *rest = path.split(".")
    model: object = event_class
    names = [first, *rest]
    for position, name in enumerate(names):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        info = model.model_fields.get(name)
        if info is None:
            known = ", ".join(sorted(model.model_fields))
            raise ConfigError(
                f"{owner}: {field}={path!r}: {model.__name__} has no field {name!r}; it has {known}"
            )
        model = _inner(info.annotation)
        if position + 1 < len(names) and not _can_hold(model):
            raise ConfigError(
                f"{owner}: {field}={path!r}: {name!r} of {event_class.__name__} holds no fields"
            )
    return attrgetter(first) if not rest else _nested(f"{owner}: {field}={path!r}", first, rest)


def _inner(annotation: object) -> object:
    """Get the model or mapping inside an annotation such as `User | None`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation
    for argument in (*get_args(annotation), get_origin(annotation)):
        if _can_hold(argument):
            return argument
    return annotation


def _can_hold(kind: object) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, BaseModel | Mapping)


def _nested(place: str, first: str, rest: list[str]) -> Reader:
    def read(event: Event) -> object:
        value: object = getattr(event, first)
        for name in rest:
            if isinstance(value, Mapping):
                value = cast("Mapping[str, object]", value).get(name)
            elif value is not None:
                # What stands inside a mapping was chosen by whoever made the event.
                if isinstance(value, _LEAVES) or not hasattr(value, name):
                    kind = type(cast("object", value)).__name__
                    raise ConfigError(
                        f"{place}: the event has no {name!r} in what is of type {kind}"
                    )
                value = getattr(value, name)
        return value

    return read


def given(event: Event, path: str) -> bool:
    """Whether whoever made the event said what `path` holds, rather than leaving it to a default.

    What is inside a mapping was put there by somebody.
    """
    holder: object = event
    for name in path.split("."):
        if not isinstance(holder, BaseModel):
            return True
        if name not in holder.model_fields_set:
            return False
        holder = getattr(holder, name)
    return True


def subject_text(owner: str, path: str, value: object, *, private: bool = False) -> str | None:
    """Get a `by` field's value as text, None for an absent one.

    Raises:
        ConfigError: the value is a container or a float, which make no stable subject, or a number
            of more digits than Python writes. The text shows it, unless it is `private`.
    """
    if type(value) is str or value is None:
        return value
    if isinstance(value, Enum):
        value = value.value
    with suppress(ValueError):
        if isinstance(value, bool | int | str):
            return str(value)
    seen = f"<{type(value).__name__}>" if private else shown(value)
    raise ConfigError(
        f"{owner}: by={path!r}: the event holds {seen}; expected text, a whole number, "
        "an enum or None"
    )


def cost_number(owner: str, path: str, value: object) -> int:
    """Get a cost as a whole number.

    Raises:
        ConfigError: not a whole number from 0 to 2^53 - 1; amounts with fractions, such as money,
            are counted in a smaller unit.
    """
    if type(value) is int and 0 <= value <= MAX_COST:
        return value
    raise ConfigError(
        f"{owner}: cost {path!r} is {shown(value)}; expected a whole number from 0 to 2^53 - 1 "
        "(count money in millionths)"
    )
