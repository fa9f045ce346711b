"""OtlpSink: traces, metrics and logs, at receivers of OTLP and behind a collector at Datadog's."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import metrics, trace
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings
from ruamel.yaml import YAML

from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError
from stanchion.events import (
    LLMPromptSent,
    LLMResponseReceived,
    NodeCompleted,
    NodeFailed,
    NodeStarted,
    PipelineCompleted,
    PipelineStarted,
    PolicyVetoed,
    ToolCompleted,
    WaveStarted,
)
from stanchion.observers import ObserverManager
from stanchion.observers.correlation import span_id, trace_id
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.otlp import OtlpSink
from stanchion.observers.spans import Spans
from stanchion.wiring import observers_of
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.datadog_intake import datadog_intake, rotel
from tests.observers.sinks.otlp_receiver import Receiver, Reply, receiver, values
from tests.observers.sinks.runs import NOON, at, circuit, control_events, failed_run, run_events
from tests.servers import free_port
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.events import Event
    from tests.conftest import Pool

KEY = "a-key-that-is-nobodys-business"


@asynccontextmanager
async def sending(received: Receiver, **settings: Any) -> AsyncIterator[OtlpSink]:
    sink = OtlpSink(received.url, **{"metrics_every": 3600, **settings})
    await sink.start()
    try:
        yield sink
    finally:
        await sink.close()


async def sent(events: Sequence[Event], **settings: Any) -> Receiver:
    """Get what a receiver has when a sink was given events and closed."""
    async with receiver() as received:
        async with sending(received, **settings) as sink:
            await sink.handle_batch(events)
        return received


def ns(seconds: float) -> int:
    return int(NOON.timestamp()) * 10**9 + int(seconds * 10**9)


def tree(spans: Sequence[Span]) -> dict[str, str]:
    """Get each span's name with that of its parent, "" for none and "?" for one that is missing."""
    names = {span.span_id: span.name for span in spans}
    return {
        span.name: names.get(span.parent_span_id, "?") if span.parent_span_id else ""
        for span in spans
    }


TREE = {
    "pipeline report": "",
    "wave 0": "pipeline report",
    "node ask": "wave 0",
    "node look": "wave 0",
    "node write": "pipeline report",
    "chat m1": "node ask",
    "execute_tool search": "node look",
}

# ---- traces


async def test_a_run_becomes_a_tree_of_spans_in_one_trace():
    received = await sent(run_events("r1"))

    assert tree(received.spans) == TREE
    assert {span.trace_id for span in received.spans} == {trace_id("r1").to_bytes(16)}
    assert len({span.span_id for span in received.spans}) == len(TREE)


async def test_spans_begin_and_end_when_their_events_say():
    received = await sent(run_events("r1"))

    times = {
        span.name: (span.start_time_unix_nano, span.end_time_unix_nano) for span in received.spans
    }
    assert times == {
        "pipeline report": (ns(0), ns(6)),
        "wave 0": (ns(0.5), ns(5)),
        "node ask": (ns(1), ns(4.5)),
        "node look": (ns(1), ns(2.5)),
        "node write": (ns(4.75), ns(4.75)),
        "chat m1": (ns(1.5), ns(4)),
        "execute_tool search": (ns(1.25), ns(2)),
    }


async def test_calls_are_described_in_the_words_of_the_conventions():
    received = await sent(run_events("r1"))

    chat = received.span("chat m1")
    assert chat.kind == Span.SPAN_KIND_CLIENT
    assert values(chat.attributes) == {
        "stanchion.pipeline": "report",
        "stanchion.run_id": "r1",
        "stanchion.node": "ask",
        "stanchion.attempt": 1,
        "stanchion.tokens": 250,
        "stanchion.dollars": 0.25,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "acme",
        "gen_ai.request.model": "m1",
        "gen_ai.request.max_tokens": 200,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 150,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    tool = received.span("execute_tool search")
    assert tool.kind == Span.SPAN_KIND_INTERNAL
    assert values(tool.attributes)["gen_ai.tool.name"] == "search"


async def test_a_failure_marks_its_span_with_its_type_and_its_text():
    received = await sent([*run_events("r1"), *failed_run("r2", pipeline="bad")])

    for name, kind, text in (
        ("node look", "NotFound", "no such page"),
        ("execute_tool search", "NotFound", "no such page"),
        ("pipeline bad", "Bad", "out of luck"),
    ):
        span = received.span(name)
        assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, text)
        assert values(span.attributes)["error.type"] == kind
    assert received.span("pipeline report").status.code == Status.STATUS_CODE_UNSET


async def test_a_veto_is_an_event_of_the_span_that_it_met():
    received = await sent(run_events("r1"))

    (note,) = received.span("chat m1").events
    assert (note.name, note.time_unix_nano) == ("policy:vetoed", ns(1.75))
    said = values(note.attributes)
    assert said["stanchion.policy"] == "calls"
    assert said["stanchion.veto.reason"] == "limit"
    assert said["stanchion.veto.retry_after"] == 0.5
    assert said["stanchion.veto.enforced"] is True


def veto(**where: Any) -> PolicyVetoed:
    return PolicyVetoed(
        policy="calls",
        reason="limit",
        asked_type="llm:prompt",
        asked_id="x",
        timestamp=at(1),
        **where,
    )


@pytest.mark.parametrize(
    ("where", "met"),
    [
        ({"node": "ask"}, "node ask"),
        ({"node": "other"}, "pipeline report"),
        ({}, "pipeline report"),
    ],
)
async def test_a_veto_before_the_call_belongs_to_its_node_or_else_to_the_run(
    where: dict[str, str], met: str
):
    received = await sent(
        [
            PipelineStarted(pipeline="report", run_id="r1", timestamp=at(0)),
            NodeStarted(run_id="r1", node="ask", timestamp=at(0.5)),
            veto(run_id="r1", **where),
        ]
    )
    assert [span.name for span in received.spans if span.events] == [met]


async def test_a_veto_that_meets_no_open_span_is_a_span_of_its_own():
    received = await sent([veto(run_id="r1", node="ask"), veto()])
    (span,) = received.spans
    assert span.name == "veto calls"
    assert span.parent_span_id == span_id("node", "r1", "ask", "1").to_bytes(8)
    assert span.start_time_unix_nano == span.end_time_unix_nano == ns(1)


async def test_what_was_said_to_models_and_tools_is_in_no_span():
    received = await sent(run_events("r1"), signals=["traces"])
    assert "what nobody else may read" not in str(received.spans)
    assert received.spans


async def test_each_attempt_at_a_node_is_a_span_with_its_own_calls():
    run: dict[str, Any] = {"run_id": "r1", "node": "ask"}
    events = [
        PipelineStarted(pipeline="report", run_id="r1"),
        NodeStarted(**run, attempt=1),
        NodeFailed(**run, attempt=1, error="no", will_retry=True),
        NodeStarted(**run, attempt=2),
        LLMResponseReceived(**run, model="m1", duration=1),
        NodeCompleted(**run, attempt=2, duration=2),
    ]
    received = await sent(events)
    attempts = {
        values(span.attributes)["stanchion.attempt"]: span.span_id
        for span in received.spans
        if span.name == "node ask"
    }
    assert attempts.keys() == {1, 2}
    assert received.span("chat m1").parent_span_id == attempts[2]


async def test_processes_that_report_parts_of_one_run_make_one_tree():
    events = run_events("r1")
    scheduler = [event for event in events if event.event_type.startswith(("pipeline", "wave"))]
    worker = [event for event in events if event not in scheduler]
    async with receiver() as received:
        for part in (worker, scheduler):
            async with sending(received) as sink:
                await sink.handle_batch(part)
    # A node that was skipped names no wave.
    assert tree(received.spans) == TREE


# ---- events that are late, missing, repeated or out of order


def made(events: Sequence[Event], max_open: int = 100) -> dict[str, Any]:
    """Get the spans that the events make, as the sink would send them, by their names."""
    spans = Spans(max_open)
    found = [span for event in events for span in spans.take(event)]
    found += spans.close()
    assert spans.pending == 0
    names = {span.span_id: span.name for span in found}
    assert len(names) == len(found), "an id was used twice"
    return {
        span.name: (names.get(span.parent_id or 0), span.start, span.end, span.attributes)
        for span in found
    }


RUN: dict[str, Any] = {"run_id": "r1"}
SMALL: list[Event] = [
    PipelineStarted(**RUN, pipeline="p", timestamp=at(0)),
    NodeStarted(**RUN, node="n", timestamp=at(1)),
    LLMPromptSent(**RUN, node="n", model="m", id="call-1", timestamp=at(2)),
    LLMResponseReceived(
        **RUN, node="n", model="m", call_id="call-1", duration=1.0, timestamp=at(3)
    ),
    NodeCompleted(**RUN, node="n", duration=3.0, timestamp=at(4)),
    PipelineCompleted(**RUN, pipeline="p", duration=5.0, timestamp=at(5)),
]


def test_the_order_in_which_events_arrive_changes_neither_times_nor_parents():
    def essence(events: Sequence[Event]) -> dict[str, Any]:
        return {name: span[:3] for name, span in made(events).items()}

    expected = essence(SMALL)
    assert expected == {
        "pipeline p": (None, at(0), at(5)),
        "node n": ("pipeline p", at(1), at(4)),
        "chat m": ("node n", at(2), at(3)),
    }
    tried = 0
    for order in permutations(SMALL):
        places = {event.event_type: place for place, event in enumerate(order)}
        # Nobody can wait for a node that is first heard of after its run, and its call, have ended.
        settled = max(places["llm:response"], places["pipeline:completed"])
        if min(places["node:started"], places["node:completed"]) < settled:
            assert essence(order) == expected, [event.event_type for event in order]
            tried += 1
    assert tried == 600


def test_an_event_that_arrives_twice_makes_no_second_span():
    assert made([event for event in SMALL for _ in range(2)]) == made(SMALL)
    assert made([*SMALL, *SMALL]) == made(SMALL)


def test_a_span_whose_start_is_missing_begins_its_duration_before_its_end():
    found = made([event for event in SMALL if not isinstance(event, NodeStarted)])
    assert found["node n"][:3] == ("pipeline p", at(1), at(4))


def test_a_failure_without_start_and_duration_waits_for_its_start():
    started = NodeStarted(**RUN, node="n", timestamp=at(1))
    failed = NodeFailed(**RUN, node="n", error="no", timestamp=at(4))
    assert made([failed, started])["node n"][1:3] == (at(1), at(4))
    alone = made([failed])["node n"]
    assert alone[1:3] == (at(4), at(4))
    assert alone[3]["stanchion.incomplete"] == "start"


def test_a_span_whose_end_is_missing_ends_with_the_last_event_when_the_sink_closes():
    found = made([event for event in SMALL if not isinstance(event, NodeCompleted)])
    assert found["node n"][:3] == ("pipeline p", at(1), at(5))
    assert found["node n"][3]["stanchion.incomplete"] == "end"
    assert "stanchion.incomplete" not in found["chat m"][3]


def test_a_call_whose_node_nobody_tells_of_is_part_of_the_run():
    without = [event for event in SMALL if not isinstance(event, NodeStarted | NodeCompleted)]
    assert made(without)["chat m"][0] == "pipeline p"


def test_a_call_that_is_heard_of_after_its_run_is_part_of_the_run_too():
    run = [event for event in SMALL if isinstance(event, PipelineStarted | PipelineCompleted)]
    late = LLMResponseReceived(**RUN, node="n", model="m", duration=1.0, timestamp=at(3))
    assert made([*run, late])["chat m"][0] == "pipeline p"


@pytest.mark.parametrize("named_in", ["start", "end", "both"])
def test_the_wave_and_the_node_may_be_named_in_one_of_two_events_only(named_in: str):
    def only(place: str, **names: Any) -> dict[str, Any]:
        return {**RUN, **(names if named_in in {place, "both"} else {})}

    found = made(
        [
            SMALL[0],
            WaveStarted(**RUN, wave=0),
            NodeStarted(**only("start", wave=0), node="n"),
            LLMPromptSent(**only("start", node="n"), model="m", id="call-1"),
            LLMResponseReceived(**only("end", node="n"), model="m", call_id="call-1", duration=1),
            NodeCompleted(**only("end", wave=0), node="n", duration=1),
            SMALL[-1],
        ]
    )
    assert (found["chat m"][0], found["node n"][0]) == ("node n", "wave 0")


def test_a_node_whose_wave_nobody_tells_of_is_part_of_the_run():
    events = [
        SMALL[0],
        NodeCompleted(**RUN, node="n", wave=3, duration=1, timestamp=at(2)),
        SMALL[-1],
    ]
    assert made(events)["node n"][0] == "pipeline p"


def test_a_call_without_a_run_is_a_trace_of_its_own():
    spans = Spans()
    prompt = LLMPromptSent(model="m", timestamp=at(0))
    answer = LLMResponseReceived(model="m", call_id=prompt.id, duration=9, timestamp=at(2))
    assert spans.take(prompt) == []
    (span,) = spans.take(answer)
    assert (span.parent_id, span.start, span.end) == (None, at(0), at(2))
    (other,) = spans.take(LLMResponseReceived(model="m", duration=1, timestamp=at(2)))
    assert other.trace_id != span.trace_id


def test_clocks_that_differ_make_no_span_that_ends_before_it_begins():
    late = NodeStarted(**RUN, node="n", timestamp=at(9))
    found = made([late, NodeCompleted(**RUN, node="n", duration=1, timestamp=at(8))])
    assert found["node n"][1:3] == (at(9), at(9))


def test_a_duration_longer_than_history_is_no_obstacle():
    found = made([ToolCompleted(tool="t", duration=1e300, timestamp=at(0))])
    assert found["execute_tool t"][1].year == 1970


def test_open_spans_are_bounded_and_the_oldest_gives_way():
    spans = Spans(max_open=10)
    found = [
        span
        for number in range(100)
        for span in spans.take(NodeStarted(**RUN, node=f"n{number}", timestamp=at(number)))
    ]
    assert [span.name for span in found] == [f"node n{number}" for number in range(90)]
    assert {span.attributes["stanchion.incomplete"] for span in found} == {"end"}
    assert spans.pending == 10
    # Its end comes after all: one span is enough.
    assert spans.take(NodeCompleted(**RUN, node="n89", duration=1, timestamp=at(200))) == []


def test_what_is_open_for_long_stays_the_parent_of_what_comes_and_goes():
    spans = Spans(max_open=5)
    spans.take(WaveStarted(**RUN, wave=0))
    wave = span_id("wave", "r1", "0")
    for number in range(50):
        if number == 10:
            spans.take(PipelineStarted(**RUN, pipeline="p"))
        node: dict[str, Any] = {**RUN, "node": f"n{number}", "wave": 0}
        assert spans.take(NodeStarted(**node)) == []
        (span,) = spans.take(NodeCompleted(**node, duration=1))
        assert span.parent_id == wave


EVERYTHING = [*run_events("r1"), *run_events("r2", at(1)), *failed_run("r3"), *control_events()]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, len(EVERYTHING) - 1), max_size=60),
    st.integers(1, 8),
)
def test_whatever_arrives_makes_trees_of_spans_that_end_after_they_begin(
    order: list[int], max_open: int
):
    spans = Spans(max_open)
    found = []
    for number in order:
        found += spans.take(EVERYTHING[number])
        assert spans.pending <= 3 * max_open + 1
    found += spans.close()
    assert spans.pending == 0
    parents = {span.span_id: span.parent_id for span in found}
    traces = {span.span_id: span.trace_id for span in found}
    for span in found:
        assert span.start <= span.end
        seen = {span.span_id}
        parent = span.parent_id
        while parent in parents:
            assert traces[parent] == span.trace_id
            assert parent not in seen
            seen.add(parent)
            parent = parents[parent]


def test_spans_that_wait_for_a_start_or_a_parent_are_bounded():
    spans = Spans(max_open=10)
    spans.take(PipelineStarted(**RUN, pipeline="p"))
    for number in range(100):
        spans.take(NodeFailed(**RUN, node=f"n{number}", error="no"))
        spans.take(LLMResponseReceived(**RUN, node="unheard", model="m", duration=1))
    assert spans.pending <= 21


# ---- logs


async def test_every_event_is_a_log_record_with_its_whole_envelope():
    events = [*run_events("r1"), *control_events()]
    received = await sent(events)

    assert received.documents == [event.to_cloudevent() for event in events]
    for event, record in zip(events, received.logs, strict=True):
        assert record.time_unix_nano == ns((event.timestamp - NOON).total_seconds())
        assert record.event_name == event.event_type
        said = values(record.attributes)
        assert said["cloudevents.event_id"] == event.id
        assert said["cloudevents.event_type"] == event.event_type
        run = trace_id(event.run_id).to_bytes(16) if event.run_id else b""
        assert record.trace_id == run


async def test_vetoes_are_warnings_and_failures_are_errors():
    received = await sent([*run_events("r1"), *failed_run("r2")])
    severities = {record.event_name: record.severity_number for record in received.logs}
    assert severities["policy:vetoed"] == SeverityNumber.SEVERITY_NUMBER_WARN
    assert severities["pipeline:failed"] == SeverityNumber.SEVERITY_NUMBER_ERROR
    assert severities["node:completed"] == SeverityNumber.SEVERITY_NUMBER_INFO


async def test_the_contract_of_sinks_holds():
    async with receiver() as received:

        async def read_back() -> list[dict[str, Any]]:
            return received.documents

        sink = OtlpSink(received.url, batch_delay=0)
        await check_contract(Counterpart(sink, read_back))


# ---- metrics


def points(received: Receiver, name: str) -> list[Any]:
    return [
        point
        for metric in received.metrics
        if metric.name == name
        for point in getattr(metric, metric.WhichOneof("data") or "").data_points
    ]


async def test_metrics_are_counted_under_the_names_of_the_conventions():
    received = await sent([*run_events("r1"), circuit(CircuitState.OPEN)])

    tokens = {
        values(point.attributes)["gen_ai.token.type"]: point.as_double
        for point in points(received, "stanchion.llm.tokens")
    }
    assert tokens == {"input": 100, "output": 150}
    (duration,) = points(received, "gen_ai.client.operation.duration")
    assert (duration.count, duration.sum) == (1, 2.5)
    assert values(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "acme",
        "gen_ai.request.model": "m1",
        "stanchion.outcome": "completed",
    }
    (state,) = points(received, "stanchion.circuit.state")
    assert state.as_int == 2
    assert values(state.attributes) == {
        "stanchion.policy": "provider",
        "stanchion.subject": "m1",
    }
    units = {metric.name: metric.unit for metric in received.metrics}
    assert units["stanchion.run.duration"] == "s"
    assert units["stanchion.llm.tokens"] == "{token}"


@pytest.mark.parametrize(
    ("delta", "temporality", "counts"),
    [
        (True, AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA, [1, 2]),
        (False, AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, [1, 3]),
    ],
)
async def test_metrics_are_totals_or_differences(delta: bool, temporality: int, counts: list[int]):
    def told() -> list[float]:
        return [point.as_double for point in points(received, "stanchion.llm.prompts")]

    async with receiver() as received:
        async with sending(received, delta=delta, metrics_every=0.02) as sink:
            await sink.handle_batch([LLMPromptSent(model="m")])
            await eventually(told)
            await sink.handle_batch([LLMPromptSent(model="m"), LLMPromptSent(model="m")])
            await eventually(lambda: told()[-1] == counts[-1])
        assert [count for count, _ in _runs(told())][:2] == counts
        (kind,) = {
            metric.sum.aggregation_temporality
            for metric in received.metrics
            if metric.name == "stanchion.llm.prompts"
        }
        assert kind == temporality


def _runs(numbers: list[float]) -> list[tuple[float, int]]:
    """Get each number once for every stretch of it."""
    return [
        (number, place)
        for place, number in enumerate(numbers)
        if place == 0 or numbers[place - 1] != number
    ]


async def test_the_attributes_of_metrics_are_bounded():
    events: list[Event] = [LLMPromptSent(model=f"m{number}") for number in range(10)]
    events += [circuit(CircuitState.OPEN, f"m{number}") for number in range(4)]
    async with (
        receiver() as received,
        sending(received, max_values=3, metrics_every=0.02) as sink,
    ):
        await sink.handle_batch(events)
        # Told again and again, and counted once.
        await eventually(lambda: len(received.of("metrics")) > 3)
    models = {
        values(point.attributes)["gen_ai.request.model"]: point.as_double
        for point in points(received, "stanchion.llm.prompts")
    }
    assert models == {"m0": 1, "m1": 1, "m2": 1, "other": 7}
    folded = {
        values(point.attributes)["stanchion.label"]: point.as_int
        for point in points(received, "stanchion.labels.folded")
    }
    assert folded == {"model": 7, "subject": 1}


# ---- delivery


async def test_a_receiver_that_is_away_for_a_while_gets_everything_once():
    events = run_events("r1")
    async with receiver() as received:
        received.replies["traces"].extend([Reply(503, {"Retry-After": "30"})] * 2)
        received.replies["logs"].append(Reply(401))
        async with sending(received, timeout=2) as sink:
            with pytest.raises(Undelivered) as first:
                await sink.handle_batch(events)
            assert first.value.events == tuple(events)
            assert not first.value.permanent
            with pytest.raises(Undelivered) as second:
                await sink.handle_batch(events)
            assert second.value.retry_after == 30
            await sink.handle_batch(events)
        assert tree(received.spans) == TREE
        assert received.documents == [event.to_cloudevent() for event in events]
        (prompts,) = points(received, "stanchion.llm.prompts")
        assert prompts.as_double == 1
        assert sink.lost == 0


async def test_what_the_receiver_refuses_for_good_is_not_sent_again():
    async with receiver() as received:
        received.replies["traces"].append(Reply(400))
        async with sending(received) as sink:
            with pytest.raises(Undelivered) as caught:
                await sink.handle_batch(run_events("r1"))
            assert caught.value.permanent
            assert sink.lost == len(TREE)
            await sink.handle_batch(failed_run("r2"))
        assert tree(received.spans) == {"pipeline report": ""}


async def test_what_can_still_be_delivered_is_not_given_up_for_what_cannot():
    async with receiver() as received:
        received.replies["traces"].append(Reply(400))
        received.replies["logs"].append(Reply(503, {"Retry-After": "30"}))
        async with sending(received) as sink:
            with pytest.raises(Undelivered) as caught:
                await sink.handle_batch(run_events("r1"))
            assert (caught.value.permanent, caught.value.retry_after) == (False, 30)
        assert received.spans == []
        assert len(received.logs) == 14


async def test_requests_that_are_too_large_are_halved_until_they_fit():
    events = [LLMPromptSent(model="m", prompt="x" * 1000) for _ in range(20)]
    huge = LLMPromptSent(model="m", prompt="x" * 20_000)
    async with receiver() as received:
        received.largest = 6000
        async with sending(received, signals=["logs"]) as sink:
            with pytest.raises(Undelivered) as caught:
                await sink.handle_batch([*events, huge])
            assert caught.value.permanent
            assert sink.lost == 1
        assert [document["id"] for document in received.documents] == [event.id for event in events]
        assert len(received.of("logs")) > 3


async def test_a_partial_success_is_told_in_the_log(caplog: pytest.LogCaptureFixture):
    async with receiver() as received:
        received.rejecting = 2
        async with sending(received) as sink:
            await sink.handle_batch(run_events("r1"))
            assert sink.lost == 2
    assert "2 records were refused for good: no such thing" in caplog.text


async def test_a_receiver_that_never_answers_costs_no_more_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as never_accepts:
        url = f"http://127.0.0.1:{never_accepts.getsockname()[1]}"
        sink = OtlpSink(url, timeout=0.3, signals=["traces", "logs"])
        began = asyncio.get_running_loop().time()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch(run_events("r1"))
        assert asyncio.get_running_loop().time() - began < 3
        assert not caught.value.permanent
        await sink.close()


async def test_a_manager_that_closes_does_not_wait_for_a_receiver_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as never_accepts:
        sink = OtlpSink(f"http://127.0.0.1:{never_accepts.getsockname()[1]}", timeout=2)
        manager = ObserverManager()
        manager.register(sink)
        await manager.start()
        for event in run_events("r1"):
            manager.notify(event)
        began = asyncio.get_running_loop().time()
        await manager.close(0.5)
        assert asyncio.get_running_loop().time() - began < 1.5


async def test_several_batches_at_once_send_everything_once_and_in_order():
    events = [LLMPromptSent(model="m", run_id="r") for _ in range(2000)]
    async with receiver() as received:
        async with sending(received, signals=["logs"]) as sink:
            parts = [events[start : start + 100] for start in range(0, 2000, 100)]
            await asyncio.gather(*(sink.handle_batch(part) for part in parts))
        ids = [document["id"] for document in received.documents]
    assert len(ids) == 2000
    assert set(ids) == {event.id for event in events}


@pytest.mark.parametrize(
    ("trusts", "taken"), [("its authority", True), ("another", False), ("the system's", False)]
)
async def test_over_tls_the_receivers_certificate_is_held_against_the_given_one(
    trusts: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tls, own = certified(tmp_path / "ca.pem")
    _, other = certified(tmp_path / "other.pem")
    # What the environment names does not count where the sink is told otherwise.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    given = {"its authority": own, "another": other, "the system's": None}[trusts]
    with https_server(tls) as (url, asked):
        sink = OtlpSink(url, timeout=0.5, certificate=given, signals=["logs"])
        with nullcontext() if taken else pytest.raises(Undelivered):
            await sink.handle_batch(run_events("r1"))
        await sink.close()
    assert asked == (["/v1/logs"] if taken else [])


@contextmanager
def https_server(tls: ssl.SSLContext) -> Iterator[tuple[str, list[str]]]:
    """Serve in a thread: asyncio leaves transports behind when a client ends TLS abruptly."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *args):  # noqa: A002 - the name is the base class's
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def certified(file: Path) -> tuple[ssl.SSLContext, Path]:
    """Get a server's context, and a file with the certificate of its authority."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(file))
    return tls, file


async def test_what_waits_for_a_receiver_is_bounded():
    nobody = f"http://127.0.0.1:{free_port()}"
    sink = OtlpSink(nobody, timeout=0.2, signals=["logs"], max_pending=10)
    with pytest.raises(Undelivered):
        await sink.handle_batch([LLMPromptSent(model="m") for _ in range(25)])
    assert sink.lost == 15
    await sink.close()


async def test_the_manager_sends_again_until_the_receiver_is_back():
    async with receiver() as received:
        received.replies["traces"].append(Reply(500))
        received.replies["logs"].append(Reply(500))
        sink = OtlpSink(received.url, batch_delay=0)
        async with ObserverManager() as manager:
            name = manager.register(sink)
            for event in run_events("r1"):
                manager.notify(event)
            assert await manager.drain(10)
            stats = manager.stats()[name]
        assert (stats.delivered, stats.failed, stats.retried > 0) == (14, 0, True)
        assert tree(received.spans) == TREE
        assert len(received.documents) == 14


# ---- settings


@pytest.mark.parametrize("header", ["api-key", "dd-api-key"], ids=["New Relic", "Datadog"])
async def test_with_a_vendors_settings_everything_comes_compressed_and_with_the_key(header: str):
    received = await sent(
        run_events("r1"),
        headers={header: KEY},
        delta=True,
        resource={"deployment.environment.name": "staging"},
        service="worker",
    )
    assert {request.kind for request in received.requests} == {"traces", "metrics", "logs"}
    for request in received.requests:
        assert request.headers[header] == KEY
        assert request.headers["Content-Encoding"] == "gzip"
    (spans,) = (request.message.resource_spans for request in received.of("traces")[:1])
    said = values(spans[0].resource.attributes)
    assert said["service.name"] == "worker"
    assert said["deployment.environment.name"] == "staging"
    assert said["telemetry.sdk.language"] == "python"
    assert spans[0].scope_spans[0].scope.name == "stanchion"


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
async def test_only_the_signals_that_were_asked_for_are_sent(signal: str):
    received = await sent(run_events("r1"), signals=[signal])
    assert {request.kind for request in received.requests} == {signal}


async def test_no_global_provider_is_set():
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    await sent(run_events("r1"))
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
    assert "sdk" not in type(trace.get_tracer_provider()).__module__


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"endpoint": "localhost:4318"}, "endpoint='localhost:4318'"),
        ({"endpoint": 7}, "endpoint=7"),
        ({"signals": []}, r"signals=\[\]"),
        ({"signals": ["profiles"]}, "signals='profiles'"),
        ({"timeout": 0}, "timeout=0"),
        ({"metrics_every": "soon"}, "metrics_every='soon'"),
        ({"max_open": 0}, "max_open=0"),
        ({"max_pending": 0}, "max_pending=0"),
        ({"max_values": 0}, "max_values=0"),
        ({"certificate": "/no/such/file"}, "certificate='/no/such/file'"),
        ({"on": 7}, "on=7"),
    ],
)
def test_an_argument_that_cannot_work_is_named(settings: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        OtlpSink(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": f"https://user:{KEY}@localhost:4318"},
        {"endpoint": f"https://localhost:4318/?key={KEY}"},
        {"headers": {"api-key": f"{KEY}\n"}},
        {"headers": {"api-key": KEY.encode()}},
        {"headers": {KEY.encode(): "x"}},
        {"headers": [KEY]},
        {"headers": KEY},
    ],
)
def test_an_error_does_not_tell_a_key(settings: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        OtlpSink(**settings)
    assert KEY not in str(caught.value)
    assert KEY not in repr(OtlpSink(headers={"api-key": KEY}))


def test_the_settings_in_the_docs_make_the_sinks_that_they_describe():
    page = (Path(__file__).parents[3] / "docs" / "sinks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    environ = {"DD_API_KEY": KEY, "NEW_RELIC_LICENSE_KEY": KEY}
    entries = [
        entry
        for block in blocks
        for entry in YAML(typ="safe").load(block)["observers"]
        if entry.get("kind") in {"otlp", "dogstatsd"}
    ]
    made = [one.observer for one in observers_of("docs", entries, environ)]
    assert [type(sink).__name__ for sink in made] == ["OtlpSink"] * 3 + ["DogStatsdSink"]
    assert [entry["headers"] for entry in entries if "headers" in entry] == [
        {"dd-api-key": "${DD_API_KEY}"},
        {"api-key": "${NEW_RELIC_LICENSE_KEY}"},
    ]


def test_without_the_sdk_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from stanchion.observers.sinks.otlp import OtlpSink\n"
        "try: OtlpSink()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigError")
    assert "pip install 'stanchion[otlp]'" in done.stdout


# ---- receivers that others wrote


async def test_oteltap_receives_all_three_signals():
    port = free_port()
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(port)) as tap:
        awaited = asyncio.gather(
            tap.await_trace(lambda span: span.name == "chat m1", 10),
            tap.await_log(lambda record: record.event_name == "policy:vetoed", 10),
            tap.await_metric(lambda metric: metric.name == "stanchion.llm.tokens", 10),
        )
        sink = OtlpSink(f"http://127.0.0.1:{port}", gzip=False, metrics_every=3600)
        await sink.start()
        await sink.handle_batch(run_events("r1"))
        await sink.close()
        span, record, metric = await awaited
    assert span.trace_id == record.trace_id == trace_id("r1").to_bytes(16)
    assert len(metric.sum.data_points) == 2


async def test_datadog_gets_the_spans_through_a_collector_with_the_api_key(pool: Pool):
    async with datadog_intake() as intake:
        with rotel(intake.url, KEY, pool.reaper) as endpoint:
            sink = OtlpSink(endpoint, delta=True, signals=["traces"])
            await sink.start()
            events = run_events("r1")
            async with asyncio.timeout(10):
                while True:
                    # It listens a little after it has started.
                    with suppress(Undelivered):
                        await sink.handle_batch(events)
                        break
            await sink.close()
            await eventually(lambda: len(intake.spans) == len(TREE), 10)
    assert intake.keys == {KEY}
    chat = next(span for span in intake.spans if span.resource == "chat m1")
    node = next(span for span in intake.spans if span.resource == "node ask")
    assert chat.parentID == node.spanID == span_id("node", "r1", "ask", "1")
    assert chat.traceID == trace_id("r1") % 2**64
    assert (chat.start, chat.duration) == (ns(1.5), int(2.5e9))
    meta = {entry.key: entry.value for entry in chat.meta}
    assert meta["gen_ai.request.model"] == "m1"
    failed = {span.resource for span in intake.spans if span.error}
    assert failed == {"node look", "execute_tool search"}
