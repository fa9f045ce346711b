"""CloudEvents documents of other makers: kept whole, read strictly, refused by name and value."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from stanchion.decisions import CircuitState
from stanchion.errors import StanchionError
from stanchion.events import (
    CircuitChanged,
    CircuitOpened,
    ControlEvent,
    Event,
    InvalidEvent,
    LLMPromptSent,
    NodeStarted,
    UnknownEvent,
    event_types,
)
from tests.unit.events_support import FOREIGN, IDS, JSON, NOON, PROMPT, pickled, there_and_back

# --------------------------------------------------------------------------- unknown documents


def test_an_unknown_event_keeps_its_document_and_shows_what_every_event_has():
    event = Event.from_cloudevent(FOREIGN)
    assert type(event) is UnknownEvent
    assert event.event_type == "com.example.order.placed.v2"
    assert UnknownEvent.event_type == ""
    assert event.id == "A234-1234-1234"
    assert event.timestamp == datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    assert event.timestamp.tzinfo is UTC
    assert (event.pipeline, event.run_id, event.node, event.tenant) == (None, "r-1", None, "acme")
    assert event.metadata == {"k": [1]}
    assert event.data == FOREIGN["data"]
    assert event.to_cloudevent() == FOREIGN
    assert there_and_back(event) == event
    for copied in (
        pickled(event),
        event.model_copy(),
        event.model_copy(deep=True),
    ):
        assert copied == event
        assert copied.event_type == event.event_type
    assert len({event, Event.from_cloudevent(FOREIGN)}) == 1


def test_an_unknown_event_shares_nothing_with_what_it_came_from_or_gives_out():
    given = json.loads(json.dumps(FOREIGN))
    event = Event.from_cloudevent(given)
    given["data"]["x"].append(1)
    event.to_cloudevent()["data"]["x"].append(2)
    event.metadata["k"].append(3)
    assert event.to_cloudevent() == FOREIGN


def test_an_unknown_event_can_be_made_of_a_document_and_of_its_own_fields():
    event = UnknownEvent(document=FOREIGN)
    assert event == Event.from_cloudevent(FOREIGN)
    assert event.event_type == FOREIGN["type"]
    assert UnknownEvent.model_validate(event.model_dump()) == event
    assert UnknownEvent.model_validate_json(event.model_dump_json()) == event
    with pytest.raises(ValueError, match="source is missing"):
        UnknownEvent(document={**FOREIGN, "source": None})


def test_an_unknown_event_without_a_time_is_of_now():
    document = {name: value for name, value in FOREIGN.items() if name != "time"}
    before = datetime.now(UTC)
    event = Event.from_cloudevent(document)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert there_and_back(event) == event
    assert event.to_cloudevent() == document


PAYLOADS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"data": JSON}),
    st.binary().map(lambda raw: {"data_base64": base64.b64encode(raw).decode()}),
)
EXTENSIONS = st.dictionaries(
    st.from_regex(r"x[a-z0-9]{1,19}", fullmatch=True),
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | IDS | st.just(""),
    max_size=4,
)
TIMES = st.builds(
    "{:%Y-%m-%dT%H:%M:%S}{}{}".format,
    st.datetimes(min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001
    st.just("") | st.text("0123456789", min_size=1, max_size=12).map(".{}".format),
    st.sampled_from(["Z", "z", "+00:00", "-00:00", "+23:59", "-07:30"]),
)
OPTIONAL = st.fixed_dictionaries(
    {},
    optional={
        "time": TIMES | st.none(),
        "subject": IDS | st.none(),
        "dataschema": st.sampled_from(["urn:x:y", "https://a.b/c?d=%20#e"]),
        "datacontenttype": st.sampled_from(["text/plain", "application/json", "a/b; c=d"]),
    },
)
REQUIRED = st.fixed_dictionaries(
    {
        "specversion": st.just("1.0"),
        "id": IDS,
        "source": st.sampled_from(["/x", "x:y", "1-555-123", "https://a/b?c#d", "//[::1]/%41"]),
    }
)


@given(
    parts=st.tuples(REQUIRED, OPTIONAL, EXTENSIONS, PAYLOADS),
    kind=IDS.filter(lambda text: text not in event_types()),
)
def test_an_unknown_document_comes_back_as_it_was(parts: tuple[dict[str, Any], ...], kind: str):
    document: dict[str, Any] = {"type": kind}
    for part in parts:
        document |= part
    event = Event.from_cloudevent(document)
    assert isinstance(event, UnknownEvent)
    assert event.to_cloudevent() == document
    assert list(event.to_cloudevent()) == list(document)
    assert there_and_back(event) == event


def test_binary_data_is_bytes():
    document = {**FOREIGN, "data_base64": "AP/+"}
    del document["data"]
    event = Event.from_cloudevent(document)
    assert isinstance(event, UnknownEvent)
    assert event.data == b"\x00\xff\xfe"
    assert event.to_cloudevent() == document


# -------------------------------------------------------- known types that come from elsewhere


@given(optional=OPTIONAL, extensions=EXTENSIONS)
def test_a_known_event_keeps_the_attributes_it_came_with(
    optional: dict[str, Any], extensions: dict[str, Any]
):
    given = {**PROMPT, **optional, **extensions, "datacontenttype": "application/cloud+json"}
    event = Event.from_cloudevent(given)
    assert isinstance(event, LLMPromptSent)
    document = event.to_cloudevent()
    data = document.pop("data")
    assert data["model"] == "m1"
    written = {name: value for name, value in given.items() if value is not None}
    del written["data"]
    if "time" not in written:
        del document["time"]
    assert document == written
    again = there_and_back(event)
    assert again == event
    assert there_and_back(pickled(event)).to_cloudevent() == event.to_cloudevent()


def test_attributes_beside_the_fields_do_not_count_for_equality():
    with_trace = Event.from_cloudevent({**PROMPT, "traceparent": "00-1"})
    assert with_trace == Event.from_cloudevent(PROMPT)
    assert with_trace.to_cloudevent()["traceparent"] == "00-1"
    assert "traceparent" not in Event.from_cloudevent(PROMPT).to_cloudevent()
    assert "traceparent" not in repr(with_trace)
    assert "traceparent" not in with_trace.model_dump_json()


def test_a_changed_copy_is_written_with_its_own_time_and_the_kept_attributes():
    given = {**PROMPT, "time": "2026-01-31T12:00:00.1234567Z", "traceparent": "00-1"}
    event = Event.from_cloudevent(given)
    assert event.to_cloudevent()["time"] == given["time"]
    later = event.model_copy(update={"timestamp": NOON, "id": "p-2"}).to_cloudevent()
    assert later["time"] == "2026-01-31T12:00:00.000005Z"
    assert (later["id"], later["traceparent"], later["source"]) == ("p-2", "00-1", "/agents/7")


def test_a_known_event_without_a_time_is_of_now():
    document = {name: value for name, value in PROMPT.items() if name != "time"}
    before = datetime.now(UTC)
    event = Event.from_cloudevent(document)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert Event.from_cloudevent(event.to_cloudevent()) == event


def test_documents_of_the_reference_implementation_are_read():
    attributes = {"type": "llm:prompt", "source": "/x", "traceparent": "00-1"}
    for data in ({"model": "m1", "tenant": "acme"}, b'{"model": "m1", "tenant": "acme"}'):
        written = JSONFormat().write(CloudEvent(dict(attributes), data))
        event = LLMPromptSent.from_cloudevent(written)
        assert (event.model, event.tenant) == ("m1", "acme")
        assert event.to_cloudevent()["traceparent"] == "00-1"


def test_a_type_with_optional_fields_only_needs_no_data():
    class Bare(Event, type="test_documents:bare"):
        size: int = 3

    document = {**PROMPT, "type": "test_documents:bare"}
    del document["data"]
    event = Event.from_cloudevent(document)
    assert isinstance(event, Bare)
    assert event.size == 3


# ----------------------------------------------------------------------- asked of the wrong class


def test_a_subclass_reads_its_own_type_and_what_is_below_it():
    document = LLMPromptSent(model="m").to_cloudevent()
    assert LLMPromptSent.from_cloudevent(document).model == "m"
    with pytest.raises(
        InvalidEvent, match=r"type is 'llm:prompt' for NodeStarted: expected 'node:st"
    ):
        NodeStarted.from_cloudevent(document)
    with pytest.raises(InvalidEvent, match=r"type is 'llm:prompt' for ControlEvent: expected the "):
        ControlEvent.from_cloudevent(document)
    with pytest.raises(InvalidEvent, match=r"type is 'com\.example.*expected 'llm:prompt'"):
        LLMPromptSent.from_cloudevent(FOREIGN)
    opened = CircuitOpened(
        policy="p",
        subject="s",
        previous=CircuitState.CLOSED,
        state=CircuitState.OPEN,
        generation=1,
        seq=1,
    )
    for cls in (CircuitChanged, ControlEvent, Event, CircuitOpened):
        assert cls.from_cloudevent(opened.to_cloudevent()) == opened


def test_unknown_event_takes_any_document_as_it_is():
    event = UnknownEvent.from_cloudevent(PROMPT)
    assert event.event_type == "llm:prompt"
    assert event.to_cloudevent() == PROMPT


def test_an_unknown_event_may_be_as_deep_as_a_document_may_be():
    deep = json.loads("[" * 118 + "]" * 118)
    document = {**FOREIGN, "data": {"metadata": {"k": deep[0]}}}
    event = Event.from_cloudevent(document)
    assert event.to_cloudevent() == document
    assert event.metadata == {}
    assert UnknownEvent(document=document) == event
    with pytest.raises(InvalidEvent, match="nested deeper than 120"):
        Event.from_cloudevent({**FOREIGN, "data": [[deep]]})


# ----------------------------------------------------------------------------- what is not valid


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PROMPT.items() if key != name}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        *[
            (without(name), rf"^{name} is missing: expected")
            for name in ("specversion", "id", "source", "type")
        ],
        ({**PROMPT, "id": None}, "^id is missing"),
        ({**PROMPT, "specversion": "0.3"}, r"^specversion is '0\.3': expected \"1\.0\""),
        ({**PROMPT, "specversion": 1.0}, r"^specversion is 1\.0: expected"),
        ({**PROMPT, "id": ""}, "^id is ''"),
        ({**PROMPT, "id": 7}, "^id is 7: expected a non-empty string"),
        ({**PROMPT, "id": "a\nb"}, r"^id is 'a\\nb'"),
        ({**PROMPT, "id": "\x85"}, "^id is"),
        ({**PROMPT, "id": "\ufdd0"}, "^id is"),
        ({**PROMPT, "id": "\U0002ffff"}, "^id is"),
        ({**PROMPT, "id": "x\ud800"}, "^id is not JSON .*lone surrogate"),
        ({**PROMPT, "type": " \t"}, "^type is"),
        ({**PROMPT, "source": ""}, "^source is ''"),
        ({**PROMPT, "source": "a b"}, "^source is 'a b': expected a non-empty URI reference"),
        ({**PROMPT, "source": "/%zz"}, "^source is"),
        ({**PROMPT, "source": "/ü"}, "^source is"),
        ({**PROMPT, "subject": ""}, "^subject is ''"),
        ({**PROMPT, "subject": 3}, "^subject is 3"),
        ({**PROMPT, "dataschema": "/relative"}, "^dataschema is '/relative': expected an absolute"),
        ({**PROMPT, "datacontenttype": "json"}, "^datacontenttype is 'json': expected a media"),
        ({**PROMPT, "datacontenttype": "a/b;"}, "^datacontenttype is"),
        *[
            ({**PROMPT, "time": text}, "^time is .*: expected a time of RFC 3339")
            for text in (
                "yesterday",
                "2026-01-31",
                "2026-01-31T12:00:00",
                "2026-01-31 12:00:00Z",
                "2026-02-30T12:00:00Z",
                "2026-01-31T24:00:00Z",
                "2026-01-31T12:00:61Z",
                "2026-01-31T12:00:00+24:00",
                "2026-01-31T12:00:00+0200",
                "2026-01-31T12:00:00.Z",
                "0000-01-01T00:00:00Z",
                "0001-01-01T00:00:00+01:00",
                "٢026-01-31T12:00:00Z",
                1_800_000_000,
            )
        ],
        (
            {**PROMPT, "traceParent": "x"},
            "^'traceParent' is no attribute name: expected lower-case",
        ),
        ({**PROMPT, "trace_parent": "x"}, "^'trace_parent' is no attribute name"),
        ({**PROMPT, "": "x"}, "^'' is no attribute name"),
        ({**PROMPT, "extension": 1.5}, r"^extension is 1\.5: expected a boolean, a 32-bit integer"),
        ({**PROMPT, "extension": 2**31}, "^extension is 2147483648"),
        ({**PROMPT, "extension": 10**4000}, "^extension is a very large integer"),
        ({**PROMPT, "extension": {"a": 1}}, "^extension is a dict"),
        ({**PROMPT, "extension": [1]}, "^extension is a list"),
        ({**PROMPT, "extension": "a\0"}, "^extension is"),
        ({**PROMPT, "data_base64": "e30="}, "^data_base64 stands beside data"),
        ({**without("data"), "data_base64": "?"}, r"^data_base64 is '\?': expected base64"),
        ({**without("data"), "data_base64": 3}, "^data_base64 is 3"),
        ({**without("data"), "data_base64": "AAAA"}, "^data_base64 is not JSON"),
        ({**PROMPT, "datacontenttype": "text/plain"}, "^datacontenttype is 'text/plain': .*known"),
        *[
            ({**PROMPT, "data": data}, "^data is .*: expected a JSON object")
            for data in (None, "text", 3, [1])
        ],
        ({**PROMPT, "data": {"model": 3}}, r"^data\.model is 3 \(Input should be a valid string\)"),
        (
            {**PROMPT, "data": {}},
            r"^data\.model is missing .*: expected what LLMPromptSent declares",
        ),
        (
            {**PROMPT, "data": {"model": "m", "tokens": -1, "attempt": 0}},
            r"^data\.tokens is -1 \(.*greater than or equal to 0, and 1 more\)",
        ),
        ({**PROMPT, "data": {"model": "m", "tokens": 1.0}}, r"^data\.tokens is 1\.0"),
        ({**PROMPT, "data": {"model": "m", "colour": 1}}, r"^data\.colour is 1 \(Extra inputs"),
        (
            {**PROMPT, "data": {"model": "m", "id": "x"}},
            r"^data\.id is 'x': expected the attribute",
        ),
        ({**PROMPT, "data": {"model": "m", "timestamp": 1}}, r"^data\.timestamp is 1"),
        ({**PROMPT, "data": {"model": NOON}}, r"^data is not JSON \(at \['data'\]\['model'\]"),
        ({**PROMPT, "extension": math.inf}, "^extension is not JSON .*inf is not finite"),
        ({**PROMPT, 3: 4}, "^document is not JSON .*the key 3 is int"),
        ("{", "^document is not JSON .*: expected one CloudEvents 1.0 JSON object"),
        ("", "^document is not JSON"),
        (b"\xff\xfe", "^document is not JSON"),
        ("[]", "^document is a list: expected one"),
        ("null", "^document is None"),
        (None, "^document is None"),
        (3, "^document is 3"),
        (json.dumps(PROMPT)[:-1] + ', "data": NaN}', "^document is not JSON .NaN"),
        (json.dumps(PROMPT)[:-1] + ', "data": {"model": 1e999}}', "^data is not JSON .*inf"),
        (
            json.dumps(PROMPT)[:-1] + f', "data": {"[" * 150 + "]" * 150}}}',
            "nested deeper than 120",
        ),
        (json.dumps(PROMPT)[:-1] + f', "data": {"[" * 10**5}', "^document is nested too deeply"),
        (json.dumps(PROMPT)[:-1] + f', "data": {"9" * 5000}}}', "^document is not JSON .*4300"),
    ],
)
def test_an_invalid_document_is_refused_by_attribute_and_value(document: Any, problem: str):
    with pytest.raises(InvalidEvent, match=problem) as caught:
        Event.from_cloudevent(document)
    assert isinstance(caught.value, StanchionError)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 600
    again = pickled(caught.value)
    assert (str(again), again.attribute) == (str(caught.value), caught.value.attribute)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00.5z", datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        (
            "2026-01-31T12:00:00.1234569-03:30",
            datetime(2026, 1, 31, 15, 30, 0, 123_456, tzinfo=UTC),
        ),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("0001-01-01T00:00:00-00:00", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_every_form_of_time_is_read_and_kept(text: str, moment: datetime):
    event = Event.from_cloudevent({**PROMPT, "time": text})
    assert event.timestamp == moment
    assert event.to_cloudevent()["time"] == text
