from __future__ import annotations

import copy
import enum
import math
import pickle
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError, create_model

from stanchion.decisions import Signal
from stanchion.events import (
    CircuitOpened,
    ControlEvent,
    Event,
    LLMPromptSent,
    NodeStarted,
    PolicyVetoed,
    UtcTime,
    WaveStarted,
    event_types,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
T = TypeVar("T")
create: Any = create_model  # its overloads have no place for fields that come as a dict


class Call(Event, type="test_events:call"):
    tenant: str
    model: str
    tokens: int = 1
    due: UtcTime | None = None


# ---------------------------------------------------------------------------------- the common


def test_an_event_has_a_type_an_id_a_time_and_empty_correlation():
    before = datetime.now(UTC)
    event = WaveStarted(wave=0)
    assert event.event_type == WaveStarted.event_type == "wave:started"
    assert before <= event.timestamp <= datetime.now(UTC)
    assert event.timestamp.tzinfo is UTC
    assert (event.pipeline, event.run_id, event.node, event.tenant) == (None,) * 4
    assert event.metadata == {}
    assert event.metadata is not WaveStarted(wave=0).metadata


def test_an_event_is_frozen():
    event = Call(tenant="acme", model="m1")
    with pytest.raises(ValidationError, match="frozen"):
        event.tokens = 2  # pyright: ignore[reportAttributeAccessIssue]
    assert event.tokens == 1


def test_an_event_is_hashable_equal_by_its_fields_copied_and_pickled():
    event = Call(tenant="acme", model="m1", metadata={"k": [1]})
    again = pickle.loads(pickle.dumps(event))
    assert again == event
    assert type(again) is Call
    assert {event, again, copy.copy(event), copy.deepcopy(event)} == {event}
    assert event != Call(tenant="acme", model="m1", metadata={"k": [1]})


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"tenant": 3}, "tenant", "3"),
        ({"tokens": "9"}, "tokens", "'9'"),
        ({"tokens": 9.0}, "tokens", "9.0"),
        ({"tokens": True}, "tokens", "True"),
        ({"token": 9}, "token", "9"),
        ({"id": ""}, "id", "''"),
        ({"id": "a\nb"}, "id", r"'a\\nb'"),
        ({"id": 7}, "id", "7"),
        ({"node": b"n"}, "node", "b'n'"),
        ({"tenant": "\ud800"}, "tenant", r"'\\ud800'"),
        ({"timestamp": "2026-01-31T12:00:00Z"}, "timestamp", "'2026-01-31T12:00:00Z'"),
        ({"metadata": [1]}, "metadata", r"\[1\]"),
    ],
)
def test_a_wrong_field_is_refused_by_name_and_value(fields: Any, field: str, value: str):
    with pytest.raises(ValidationError, match=rf"^1 validation error for Call\n{field}\n.*{value}"):
        Call(**{"tenant": "acme", "model": "m1", **fields})


def test_a_missing_field_is_refused_by_name():
    with pytest.raises(ValidationError, match=r"Call\ntenant\n  Field required"):
        Call(model="m1")  # pyright: ignore[reportCallIssue]


def test_text_of_any_other_kind_is_taken_as_it_is():
    tenant = "a}{b:\n\0" + "\U0001f600" + "x" * 1_000_000
    assert Call(tenant=tenant, model="").tenant == tenant


# ------------------------------------------------------------------------------------ the time


@pytest.mark.parametrize("zone", [timezone(timedelta(hours=2)), timezone(timedelta(minutes=-210))])
def test_a_time_of_another_zone_is_converted(zone: timezone):
    there = NOON.astimezone(zone)
    event = Call(tenant="a", model="m", timestamp=there, due=there)
    for moment in (event.timestamp, event.due):
        assert moment == there
        assert moment is not None
        assert moment.tzinfo is UTC


@pytest.mark.parametrize("field", ["timestamp", "due"])
def test_a_naive_time_is_refused_with_the_remedy(field: str):
    naive = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - what is refused
    with pytest.raises(
        ValidationError, match=rf"{field}.*\n.*with a time zone.*datetime\.now\(UTC\)"
    ):
        Call(**{"tenant": "a", "model": "m", field: naive})


def test_a_time_that_no_utc_year_has_is_refused():
    east = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(ValidationError, match="between the years 1 and 9999"):
        WaveStarted(wave=0, timestamp=east)


# -------------------------------------------------------------------------------- the metadata


class Colour(enum.StrEnum):
    RED = "red"


def test_metadata_is_a_plain_copy():
    inner: list[Any] = [1, 2.5, None, True, "ü\0"]
    given: dict[str, Any] = {"a": {"b": inner}, "c": Colour.RED, "d": OrderedDict(e=inner)}
    event = WaveStarted(wave=0, metadata=given)
    assert event.metadata == given
    assert type(event.metadata["c"]) is str
    assert type(event.metadata["d"]) is dict
    inner.append("later")
    assert event.metadata["a"]["b"] == event.metadata["d"]["e"] == [1, 2.5, None, True, "ü\0"]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: dict[str, Any] = {}
    # Two ways round: a check that only counts levels would walk 2^100 of them.
    value["a"] = value["b"] = value
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ((1, 2), r"at \['k'\]: tuple is no JSON type"),
        ([0, {"x": math.nan}], r"at \['k'\]\[1\]\['x'\]: nan is not finite"),
        (-math.inf, "-inf is not finite"),
        (b"x", "bytes is no JSON type"),
        ({1: "x"}, r"at \['k'\]: the key 1 is int"),
        (NOON, "datetime is no JSON type"),
        ("a\ud800b", r"a lone surrogate in '\\ud800'"),
        ({"\udc00": 1}, "a lone surrogate"),
        (nested(100), "nested deeper than 100 levels"),
        (nested(100_000), "nested deeper than 100 levels"),
        (circular(), "a dict that holds itself"),
        pytest.param(10**5000, "an integer of more than 4300 digits", id="long-integer"),
        (object(), "object is no JSON type"),
    ],
)
def test_metadata_that_json_cannot_carry_is_refused_with_its_place(value: Any, problem: str):
    with pytest.raises(ValidationError, match=rf"(?s)metadata\n.*{problem}"):
        WaveStarted(wave=0, metadata={"k": value})


def test_metadata_takes_what_json_carries_to_the_limit():
    shared = [1]
    value = {"deep": nested(99), "twice": [shared, shared], "long": 10**4000, "tiny": 5e-324}
    assert WaveStarted(wave=0, metadata=value).metadata == value


# ------------------------------------------------------------------------------------ built-in


def test_built_in_events_refuse_nonsense():
    for make in (
        lambda: WaveStarted(wave=-1),
        lambda: NodeStarted(node="n", attempt=0),
        lambda: LLMPromptSent(model="m", tokens=-1),
        lambda: LLMPromptSent(model="m", dollars=math.nan),
        lambda: LLMPromptSent(model="m", dollars=-0.5),
        lambda: NodeStarted(node=None),  # pyright: ignore[reportArgumentType]
        lambda: PolicyVetoed(
            policy="p",
            reason="r",
            asked_type="a:b",
            asked_id="1",
            signal="skip",  # pyright: ignore[reportArgumentType]
        ),
    ):
        with pytest.raises(ValidationError):
            make()


def test_control_events_share_a_class():
    event = PolicyVetoed(
        policy="p", reason="r", asked_type="llm:call", asked_id="1", signal=Signal.SKIP
    )
    assert isinstance(event, ControlEvent)
    assert event.event_type == "policy:vetoed"
    assert issubclass(CircuitOpened, ControlEvent)


def test_every_type_of_the_design_is_there():
    built_in = {
        name
        for name, cls in event_types().items()
        if cls.__module__.startswith("stanchion.events.")
    }
    assert built_in == {
        "pipeline:started",
        "pipeline:completed",
        "pipeline:failed",
        "wave:started",
        "wave:completed",
        "node:started",
        "node:completed",
        "node:failed",
        "node:skipped",
        "llm:prompt",
        "llm:response",
        "tool:called",
        "tool:completed",
        "policy:vetoed",
        "policy:failed",
        "policy:changed",
        "circuit:opened",
        "circuit:halfopened",
        "circuit:closed",
        "quota:threshold",
        "store:state_lost",
    }
