"""`Event`: a frozen, strictly validated record with an id, a time and a registered type."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Self,
    Unpack,
    cast,
    dataclass_transform,
    final,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from stanchion.events import cloudevents, declaration
from stanchion.events.cloudevents import InvalidEvent, described
from stanchion.events.fields import EventId, JsonObject, UtcTime, no_members, now
from stanchion.events.ids import uuid7
from stanchion.events.jsonvalue import NotJson, json_copy
from stanchion.events.registry import Registry

_registry: Final[Registry["Event"]] = Registry()
# The fields that CloudEvents has attributes for, and the attributes.
_ATTRIBUTES: Final = {"id": "id", "timestamp": "time"}
_CORRELATION: Final = ("pipeline", "run_id", "node", "tenant")
# Under this name, beside the fields, an event has the attributes that its document had and that it
# would not write of itself; pydantic neither compares nor shows nor writes it, and copies it.
_KEPT: Final = "_kept"
_DOCUMENT: Final = core_schema.dict_schema(core_schema.str_schema())


def event_types() -> Mapping[str, type["Event"]]:
    """Get every registered event type and its class, as they are now."""
    return _registry.snapshot()


def registered(event_type: str) -> type["Event"] | None:
    """Get the class that stands for `event_type` now, None where there is none."""
    return _registry.get(event_type)


def _document_of(event: "Event") -> dict[str, Any]:
    return event.to_cloudevent()


class _Keywords(ConfigDict, total=False):
    type: str


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr)
)
class _EventMeta(ModelMetaclass):
    """Tells type checkers that every event is frozen, which pydantic has no way to say once."""


MYPY = False  # mypy takes this name for True


class Event(BaseModel, metaclass=_EventMeta):
    """One thing that happened or is about to: frozen, strict, with an id and a time in UTC.

    Name the type where you subclass: `class ModelCall(Event, type="llm:call")`. That registers it,
    so that `Event.from_cloudevent` finds the class. A type belongs to one class; the same class
    defined again (a notebook cell, a reload) takes the place of the earlier one. A subclass without
    `type=` is abstract, whatever its parent is: it shares fields and serves as a selector, and
    cannot be created. A field of an abstract type carries any event below it.

    `id` is a UUID of version 7 that rises within the process; an id given by hand can be any
    non-empty text without control characters. `timestamp` is when the event was made; a naive time
    is refused and another zone converted. `metadata` takes JSON values only, and is copied.
    Subclasses may narrow `pipeline`, `run_id`, `node` and `tenant`, as in `tenant: str`.

    Raises:
        ValidationError: a field is missing, unknown, or not of its type (pydantic's error).
        ConfigError: the declaration of a subclass cannot work.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        str_min_length=0,  # with any constraint at all, pydantic refuses lone surrogates
    )

    event_type: ClassVar[str] = ""

    id: EventId = Field(default_factory=uuid7)
    timestamp: UtcTime = Field(default_factory=now)
    if TYPE_CHECKING and not MYPY:
        # Pyright does not let `tenant: str` in a subclass take away the default. So it sees fields
        # that are not parameters, and parameters of the same names that belong to other fields.
        pipeline: str | None = Field(default=None, init=False)
        run_id: str | None = Field(default=None, init=False)
        node: str | None = Field(default=None, init=False)
        tenant: str | None = Field(default=None, init=False)
        _pipeline: str | None = Field(default=None, alias="pipeline")
        _run_id: str | None = Field(default=None, alias="run_id")
        _node: str | None = Field(default=None, alias="node")
        _tenant: str | None = Field(default=None, alias="tenant")
    else:
        pipeline: str | None = None
        run_id: str | None = None
        node: str | None = None
        tenant: str | None = None
    metadata: JsonObject = Field(default_factory=no_members)

    def __init_subclass__(cls, **keywords: Unpack[_Keywords]) -> None:
        """Take the class keyword `type=`; pydantic has taken its own."""
        cls.event_type = declaration.declared_type(cls, dict(keywords))
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        declaration.check_fields(cls, Event, cls.event_type)
        if cls.event_type:
            _registry.add(cls.event_type, cls)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        if cls.event_type:
            return handler(source)
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_plain_validator_function(
                cls.from_cloudevent, json_schema_input_schema=_DOCUMENT
            ),
            python_schema=core_schema.no_info_plain_validator_function(cls._instance),
            serialization=core_schema.plain_serializer_function_ser_schema(
                _document_of, return_schema=_DOCUMENT
            ),
        )

    @classmethod
    def _instance(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        raise PydanticCustomError(
            "abstract_event",
            "{name} has no type, so it cannot be created: declare a subclass that has one, "
            'class MyEvent({name}, type="namespace:action")',
            {"name": cls.__name__},
        )

    def __hash__(self) -> int:
        return hash(self.id)

    def to_cloudevent(self) -> dict[str, Any]:
        """Get the event as a CloudEvents 1.0 JSON object that `from_cloudevent` reads back equal.

        `data` has every field but the id and the time. `source` is made of the pipeline, `subject`
        of the run and the node. Attributes that the event was read with, it is written with.

        Raises:
            InvalidEvent: a field would not come back as it is, such as a tuple in an `Any`.
        """
        try:
            data: dict[str, Any] = json_copy(
                self.model_dump(
                    mode="json",
                    by_alias=False,
                    exclude=set(_ATTRIBUTES),
                    round_trip=True,
                    warnings="error",
                ),
                cloudevents.DEEPEST_DOCUMENT - 1,  # the document is the first
            )
            again = self._of_fields(
                {**data, "id": self.id, "timestamp": self.timestamp.isoformat()}
            )
        except ValidationError as error:
            raise _invalid_fields(type(self), error) from error
        except ValueError as error:  # pydantic's, NotJson, or an encoding's
            problem = " ".join(str(error).split())
            raise InvalidEvent("data", f"does not fit JSON ({problem})", _LOSSLESS) from error
        if again != self:
            self._refuse_loss(again)
        fields = type(self).model_fields
        for name in _CORRELATION:
            if data[name] is None and fields[name].default is None:
                del data[name]
        if not data["metadata"]:
            del data["metadata"]
        kept: dict[str, Any] = vars(self).get(_KEPT, {})
        if "time" in kept and cloudevents.parse_time(kept["time"]) != self.timestamp:
            kept = {name: value for name, value in kept.items() if name != "time"}
        attributes = {**self._attributes(), **kept}
        document = {name: value for name, value in attributes.items() if value is not None}
        document["data"] = data
        return document

    @classmethod
    def from_cloudevent(cls, document: dict[str, Any] | str | bytes) -> Self:
        """Get the event that a CloudEvents 1.0 JSON document describes.

        The document's type decides the class; one that no class is registered for is read as
        `UnknownEvent`. Called on a subclass, only that class and those below it are accepted. An
        event without `time` gets the time of reading.

        Raises:
            InvalidEvent: the document breaks a rule of CloudEvents, is of another type than the
                class it was asked of, or its data is not what the type declares.
        """
        parsed = cloudevents.parse(document)
        event_type: str = parsed["type"]
        kind = cls if event_type == cls.event_type else registered(event_type) or UnknownEvent
        if not issubclass(kind, cls):
            accepted = repr(cls.event_type) if cls.event_type else "the type of a class below it"
            raise InvalidEvent("type", f"is {described(event_type)} for {cls.__name__}", accepted)
        return kind._of_document(parsed)  # noqa: SLF001 - a class of this family

    @classmethod
    def _of_document(cls, parsed: dict[str, Any]) -> Self:
        fields = cloudevents.object_data(parsed)
        for name, attribute in _ATTRIBUTES.items():
            if name in fields:
                raise InvalidEvent(
                    f"data.{name}", f"is {described(fields[name])}", f"the attribute {attribute}"
                )
        fields["id"] = parsed["id"]
        time = parsed.get("time")
        if time is not None:
            fields["timestamp"] = cloudevents.parse_time(time).isoformat()
        try:
            event = cls._of_fields(fields)
        except ValidationError as error:
            raise _invalid_fields(cls, error) from error
        own = cls._attributes(event)
        kept = {
            name: parsed.get(name)
            for name in {**own, **parsed}
            if name not in cloudevents.PAYLOAD and parsed.get(name) != own.get(name)
        }
        if time is None:
            kept.pop("time", None)
        if kept:
            vars(event)[_KEPT] = kept
        return event

    @classmethod
    def _of_fields(cls, fields: dict[str, Any]) -> Self:
        # Only from JSON text does pydantic, being strict, take a str for a datetime or an enum.
        return cls.model_validate_json(json.dumps(fields), by_alias=False, by_name=True)

    def _refuse_loss(self, again: Self) -> None:
        for name, info in type(self).model_fields.items():
            mine, theirs = getattr(self, name), getattr(again, name)
            if not info.exclude and mine != theirs:
                problem = f"is {described(mine)} and would come back as {described(theirs)}"
                raise InvalidEvent(f"data.{name}", problem, _LOSSLESS)

    def _attributes(self) -> dict[str, Any]:
        return {
            "specversion": cloudevents.SPEC_VERSION,
            "id": self.id,
            "source": cloudevents.path("/stanchion", self.pipeline),
            "type": self.event_type,
            "subject": self._subject(),
            "time": cloudevents.write_time(self.timestamp),
            "datacontenttype": cloudevents.JSON_TYPE,
        }

    def _subject(self) -> str | None:
        run = "" if self.run_id is None else cloudevents.path("runs", self.run_id)
        node = "" if self.node is None else cloudevents.path("nodes", self.node)
        return "/".join(filter(None, (run, node))) or None


@final
class UnknownEvent(Event):
    """An event of a type that no class here is registered for; it keeps its whole document.

    `event_type` is the document's type. `pipeline`, `run_id`, `node`, `tenant` and `metadata` are
    those of its data, where that has them in the form that every event has. Two are equal when
    their documents are.
    """

    document: dict[str, Any]

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        return handler(source)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "document" not in value:
            return cast("object", value)
        given = cast("dict[str, Any]", value)
        derived = _unknown_fields(cloudevents.parse(given["document"]))
        derived.update((name, given[name]) for name in given.keys() - derived.keys())
        return derived

    @model_validator(mode="after")
    def _take_type(self) -> Self:
        # The instance has the type that its class cannot have.
        vars(self)["event_type"] = self.document["type"]
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnknownEvent) and self.document == other.document

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def data(self) -> Any:
        """The payload: any JSON value, bytes where it was binary, None where there is none."""
        return cloudevents.payload(self.document)

    @classmethod
    def from_cloudevent(cls, document: dict[str, Any] | str | bytes) -> Self:
        """Get any document as it is, also one of a type that a class is registered for.

        Raises:
            InvalidEvent: the document breaks a rule of CloudEvents.
        """
        return cls._of_document(cloudevents.parse(document))

    def to_cloudevent(self) -> dict[str, Any]:
        """Get a document equal to the one that was read."""
        return json_copy(self.document, cloudevents.DEEPEST_DOCUMENT)

    @classmethod
    def _of_document(cls, parsed: dict[str, Any]) -> Self:
        event = cls.model_construct(**_unknown_fields(parsed))
        vars(event)["event_type"] = parsed["type"]
        return event


_LOSSLESS: Final = "fields that come back from JSON as they were"


def _unknown_fields(parsed: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": parsed["id"], "document": parsed}
    if parsed.get("time") is not None:
        fields["timestamp"] = cloudevents.parse_time(parsed["time"])
    data: Any = parsed.get("data")
    if isinstance(data, dict):
        members = cast("dict[str, Any]", data)
        texts = {name: members.get(name) for name in _CORRELATION}
        fields.update((name, text) for name, text in texts.items() if isinstance(text, str))
        if isinstance(members.get("metadata"), dict):
            with suppress(NotJson):  # a document may be deeper
                fields["metadata"] = json_copy(members["metadata"])
    return fields


def _invalid_fields(cls: type[Event], error: ValidationError) -> InvalidEvent:
    first, *others = error.errors(include_url=False, include_context=False)
    place = [str(step) for step in first["loc"]]
    attribute = _ATTRIBUTES.get(place[0]) if place else None
    value = "missing" if first["type"] == "missing" else described(first["input"])
    more = f", and {len(others)} more" if others else ""
    return InvalidEvent(
        attribute or ".".join(["data", *place]),
        f"is {value} ({first['msg']}{more})",
        f"what {cls.__name__} declares",
    )
