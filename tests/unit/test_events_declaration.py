from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, NewType, TypeVar

import pytest
from pydantic import ConfigDict, Field, ValidationError, create_model

from stanchion.errors import ConfigError
from stanchion.events import (
    ControlEvent,
    Event,
    LLMPromptSent,
    event_types,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
T = TypeVar("T")
create: Any = create_model  # its overloads have no place for fields that come as a dict


class Call(Event, type="test_declaration:call"):
    tenant: str


class Colour(enum.StrEnum):
    RED = "red"


def test_a_subclass_is_registered_under_its_type():
    assert event_types()["test_declaration:call"] is Call
    assert event_types()["llm:prompt"] is LLMPromptSent


def test_the_table_of_types_is_a_snapshot():
    snapshot = event_types()

    class Later(Event, type="test_declaration:later"):
        pass

    assert "test_declaration:later" not in snapshot
    assert event_types()["test_declaration:later"] is Later
    with pytest.raises(TypeError):
        snapshot["test_declaration:more"] = Call  # pyright: ignore[reportIndexIssue]


def test_a_type_that_another_class_has_is_refused_and_both_are_named():
    with pytest.raises(
        ConfigError,
        match=r"test_declaration:call.*\.Rival: taken by .*test_events_declaration\.Call",
    ):

        class Rival(Event, type="test_declaration:call"):
            pass

    assert event_types()["test_declaration:call"] is Call


def test_the_same_class_defined_again_takes_the_place_of_the_earlier():
    def define(default: int) -> type[Event]:
        class Cell(Event, type="test_declaration:cell"):
            size: int = default

        return Cell

    first, second = define(1), define(2)
    assert first is not second
    assert event_types()["test_declaration:cell"] is second


@pytest.mark.parametrize(
    "event_type",
    [
        "",
        "call",
        "llm:",
        ":call",
        "LLM:call",
        "llm:Call",
        "llm.call",
        "llm:call\n",
        "llm:a:b",
        "1:a",
        7,
    ],
)
def test_a_malformed_type_is_refused(event_type: Any):
    with pytest.raises(ConfigError, match=r'Odd type=.*expected lower-case "namespace:action"'):

        class Odd(Event, type=event_type):
            pass


def test_a_subclass_without_a_type_is_abstract_and_says_how_to_have_one():
    class Abstract(Event):
        size: int

    class Concrete(Abstract, type="test_declaration:concrete"):
        pass

    class Below(Concrete):
        pass

    for abstract in (Event, Abstract, Below, ControlEvent):
        assert abstract.event_type == ""
        with pytest.raises(
            ValidationError, match=rf"{abstract.__name__} has no type, so it cannot be created"
        ):
            abstract(size=1)  # pyright: ignore[reportCallIssue]
        with pytest.raises(ValidationError, match="has no type"):
            abstract.model_validate({"size": 1})
    event = Concrete(size=1)
    assert Abstract.model_validate(event) is event


def test_a_misplaced_type_or_keyword_is_refused():
    with pytest.raises(ConfigError, match=r"sets event_type in its body: say it in the class line"):

        class Body(Event):
            event_type = "test_declaration:body"

    with pytest.raises(ConfigError, match=r"class keyword tpye='a:b'.*takes type="):

        class Misspelt(Event, tpye="a:b"):
            pass


def test_an_event_cannot_be_made_changeable():
    with pytest.raises(ConfigError, match=r"Loose has frozen=False"):

        class Loose(Event, type="test_declaration:loose", frozen=False):  # pyright: ignore[reportGeneralTypeIssues]
            pass

    with pytest.raises(ConfigError, match=r"Looser has frozen=False"):

        class Looser(Event, type="test_declaration:looser"):
            model_config = ConfigDict(frozen=False)

    assert "test_declaration:loose" not in event_types()


Tenant = NewType("Tenant", str)


def test_correlation_can_be_narrowed():
    class Narrow(Event, type="test_declaration:narrow"):
        pipeline: Literal["nightly", "hourly"] | None = None
        run_id: Annotated[str, Field(min_length=3)]
        node: Colour = Colour.RED
        tenant: Tenant

    event = Narrow(run_id="abc", tenant=Tenant("acme"))
    assert (event.run_id, event.node, event.tenant) == ("abc", "red", "acme")
    with pytest.raises(ValidationError, match="run_id"):
        Narrow(run_id="a", tenant=Tenant("acme"))


@pytest.mark.parametrize(
    ("field", "annotation", "default", "problem"),
    [
        ("id", int, 1, "declares 'id' anew"),
        ("id", str, "x", "declares 'id' anew"),
        ("timestamp", datetime, NOON, "declares 'timestamp' anew"),
        ("metadata", dict[str, str], {}, "declares 'metadata' anew"),
        ("tenant", int, 1, "declares 'tenant' as <class 'int'>: it can only be narrowed to str"),
        ("node", str | int, "x", "declares 'node'"),
        ("pipeline", Literal["a", 1], "a", "declares 'pipeline'"),
        ("run_id", Any, None, "declares 'run_id'"),
    ],
)
def test_a_field_that_every_event_has_cannot_be_redeclared(
    field: str, annotation: Any, default: Any, problem: str
):
    with pytest.raises(ConfigError, match=rf"Shadow {problem}"):
        create(
            "Shadow",
            __base__=Event,
            __cls_kwargs__={"type": "test_declaration:shadow"},
            **{field: (annotation, default)},
        )


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")  # pydantic says it too
def test_a_field_cannot_hide_what_every_event_has():
    with pytest.raises(ConfigError, match=r"Hide has a field 'event_type', which hides Event\."):

        class Hide(Event, type="test_declaration:hide"):
            event_type: str

    with pytest.raises(ConfigError, match=r"has a field 'to_cloudevent', which hides Event\."):

        class HideToo(Event, type="test_declaration:hide"):
            to_cloudevent: str

    assert "test_declaration:hide" not in event_types()


def test_a_generic_event_gets_its_type_where_its_variables_are_named():
    with pytest.raises(ConfigError, match=r"Typed has type=.*and the type variable ~T"):

        class Typed(Event, Generic[T], type="test_declaration:typed"):
            value: T

    class Box(Event, Generic[T]):
        value: T

    class IntBox(Box[int], type="test_declaration:int_box"):
        pass

    assert IntBox(value=1).value == 1
    with pytest.raises(ValidationError, match=r"IntBox\nvalue\n.*valid integer"):
        IntBox(value="1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValidationError, match=r"Box\[int\] has no type"):
        Box[int](value=1)


def test_a_class_made_by_a_call_is_an_event_too():
    made = create(
        "Made", __base__=Event, __cls_kwargs__={"type": "test_declaration:made"}, size=(int, ...)
    )
    assert event_types()["test_declaration:made"] is made
    assert made(size=2).event_type == "test_declaration:made"


def test_a_field_can_name_a_class_that_comes_later():
    class Early(Event, type="test_declaration:early"):
        late: Late

    assert Early(late=Late(size=1)).late.size == 1


class Late(Event, type="test_declaration:late"):
    size: int
