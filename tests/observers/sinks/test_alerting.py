"""Alert rules: what is told, when, how often, in which words, and what closes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest

from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError
from stanchion.events import (
    CircuitClosed,
    CircuitOpened,
    Event,
    NodeCompleted,
    NodeFailed,
    PolicyFailed,
    QuotaThresholdReached,
    matches,
)
from stanchion.observers.sinks.alertbook import AlertBook
from stanchion.observers.sinks.alerting import (
    DEFAULT_RULES,
    Alert,
    AlertAction,
    AlertRule,
    Severity,
    checked_rules,
    interests,
)

START = datetime(2026, 5, 4, 12, tzinfo=UTC)
FAILURES = AlertRule(
    "failures",
    on=NodeFailed,
    threshold=3,
    within="1m",
    group_by=("node",),
    every="10m",
    resolve_on=NodeCompleted,
)
EACH = AlertRule("each", on=NodeFailed, group_by=("node",), every="10m", resolve_on=NodeCompleted)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def failed(node: str = "a", *, at: float = 0.0, **fields: Any) -> NodeFailed:
    when = START + timedelta(seconds=at)
    return NodeFailed(node=node, error="boom", timestamp=when, **fields)


def completed(node: str = "a", *, at: float = 0.0) -> NodeCompleted:
    return NodeCompleted(node=node, duration=1.0, timestamp=START + timedelta(seconds=at))


def circuit(kind: type[CircuitOpened | CircuitClosed], **fields: Any) -> Event:
    given = {
        "policy": "provider",
        "subject": "m1",
        "previous": CircuitState.CLOSED,
        "state": CircuitState.OPEN,
        "generation": 1,
        "seq": 1,
        "reason": "failure rate",
    }
    return kind(**(given | fields))


def quota(threshold: float, **fields: Any) -> Event:
    given = {"policy": "tokens", "subject": "acme", "used": 80, "limit": 100, "seq": 1}
    return QuotaThresholdReached(
        **(given | fields), threshold=threshold, window_end=START + timedelta(days=1)
    )


def told(alerts: list[Alert]) -> list[tuple[str, tuple[str, ...], int]]:
    return [(alert.action.value, alert.group, alert.count) for alert in alerts]


def take(book: AlertBook, *events: Event) -> list[tuple[str, tuple[str, ...], int]]:
    alerts, failures = book.take(events)
    assert not failures
    return told(alerts)


# ---- when


def test_an_alert_is_due_at_the_threshold_and_not_before():
    book = AlertBook([FAILURES])
    assert take(book, failed(at=0)) == []
    assert take(book, failed(at=1)) == []
    assert take(book, failed(at=2)) == [("trigger", ("a",), 3)]


def test_events_further_apart_than_the_window_reach_no_threshold():
    book = AlertBook([FAILURES])
    assert take(book, *(failed(at=31.0 * number) for number in range(6))) == []
    # The times of the events count, in whatever order and however late these come.
    assert take(book, failed(at=100), failed(at=120)) == [("trigger", ("a",), 8)]


def test_groups_are_counted_apart():
    book = AlertBook([FAILURES])
    assert take(book, *(failed(node, at=1) for node in "abab")) == []
    assert take(book, failed("b", at=2)) == [("trigger", ("b",), 3)]


def test_a_sender_whose_clock_is_ahead_does_not_make_other_events_old():
    book = AlertBook([FAILURES])
    now = datetime.now(UTC)
    ahead = NodeFailed(node="a", error="", timestamp=now + timedelta(days=400))
    others = [NodeFailed(node="a", error="", timestamp=now) for _ in range(2)]
    assert take(book, ahead, *others) == [("trigger", ("a",), 3)]


def test_a_repetition_is_held_back_and_told_of_later_with_what_came_in_between():
    clock = Clock()
    book = AlertBook([EACH], clock=clock)
    assert take(book, failed()) == [("trigger", ("a",), 1)]
    clock.now += 599
    assert take(book, failed(), failed()) == []
    assert take(book, failed("b")) == [("trigger", ("b",), 1)]
    clock.now += 1
    alerts, _ = book.take([failed(at=5)])
    assert told(alerts) == [("trigger", ("a",), 3)]
    assert (alerts[0].more, alerts[0].since) == (2, START)


def test_what_is_held_back_becomes_due_by_itself():
    clock = Clock()
    book = AlertBook([EACH], clock=clock)
    take(book, failed(), failed("b"), failed("c"))
    assert (book.wait(), book.held) == (None, 0)
    clock.now += 100
    take(book, failed(at=1), failed(at=2), failed("b"), failed("c"), completed("c"))
    assert (book.wait(), book.held) == (500.0, 2)
    clock.now += 499
    assert book.overdue() == []
    clock.now += 1
    assert told(book.overdue()) == [("trigger", ("a",), 2), ("trigger", ("b",), 1)]
    assert (book.wait(), book.held) == (None, 0)
    # The next interval begins here.
    assert take(book, failed()) == []
    assert book.wait() == 600.0


def test_without_an_interval_every_batch_is_told_of():
    book = AlertBook([AlertRule("each", on=NodeFailed, every=0)])
    assert take(book, failed()) == [("trigger", (), 1)]
    assert take(book, failed()) == [("trigger", (), 1)]


def test_a_burst_is_one_alert():
    events = [failed(at=number / 10) for number in range(43)]
    alerts, _ = AlertBook([EACH]).take(events)
    assert told(alerts) == [("trigger", ("a",), 43)]
    assert alerts[0].event is events[-1]


def test_an_event_counts_once_however_often_it_is_delivered():
    book = AlertBook([FAILURES])
    event = failed()
    assert take(book, event, event) == []
    assert take(book, event, failed()) == []
    assert take(book, failed()) == [("trigger", ("a",), 3)]


# ---- what closes


def test_a_group_is_closed_once_and_only_if_it_was_told_of():
    book = AlertBook([EACH])
    assert take(book, completed()) == []
    take(book, failed())
    assert take(book, completed("b")) == []
    assert take(book, completed()) == [("resolve", ("a",), 0)]
    assert take(book, completed()) == []


def test_a_receiver_that_knows_better_is_told_of_every_end():
    book = AlertBook([EACH], resolve_unknown=True)
    assert take(book, completed()) == [("resolve", ("a",), 0)]


def test_after_the_end_the_next_beginning_is_told_of_at_once():
    book = AlertBook([EACH], clock=Clock())
    assert [action for action, *_ in take(book, failed(), completed(), failed())] == [
        *("trigger", "resolve", "trigger")
    ]


def test_the_end_begins_the_count_anew():
    book = AlertBook([FAILURES])
    assert take(book, failed(), failed(), completed(), failed()) == []


# ---- which events count


@pytest.mark.parametrize(
    "where",
    [
        lambda event: event.tenant == "acme",
        {"tenant": "acme"},
        {"tenant": ["other", "acme"], "metadata.region": "eu"},
    ],
)
def test_only_what_meets_the_condition_counts(where: Any):
    rule = AlertRule("some", on=NodeFailed, where=where)
    event = failed(tenant="acme", metadata={"region": "eu"})
    assert take(AlertBook([rule]), event) == [("trigger", (), 1)]
    assert take(AlertBook([rule]), failed(tenant="nobody")) == []


def test_a_condition_that_raises_fails_its_event_and_leaves_the_other_rules_alone(
    caplog: pytest.LogCaptureFixture,
):
    def broken(event: Event) -> bool:
        raise LookupError(f"no {event.node} in sight")

    rules = [AlertRule("broken", on=NodeFailed, where=broken), EACH]
    event = failed()
    alerts, failures = AlertBook(rules).take([event])
    assert told(alerts) == [("trigger", ("a",), 1)]
    [failure] = failures
    assert failure.items == (event,)
    assert failure.refusal.permanent
    assert "`where` of the rule 'broken': LookupError" in failure.refusal.reason
    assert "LookupError" in caplog.text
    assert "in sight" not in caplog.text + failure.refusal.reason


def test_events_of_types_that_nobody_declared_have_fields_too():
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "com.example.gone"}
    event = Event.from_cloudevent(document | {"data": {"shop": {"city": "Ulm"}, "n": 3}})
    rule = AlertRule("gone", on="com.example.*", group_by=("shop.city", "n"), text="$n in $none")
    alerts, _ = AlertBook([rule]).take([event])
    assert alerts[0].fields == {"shop.city": "Ulm", "n": "3"}
    assert alerts[0].text == "3 in -"


def test_what_the_rules_are_about_is_what_a_sink_asks_for():
    selector = interests([EACH, AlertRule("more", on=("llm:*", CircuitOpened))])
    assert selector == (NodeFailed, NodeCompleted, "llm:*", CircuitOpened)


def test_groups_that_are_heard_of_least_are_forgotten_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
):
    book = AlertBook([EACH])
    assert len(take(book, *(failed(f"n{number}") for number in range(10_000)))) == 10_000
    take(book, failed("n0"), failed("new"))
    assert take(book, completed("n1")) == []
    assert take(book, completed("n0")) == [("resolve", ("n0",), 1)]
    assert "more than 10000 groups" in caplog.text


# ---- in which words


def test_the_text_has_the_fields_of_the_latest_event_on_one_line():
    rule = AlertRule(
        "worded", on=NodeFailed, text="$$ $node (${metadata.at.zone}): $error; $tenant $attempt."
    )
    event = NodeFailed(node="a\nb", error="x" * 300, metadata={"at": {"zone": "z 1"}})
    alerts, _ = AlertBook([rule]).take([event])
    assert alerts[0].text == f"$ a b (z 1): {'x' * 199}…; - 1."


def test_without_a_text_the_type_and_the_group_are_told():
    rule = AlertRule("plain", on=NodeFailed, group_by=("node", "tenant"))
    alerts, _ = AlertBook([rule]).take([failed()])
    assert alerts[0].text == "node:failed node=a tenant=-"


def test_a_key_names_one_group_everywhere():
    def key(*nodes: str) -> str:
        rule = AlertRule("r", on="node:*", group_by=("node", "tenant"))
        event = NodeFailed(node=nodes[0], error="", tenant=nodes[1])
        alerts, _ = AlertBook([rule]).take([event])
        return alerts[0].dedup_key("prod")

    assert key("a", "b") == "prod/r/a/b"
    assert key("a/b", "c") != key("a", "b/c")
    long = key("ü" * 190, "b")
    assert len(long) == 255
    assert long == key("ü" * 190, "b") != key("ü" * 190, "c")


# ---- out of the box


def test_the_default_rules_tell_of_circuits_quotas_and_failures_and_of_nothing_else():
    book = AlertBook(DEFAULT_RULES)
    alerts, failures = book.take(
        [
            circuit(CircuitOpened),
            circuit(CircuitOpened, subject="m2"),
            quota(0.8),
            quota(1.0, used=100),
            PolicyFailed(policy="opa", error="timeout", asked_type="llm:prompt", asked_id="1"),
            failed(),
            circuit(CircuitClosed, state=CircuitState.CLOSED),
        ]
    )
    assert not failures
    assert {(alert.rule.name, alert.action.value, alert.group, alert.text) for alert in alerts} == {
        (
            "circuit-open",
            "trigger",
            ("provider", "m1"),
            "Circuit provider is open for m1: failure rate",
        ),
        (
            "circuit-open",
            "trigger",
            ("provider", "m2"),
            "Circuit provider is open for m2: failure rate",
        ),
        (
            "circuit-open",
            "resolve",
            ("provider", "m1"),
            "circuit:closed policy=provider subject=m1",
        ),
        (
            "quota-low",
            "trigger",
            ("tokens", "acme", "0.8"),
            "Quota tokens of acme: 80 of 100 used, until 2026-05-05T12:00:00+00:00",
        ),
        (
            "quota-used-up",
            "trigger",
            ("tokens", "acme", "1"),
            "Quota tokens of acme is used up (100 of 100) until 2026-05-05T12:00:00+00:00",
        ),
        (
            "policy-failed",
            "trigger",
            ("opa",),
            "Policy opa could not be asked about llm:prompt: timeout",
        ),
    }
    # In order, as far as one group goes.
    mine = [alert.action for alert in alerts if alert.group == ("provider", "m1")]
    assert mine == [AlertAction.TRIGGER, AlertAction.RESOLVE]
    assert matches(interests(DEFAULT_RULES), quota(1.0))
    assert not matches(interests(DEFAULT_RULES), failed())


# ---- declarations


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"on": "No Such"}, "on"),
        ({"on": ()}, "on"),
        ({"where": 3}, "where"),
        ({"where": {"a b": 1}}, "where"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": 10_001}, "threshold"),
        ({"within": 0}, "within"),
        ({"every": "soon"}, "every"),
        ({"every": -1}, "every"),
        ({"group_by": "node"}, "group_by"),
        ({"group_by": ["a b"]}, "group_by"),
        ({"group_by": ["nodes"]}, "group_by='nodes': NodeFailed has"),
        ({"group_by": ["wave"], "resolve_on": CircuitClosed}, "group_by='wave': CircuitClosed has"),
        ({"resolve_on": 7}, "resolve_on"),
        ({"severity": "bad"}, "severity"),
        ({"text": "$1"}, "text"),
        ({"text": None}, "text"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], named: str
):
    with pytest.raises(ConfigError, match=f"^{named}"):
        AlertRule(**({"name": "r", "on": NodeFailed} | fields))


def test_rules_can_come_from_a_file():
    [rule] = checked_rules(
        [
            MappingProxyType(
                {
                    "name": "r",
                    "on": ["node:failed", "pipeline:failed"],
                    "group_by": ["pipeline"],
                    "every": "1h",
                    "severity": "warning",
                    "where": {"tenant": "acme"},
                }
            )
        ]
    )
    assert rule.on == ("node:failed", "pipeline:failed")
    assert (rule.group_by, rule.every, rule.severity) == (("pipeline",), 3600.0, Severity.WARNING)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ([], "at least one rule"),
        (EACH, "a list"),
        ({"name": "r"}, "a list"),
        (["r"], "AlertRule"),
        ([{"name": "r"}], "'on'"),
        ([{"name": "r", "on": "a:b", "evry": 1}], "evry"),
        ([EACH, EACH], "two rules have this name"),
    ],
)
def test_rules_that_cannot_work_together_are_refused(rules: Any, named: str):
    with pytest.raises(ConfigError, match=named):
        checked_rules(rules)
