"""The built-in events as CloudEvents: what goes out comes back, and others can read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanchion.decisions import CircuitState, Signal, Verdict
from stanchion.events import (
    CircuitOpened,
    Event,
    InvalidEvent,
    LLMPromptSent,
    NodeCompleted,
    NodeStarted,
    PolicyVetoed,
    ToolCalled,
    WaveStarted,
    event_types,
)
from tests.unit.events_support import (
    FLOATS,
    IDS,
    JSON,
    MOMENTS,
    NOON,
    assert_official,
    there_and_back,
)

T = TypeVar("T")


VERDICTS = st.builds(
    Verdict,
    policy=st.text(),
    allowed=st.booleans(),
    reason=st.text(),
    limit=st.none() | st.integers(),
    remaining=st.none() | st.integers(),
    retry_after=st.none() | FLOATS,
    reset_after=st.none() | FLOATS,
    enforced=st.booleans(),
)
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    bool: st.booleans(),
    int: st.integers(1, 2**70),
    float: st.floats(0, allow_nan=False, allow_infinity=False),
    Any: JSON,
    dict[str, Any]: st.dictionaries(st.text(), JSON, max_size=4),
    datetime: MOMENTS,
    Signal: st.sampled_from(Signal),
    CircuitState: st.sampled_from(CircuitState),
    tuple[str, ...]: st.lists(st.text(), max_size=4).map(tuple),
    tuple[Verdict, ...]: st.lists(VERDICTS, max_size=3).map(tuple),
}
BUILT_IN = [cls for cls in event_types().values() if cls.__module__ == "stanchion.events.builtin"]


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation in KINDS:
        return KINDS[annotation]
    if get_origin(annotation) is Annotated:
        return values_of(get_args(annotation)[0])
    (kind,) = set(get_args(annotation)) - {type(None)}
    return st.none() | values_of(kind)


def events_of(cls: type[Event]) -> st.SearchStrategy[Event]:
    fields = {name: values_of(info.annotation) for name, info in cls.model_fields.items()}
    return st.builds(cls, **(fields | {"id": IDS}))


@pytest.mark.parametrize("cls", BUILT_IN, ids=lambda cls: cls.event_type)
@given(data=st.data())
def test_a_built_in_event_comes_back_as_it_was(cls: type[Event], data: st.DataObject):
    event = data.draw(events_of(cls))
    again = there_and_back(event)
    assert again == event
    assert type(again) is cls
    assert again.timestamp.tzinfo is UTC
    assert_official(event.to_cloudevent())


def test_every_built_in_type_was_tried():
    assert len(BUILT_IN) == 21


def test_the_document_of_an_event():
    event = NodeStarted(
        id="e-1",
        timestamp=NOON,
        pipeline="nightly/ü",
        run_id="r 1",
        node="fetch",
        tenant="acme",
        metadata={"k": 1},
        dependencies=("a", "b"),
    )
    assert event.to_cloudevent() == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/stanchion/nightly%2F%C3%BC",
        "type": "node:started",
        "subject": "runs/r%201/nodes/fetch",
        "time": "2026-01-31T12:00:00.000005Z",
        "datacontenttype": "application/json",
        "data": {
            "pipeline": "nightly/ü",
            "run_id": "r 1",
            "node": "fetch",
            "tenant": "acme",
            "metadata": {"k": 1},
            "wave": None,
            "attempt": 1,
            "dependencies": ["a", "b"],
        },
    }


def test_attributes_are_left_out_where_nothing_is_known():
    document = WaveStarted(wave=0, timestamp=NOON, id="e-1").to_cloudevent()
    assert document == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/stanchion",
        "type": "wave:started",
        "time": "2026-01-31T12:00:00.000005Z",
        "datacontenttype": "application/json",
        "data": {"wave": 0, "nodes": []},
    }


def test_the_attributes_of_a_control_event_name_the_policy_and_nobody():
    event = CircuitOpened(
        policy="provider",
        subject="tenant-of-somebody",
        previous=CircuitState.CLOSED,
        state=CircuitState.OPEN,
        generation=1,
        seq=1,
        tenant="tenant-of-somebody",
    )
    document = event.to_cloudevent()
    assert document["subject"] == "policies/provider"
    del document["data"]
    assert "somebody" not in json.dumps(document)


@pytest.mark.parametrize("text", ["x" * 1_000_000, "a}{b:\n\0", "\U0001f600" * 1000, " "])
def test_odd_names_stay_whole_in_the_data_and_make_sound_attributes(text: str):
    event = LLMPromptSent(
        model=text, pipeline=text, run_id=text, node=text, tenant=text, metadata={text: text}
    )
    assert there_and_back(event) == event
    document = event.to_cloudevent()
    assert_official(document)
    del document["data"]
    assert len(json.dumps(document)) < 5000


def test_an_event_made_past_validation_is_not_written():
    broken = LLMPromptSent.model_construct(model=3)
    with pytest.raises(InvalidEvent, match=r"^data does not fit JSON .*'model', input_value=3"):
        broken.to_cloudevent()


def test_nothing_is_lost_of_a_megabyte():
    event = ToolCalled(tool="t", arguments={"text": "ü\0" * 500_000})
    assert there_and_back(event) == event


def test_results_are_any_json():
    for result in (None, 0, "", [], {}, {"a": [1, {"b": None}]}):
        event = NodeCompleted(node="n", duration=1, result=result)
        assert there_and_back(event) == event
        assert type(event.duration) is float


def test_verdicts_travel_whole():
    verdict = Verdict("calls", allowed=False, reason="limit_reached", limit=5, retry_after=0.25)
    event = PolicyVetoed(
        policy="calls",
        reason="limit_reached",
        asked_type="llm:call",
        asked_id="1",
        signal=Signal.RETRY,
        retry_after=0.25,
        verdicts=(verdict,),
    )
    again = there_and_back(event)
    assert isinstance(again, PolicyVetoed)
    assert again.verdicts == (verdict,)
    assert again.signal is Signal.RETRY
