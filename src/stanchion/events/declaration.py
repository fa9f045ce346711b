"""What the declaration of an event class must look like, checked when the class is made."""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    ForwardRef,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from stanchion.errors import ConfigError
from stanchion.events.registry import full_name

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

TYPE_NAME: Final = re.compile(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")
_EXAMPLE: Final = 'lower-case "namespace:action" such as "llm:call"'
_FIXED: Final = ("id", "timestamp", "metadata")
_TEXTS: Final = ("pipeline", "run_id", "node", "tenant")


def declared_type(cls: type[BaseModel], keywords: dict[str, Any]) -> str:
    """Get the event type that the class keywords name, "" where there is none.

    Raises:
        ConfigError: the type is malformed, said elsewhere, or stands beside unknown keywords.
    """
    if "event_type" in vars(cls):
        raise ConfigError(
            f"{full_name(cls)} sets event_type in its body: say it in the class line, "
            f'class {cls.__name__}(Event, type="namespace:action")'
        )
    unknown = sorted(keywords.keys() - {"type"})
    if unknown:
        raise ConfigError(
            f"{full_name(cls)} has the class keyword {unknown[0]}={keywords[unknown[0]]!r}: "
            "an event class takes type= and pydantic's configuration"
        )
    if "type" not in keywords:
        return ""
    event_type = keywords["type"]
    if not isinstance(event_type, str) or TYPE_NAME.fullmatch(event_type) is None:
        raise ConfigError.of(f"{full_name(cls)} type", event_type, f"expected {_EXAMPLE}")
    return event_type


def check_fields(cls: type[BaseModel], base: type[BaseModel], event_type: str) -> None:
    """Check the collected fields of `cls` against those of `base`, which is `Event`.

    Raises:
        ConfigError: a field hides something of `Event` or changes what it means, the class is not
            frozen, or a class with a type is generic.
    """
    name = full_name(cls)
    if not cls.model_config.get("frozen"):
        raise ConfigError(f"{name} has frozen=False: events are frozen")
    parameters: tuple[Any, ...] = cls.__pydantic_generic_metadata__["parameters"]
    if event_type and parameters:
        raise ConfigError(
            f"{name} has type={event_type!r} and the type variable {parameters[0]}: a type stands "
            "for one set of fields, so give it to a subclass that names the variables"
        )
    for field, info in cls.model_fields.items():
        ours = base.model_fields.get(field)
        if ours is None:
            if field in vars(base):
                raise ConfigError(f"{name} has a field {field!r}, which hides Event.{field}")
        elif field in _FIXED and _meaning(info) != _meaning(ours):
            raise ConfigError(f"{name} declares {field!r} anew: every event has the same {field}")
        elif field in _TEXTS and not _is_text(info.annotation):
            raise ConfigError(
                f"{name} declares {field!r} as {info.annotation!r}: it can only be narrowed to "
                "str, a subclass of it, or a Literal of strings, each with or without None"
            )


def _meaning(info: FieldInfo) -> tuple[object, ...]:
    return info.annotation, info.metadata, info.default, info.default_factory


def _is_text(annotation: Any) -> bool:
    if isinstance(annotation, TypeVar | ForwardRef | str):
        return True  # not known yet
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_text(get_args(annotation)[0])
    if origin is Literal:
        return all(isinstance(value, str | None) for value in get_args(annotation))
    if origin in {Union, UnionType}:
        return all(map(_is_text, get_args(annotation)))
    for inner in ("__supertype__", "__value__"):  # a NewType, a type alias
        if hasattr(annotation, inner):
            return _is_text(getattr(annotation, inner))
    return annotation is None or (
        isinstance(annotation, type) and issubclass(annotation, str | NoneType)
    )
