"""PagerDutySink: incidents that are triggered, added to and resolved, as the Events API asks."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError
from stanchion.events import CircuitClosed, CircuitOpened, Event, NodeCompleted, NodeFailed
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.alerting import AlertRule
from stanchion.observers.sinks.pagerduty import PagerDutySink
from tests.observers.sinks.endpoints import Answer, Endpoint, Received, Told, ca_file, send

KEY = "R0ut1ngK3yR0ut1ngK3yR0ut1ngK3y42"
RULE = AlertRule(
    "node-failed", on=NodeFailed, group_by=("node",), resolve_on=NodeCompleted, text="$node: $error"
)


def pagerduty(request: Received) -> Answer:
    """Judge a request by the rules that PagerDuty documents for events of version 2."""
    message = request.json
    rules = {
        "content type": request.headers["Content-Type"] == "application/json",
        "routing_key": message["routing_key"] == KEY,
        "event_action": message["event_action"] in {"trigger", "resolve"},
        "dedup_key": 0 < len(message["dedup_key"]) <= 255,
        "size": len(request.body) <= 512 * 1024,
    }
    if message["event_action"] == "trigger":
        payload = message["payload"]
        rules |= {
            "summary": 0 < len(payload["summary"]) <= 1024,
            "severity": payload["severity"] in {"critical", "error", "warning", "info"},
            "source": bool(payload["source"]),
            "timestamp": datetime.fromisoformat(payload["timestamp"]).tzinfo is not None,
            "custom_details": isinstance(payload["custom_details"], dict),
        }
    errors = [name for name, kept in rules.items() if not kept]
    if errors:
        return Answer(400, json.dumps({"status": "invalid event", "errors": errors}))
    return Answer(202, json.dumps({"status": "success", "message": "Event processed"}))


def circuit(kind: type[CircuitOpened | CircuitClosed], state: CircuitState) -> Event:
    return kind(
        policy="provider",
        subject="m1",
        previous=CircuitState.CLOSED,
        state=state,
        generation=1,
        seq=1,
        reason="failure rate",
    )


async def test_a_circuit_opens_an_incident_and_closes_it_out_of_the_box():
    opened = circuit(CircuitOpened, CircuitState.OPEN)
    closed = circuit(CircuitClosed, CircuitState.CLOSED)
    async with Endpoint(judge=pagerduty) as endpoint, ObserverManager() as manager:
        sink = PagerDutySink(
            routing_key=KEY, url=endpoint.url, source="shop production", batch_delay=0
        )
        manager.register(sink)
        for event in (opened, closed):
            manager.notify(event)
        assert await manager.drain(5.0)
    trigger, resolve = (request.json for request in endpoint.received)
    assert trigger["event_action"] == "trigger"
    assert trigger["dedup_key"] == "shop production/circuit-open/provider/m1"
    payload = trigger["payload"]
    assert payload["summary"] == "Circuit provider is open for m1: failure rate"
    assert (payload["severity"], payload["source"]) == ("critical", "shop production")
    assert (payload["class"], payload["group"]) == ("circuit:opened", "circuit-open")
    assert datetime.fromisoformat(payload["timestamp"]) == opened.timestamp
    details = payload["custom_details"]
    assert (details["policy"], details["subject"], details["events"]) == ("provider", "m1", 1)
    assert Event.from_cloudevent(details["latest"]) == opened
    assert resolve == {
        "routing_key": KEY,
        "event_action": "resolve",
        "dedup_key": trigger["dedup_key"],
    }


async def test_an_incident_of_an_earlier_process_is_closed_too():
    async with Endpoint(judge=pagerduty) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE])
        assert await send(sink, NodeCompleted(node="a", duration=1.0)) is None
    [request] = endpoint.received
    assert request.json["event_action"] == "resolve"
    assert request.json["dedup_key"] == "stanchion/node-failed/a"


async def test_a_long_story_is_cut_to_what_pagerduty_takes():
    rule = AlertRule("long", on=NodeFailed, text="$error " * 8)
    big = NodeFailed(node="a", error="ü" * 200, metadata={"blob": "x" * 600_000})
    events = [NodeFailed(node="a", error="e"), big]
    async with Endpoint(judge=pagerduty) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[rule])
        assert await send(sink, *events) is None
    payload = endpoint.received[0].json["payload"]
    assert len(payload["summary"]) == 1024
    assert payload["summary"].endswith("… (and 1 more)")
    latest = payload["custom_details"]["latest"]
    assert latest.startswith(big.id)
    assert "left out: 600" in latest


# ---- what comes of an answer


async def test_what_is_not_taken_is_sent_again_and_what_was_taken_is_not():
    events = [NodeFailed(node=f"n{number}", error="e") for number in range(3)]
    answers = (Answer(202), Answer(429, headers={"Retry-After": "60"}))
    async with Endpoint(*answers, judge=pagerduty) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch(events)
        assert caught.value.events == tuple(events[1:])
        assert (caught.value.retry_after, caught.value.permanent) == (60.0, False)
        await sink.handle_batch(caught.value.events)
        await sink.close()
    keys = [request.json["dedup_key"].rpartition("/")[2] for request in endpoint.received]
    assert keys == ["n0", "n1", "n1", "n2"]


async def test_what_pagerduty_refuses_as_malformed_does_not_hold_up_the_rest():
    def judge(request: Received) -> Answer:
        return Answer(400) if "n0" in request.json["dedup_key"] else pagerduty(request)

    events = [NodeFailed(node=f"n{number}", error="e") for number in range(3)]
    async with Endpoint(judge=judge) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE])
        undelivered = await send(sink, *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[0],), True)
    assert len(endpoint.received) == 3


@pytest.mark.parametrize(("status", "words"), [(403, ""), (500, ""), (200, ", but not as Pager")])
async def test_other_answers_leave_the_alert_to_be_sent_again(status: int, words: str):
    event = NodeFailed(node="a", error="e")
    async with Endpoint(Answer(status)) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE])
        undelivered = await send(sink, event)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((event,), False)
    assert f"{endpoint.origin} answered {status}{words}" in undelivered.reason


async def test_a_receiver_that_hangs_holds_nobody_longer_than_the_deadline():
    async with Endpoint(Answer(hangs=True)) as endpoint:
        before = time.monotonic()
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE], deadline=0.3)
        undelivered = await send(sink, NodeFailed(node="a", error="e"))
        assert time.monotonic() - before < 2.0
    assert undelivered is not None
    assert undelivered.reason == "not confirmed within 0.3 s"


async def test_only_a_certificate_that_is_trusted_is_talked_to(tmp_path: Path):
    ca = trustme.CA()
    event = NodeFailed(node="a", error="e")
    async with Endpoint(judge=pagerduty, tls=ca) as endpoint:
        given: dict[str, Any] = {"routing_key": KEY, "url": endpoint.url, "rules": [RULE]}
        assert await send(PagerDutySink(**given, ca_file=ca_file(ca, tmp_path)), event) is None
        undelivered = await send(PagerDutySink(**given), event)
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin}: ClientConnectorCertificateError"
    assert len(endpoint.received) == 1


# ---- declarations


async def test_the_routing_key_is_never_told(caplog: pytest.LogCaptureFixture):
    told = Told.watching(caplog)
    async with Endpoint(Answer(500)) as endpoint:
        sink = PagerDutySink(routing_key=KEY, url=endpoint.url, rules=[RULE])
        undelivered = await send(sink, NodeFailed(node="a", error="e"))
        assert undelivered is not None
        told.error(undelivered)
    with pytest.raises(ConfigError) as caught:
        PagerDutySink(routing_key=f"{KEY}x")
    told.error(caught.value)
    everything = told.everything(sink)
    assert "PagerDutySink(http://127.0.0.1:" in everything
    assert KEY not in everything


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"routing_key": "short"}, "routing_key"),
        ({"routing_key": None}, "routing_key"),
        ({"url": "http://events.pagerduty.com/v2/enqueue"}, "url: expected an https"),
        ({"source": ""}, "source"),
        ({"rules": "all"}, "rules"),
        ({"deadline": "never"}, "deadline"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_delay": -1}, "batch_delay"),
        ({"on": 1}, "on"),
    ],
)
def test_what_cannot_work_is_refused_when_the_sink_is_made(fields: dict[str, Any], named: str):
    given: dict[str, Any] = {"routing_key": KEY}
    with pytest.raises(ConfigError, match=f"^{named}"):
        PagerDutySink(**(given | fields))
