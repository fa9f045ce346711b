"""Events that users declare, as CloudEvents: they come back as they were, or are refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_validator

from stanchion.decisions import CircuitState
from stanchion.events import (
    CircuitOpened,
    ControlEvent,
    Event,
    InvalidEvent,
    LLMPromptSent,
    PipelineStarted,
    UnknownEvent,
)
from tests.unit.events_support import (
    FLOATS,
    FOREIGN,
    MOMENTS,
    NOON,
    there_and_back,
)

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    DEEP = 2


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    at: datetime


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    raw: bytes
    when: datetime
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Plain:
    raw: bytes
    counts: dict[Word, int]


class Rich(Event, type="test_custom:rich"):
    raw: bytes
    inner: Inner
    more: dict[str, list[Inner]]
    plain: Plain
    colour: Colour
    level: Level
    word: Word
    pair: tuple[int, str | None]
    kinds: frozenset[Colour]
    by_number: dict[int, Decimal]
    naive: datetime
    zoned: datetime
    day: date
    hour: time
    span: timedelta
    uid: UUID
    number: int | float
    called: int = Field(alias="theName")
    other: int = Field(validation_alias="readAs", serialization_alias="writtenAs")

    @computed_field
    @property
    def doubled(self) -> int:
        return self.called * 2


INNERS = st.builds(
    Inner,
    raw=st.binary(),
    when=MOMENTS,
    points=st.lists(st.builds(Point, x=st.integers(), at=MOMENTS), max_size=2).map(tuple),
)
NAIVE = st.datetimes()
RICH = st.fixed_dictionaries(
    {
        "raw": st.binary(),
        "inner": INNERS,
        "more": st.dictionaries(st.text(), st.lists(INNERS, max_size=2), max_size=2),
        "plain": st.builds(
            Plain,
            raw=st.binary(),
            counts=st.dictionaries(st.sampled_from(Word), st.integers(), max_size=2),
        ),
        "colour": st.sampled_from(Colour),
        "level": st.sampled_from(Level),
        "word": st.sampled_from(Word),
        "pair": st.tuples(st.integers(), st.none() | st.text()),
        "kinds": st.frozensets(st.sampled_from(Colour), max_size=1),  # JSON orders them anyhow
        "by_number": st.dictionaries(
            st.integers(), st.decimals(allow_nan=False, allow_infinity=False), max_size=2
        ),
        "naive": NAIVE,
        "zoned": MOMENTS,
        "day": st.dates(),
        "hour": st.times(),
        "span": st.timedeltas(),
        "uid": st.uuids(),
        "number": st.integers() | FLOATS,
        "theName": st.integers(),
        "readAs": st.integers(),
    }
)


@given(fields=RICH)
def test_an_event_of_a_user_comes_back_as_it_was(fields: dict[str, Any]):
    event = Rich(**fields)
    again = there_and_back(event)
    assert again == event
    assert isinstance(again, Rich)
    assert type(again.number) is type(event.number)
    assert again.zoned.utcoffset() == event.zoned.utcoffset()


class Carrier(Event, type="test_custom:carrier"):
    any_event: Event
    control: ControlEvent | None = None
    prompt: LLMPromptSent | None = None
    calls: tuple[Event, ...] = ()


def test_a_field_of_an_abstract_type_carries_any_event_below_it():
    opened = CircuitOpened(
        policy="p",
        subject="s",
        previous=CircuitState.HALF_OPEN,
        state=CircuitState.OPEN,
        generation=2,
        seq=9,
        open_until=NOON,
    )
    prompt = LLMPromptSent(model="m")
    unknown = Event.from_cloudevent(FOREIGN)
    event = Carrier(any_event=unknown, control=opened, prompt=prompt, calls=(prompt, opened))
    again = there_and_back(event)
    assert again == event
    assert isinstance(again, Carrier)
    assert type(again.control) is CircuitOpened
    document = event.to_cloudevent()
    document["data"]["control"]["data"]["seq"] = "nine"
    with pytest.raises(InvalidEvent, match=r"data\.control.*data\.seq is 'nine'"):
        Event.from_cloudevent(document)


def test_a_carried_event_that_cannot_be_written_is_named():
    event = Carrier(any_event=Loose(value=(1,)))
    with pytest.raises(InvalidEvent, match=r"data\.value is a tuple and would come back as a list"):
        event.to_cloudevent()


def test_every_kind_of_event_has_a_json_schema():
    for cls in (Carrier, LLMPromptSent, Rich, Event, UnknownEvent):
        for mode in ("validation", "serialization"):
            assert cls.model_json_schema(mode=mode)["type"] == "object"


class Base(Event, Generic[T]):
    value: T


class IntValue(Base[int], type="test_custom:int_value"):
    pass


def test_an_event_below_a_generic_one_comes_back():
    event = IntValue(value=3)
    assert there_and_back(event) == event


class Parent(BaseModel):
    size: int


class Child(Parent):
    colour: str


class Loose(Event, type="test_custom:loose"):
    value: Any = None
    either: str | datetime = ""
    either_bytes: str | bytes = ""
    parent: Parent | None = None
    counts: dict[Colour, int] = Field(default_factory=dict)
    offset: datetime = NOON


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("value", (1, 2), r"data\.value is a tuple and would come back as a list"),
        ("value", math.nan, r"data\.value is nan and would come back as None"),
        ("value", NOON, r"data\.value is datetime.* would come back as '2026-01-31T12:00:00"),
        ("value", {1: 2}, r"data\.value is a dict and would come back as a dict"),
        ("value", object(), "data does not fit JSON .*Unable to serialize unknown type"),
        ("value", "a\ud800", "data does not fit JSON .*a lone surrogate"),
        ("either", NOON, r"data\.either is datetime.* would come back as '2026"),
        ("either_bytes", b"abc", r"data\.either_bytes is b'abc' and would come back as 'YWJj'"),
        ("parent", Child(size=1, colour="red"), r"data\.parent is Child\(.* back as Parent\("),
        ("counts", {Colour.DEEP: 1}, r"data\.counts.* is '2' \(Input should be 'red' or 2\)"),
        ("offset", NOON.astimezone(timezone(timedelta(seconds=1))), r"data\.offset is datetime"),
    ],
)
def test_an_event_that_would_come_back_changed_is_not_written(field: str, value: Any, problem: str):
    event = Loose(**{field: value})
    with pytest.raises(InvalidEvent, match=problem):
        event.to_cloudevent()


def test_nesting_is_limited_going_out_too():
    value: Any = 1
    for _ in range(150):
        value = [value]
    with pytest.raises(InvalidEvent, match="nested deeper than 119 levels"):
        Loose(value=value).to_cloudevent()
    for levels in (99, 118):
        deep = json.loads("[" * levels + "]" * levels)
        event = Loose(value=deep, metadata={"k": deep} if levels == 99 else {})
        assert there_and_back(event) == event


def test_a_loose_field_comes_back_where_it_holds_json():
    event = Loose(value={"a": [1, 2.5, None, "x"]}, either="text", either_bytes="text")
    assert there_and_back(event) == event


class Hidden(Event, type="test_custom:hidden"):
    secret: str = Field(default="", exclude=True)
    masked: SecretStr | None = None


def test_an_excluded_field_stays_at_home_and_a_masked_one_is_refused():
    event = Hidden(secret="not for the wire")
    document = event.to_cloudevent()
    assert "secret" not in document["data"]
    assert Hidden.from_cloudevent(document).secret == ""
    with pytest.raises(InvalidEvent, match=r"data\.masked"):
        Hidden(masked=SecretStr("x")).to_cloudevent()


class Prefixed(Event, type="test_custom:prefixed"):
    name: str

    @field_validator("name")
    @classmethod
    def _add(cls, value: str) -> str:
        return f"x{value}"


def test_a_validator_that_changes_the_value_each_time_is_noticed():
    with pytest.raises(InvalidEvent, match=r"data\.name is 'xa' and would come back as 'xxa'"):
        Prefixed(name="a").to_cloudevent()


def test_correlation_that_was_narrowed_with_a_default_comes_back():
    class Nightly(Event, type="test_custom:nightly"):
        pipeline: str | None = "nightly"

    for event in (Nightly(), Nightly(pipeline=None), Nightly(pipeline="")):
        assert there_and_back(event) == event
    assert PipelineStarted(pipeline="").to_cloudevent()["data"]["pipeline"] == ""


def test_a_redefined_class_reads_its_own_type_and_the_new_one_is_found():
    def define() -> type[Event]:
        class Cell(Event, type="test_custom:cell"):
            pass

        return Cell

    old, new = define(), define()
    document = old().to_cloudevent()
    assert type(Event.from_cloudevent(document)) is new
    assert type(old.from_cloudevent(document)) is old
