"""Events as log lines."""

from __future__ import annotations

import json
import logging
import threading

import pytest

from stanchion.decisions import CircuitState, Verdict
from stanchion.errors import ConfigError
from stanchion.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    LLMPromptSent,
    NodeFailed,
    NodeStarted,
    PipelineFailed,
    PolicyFailed,
    PolicyVetoed,
    ToolCalled,
    ToolCompleted,
)
from stanchion.observers import LoggingObserver, ObserverManager

SECRET = "what nobody else may read"


def circuit(kind, state):
    return kind(
        policy="provider",
        subject="m1",
        previous=CircuitState.CLOSED,
        state=state,
        generation=2,
        seq=7,
    )


def veto(**fields):
    return PolicyVetoed(
        policy="calls", reason="limit_reached", asked_type="llm:call", asked_id="1", **fields
    )


@pytest.fixture
def log(caplog):
    """Everything that a `LoggingObserver` writes."""
    caplog.set_level(logging.DEBUG, logger="stanchion.events")
    return caplog


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (veto(), "WARNING"),
        (PolicyFailed(policy="p", error="e", asked_type="llm:call", asked_id="1"), "ERROR"),
        (circuit(CircuitOpened, CircuitState.OPEN), "ERROR"),
        (circuit(CircuitHalfOpened, CircuitState.HALF_OPEN), "WARNING"),
        (circuit(CircuitClosed, CircuitState.CLOSED), "INFO"),
        (PipelineFailed(pipeline="p", error="e"), "ERROR"),
        (NodeFailed(node="n", error="e"), "WARNING"),
        (NodeStarted(node="n"), "INFO"),
    ],
    ids=lambda value: getattr(value, "event_type", value),
)
def test_each_type_has_its_level(event, level, log):
    LoggingObserver()(event)
    assert [record.levelname for record in log.records] == [level]


def test_levels_can_be_chosen_and_the_first_match_counts(log):
    observer = LoggingObserver(levels={"node:failed": logging.CRITICAL, "node:*": logging.DEBUG})
    for event in (NodeFailed(node="n", error="e"), NodeStarted(node="n"), ToolCalled(tool="t")):
        observer(event)
    assert [record.levelname for record in log.records] == ["CRITICAL", "DEBUG", "INFO"]


def test_what_the_logger_would_not_write_is_not_prepared(log):
    log.set_level(logging.WARNING, logger="stanchion.events")

    def refuse(fields):
        raise AssertionError(fields)

    LoggingObserver(redact=refuse)(NodeStarted(node="n"))
    assert not log.records


def test_the_line_has_the_type_and_what_is_set(log):
    LoggingObserver()(NodeStarted(node="n 1", wave=0, tenant="acme", metadata={"team": ["a"]}))
    assert log.messages == [
        'node:started node="n 1" tenant="acme" metadata={"team": ["a"]} wave=0 attempt=1'
    ]


def test_the_record_carries_the_event(log):
    event = veto(verdicts=(Verdict("calls", allowed=False, reason="limit_reached", limit=5),))
    LoggingObserver()(event)
    (record,) = log.records
    assert (record.event_type, record.event_id) == ("policy:vetoed", event.id)
    assert record.event_time == event.timestamp
    assert record.event["verdicts"][0]["limit"] == 5
    assert record.event["retry_after"] is None
    json.dumps(record.event)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\x00b"])
def test_one_event_is_one_line(text, log):
    LoggingObserver()(NodeStarted(node=text, metadata={text: text}))
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "x.y", "data": {text: 1}}
    LoggingObserver()(Event.from_cloudevent(document))
    for message in log.messages:
        assert len(message.splitlines()) == 1
        assert message.isprintable()


def test_a_long_value_is_cut_in_the_line_only(log):
    LoggingObserver()(NodeStarted(node="n" * 5000))
    (record,) = log.records
    assert len(record.getMessage()) < 300
    assert record.event["node"] == "n" * 5000


def test_what_was_said_to_models_and_tools_is_not_logged_by_default(log):
    observer = LoggingObserver()
    observer(LLMPromptSent(model="m", prompt=SECRET))
    observer(ToolCalled(tool="t", arguments={"query": SECRET}))
    observer(ToolCompleted(tool="t", duration=1.0, result=[SECRET]))
    observer(LLMPromptSent(model="m"))
    assert SECRET not in str([vars(record) for record in log.records])
    assert [message.count("[redacted]") for message in log.messages] == [1, 1, 1, 0]


def test_names_are_redacted_at_any_depth(log):
    event = NodeStarted(
        node="n",
        tenant="acme",
        metadata={"api_key": SECRET, "calls": [{"api_key": SECRET, "n": 1}]},
    )
    LoggingObserver(redact=("api_key", "tenant"))(event)
    assert SECRET not in log.text
    assert "acme" not in log.text
    assert log.records[0].event["metadata"]["calls"] == [{"api_key": "[redacted]", "n": 1}]


def test_redaction_can_be_a_function_or_nothing(log):
    event = LLMPromptSent(model="m", prompt=SECRET)
    LoggingObserver(redact=lambda fields: {"model": fields["model"]})(event)
    LoggingObserver(redact=())(event)
    assert log.messages[0] == 'llm:prompt model="m"'
    assert SECRET in log.messages[1]


def test_unknown_events_are_logged_with_their_data(log):
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "com.their.thing"}
    LoggingObserver()(Event.from_cloudevent({**document, "data": {"prompt": SECRET, "n": 1}}))
    LoggingObserver()(Event.from_cloudevent({**document, "data": [1, 2]}))
    assert log.messages == [
        'com.their.thing prompt="[redacted]" n=1',
        "com.their.thing data=[1, 2]",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"levels": {"bad one": 10}}, "levels='bad one'"),
        ({"levels": {"llm:*": "INFO"}}, "levels='INFO'"),
        ({"redact": "prompt"}, "redact='prompt'"),
        ({"redact": [1]}, r"redact=\[1\]"),
        ({"on": 5}, "on=5"),
    ],
)
def test_a_misuse_is_refused_and_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        LoggingObserver(**arguments)


async def test_a_handler_that_blocks_delays_nobody(log):
    del log
    release, threads = threading.Event(), []

    class Blocking(logging.Handler):
        def emit(self, record):
            threads.append((record.getMessage(), threading.get_ident()))
            assert release.wait(10)

    logger = logging.getLogger("stanchion.test_blocking")
    logger.addHandler(Blocking())
    logger.setLevel(logging.INFO)
    async with ObserverManager() as manager:
        manager.register(LoggingObserver(logger, on="node:*"))
        manager.notify(NodeStarted(node="n"))
        manager.notify(ToolCalled(tool="t"))
        assert not await manager.drain(0.05)
        release.set()
        assert await manager.drain()
    assert [message for message, _ in threads] == ['node:started node="n" attempt=1']
    assert threads[0][1] != threading.get_ident()
