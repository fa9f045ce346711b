"""SlackSink: alerts as Slack takes them, from rules of the user's and out of the box."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from stanchion import CircuitBreaker, CircuitState, EventBus
from stanchion.errors import ConfigError
from stanchion.events import Event, LLMPromptSent, NodeCompleted, NodeFailed
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.alerting import Alert, AlertRule
from stanchion.observers.sinks.slack import SlackSink
from stanchion.testing import memory_bus
from tests.observers.sinks.endpoints import OK, Answer, Endpoint, Received, Told, ca_file, send
from tests.waiting import eventually

RULE = AlertRule(
    "node-failed", on=NodeFailed, group_by=("node",), resolve_on=NodeCompleted, text="$node: $error"
)


def slack(request: Received) -> Answer:
    """Judge a message by the rules that Slack documents for incoming webhooks."""
    message = request.json
    blocks = message["blocks"]
    fine = (
        request.headers["Content-Type"].startswith("application/json")
        and 0 < len(message["text"]) <= 40_000
        and 0 < len(blocks) <= 50
        and all(one["type"] == "section" for one in blocks)
        and all(0 < len(one["text"]["text"]) <= 3000 for one in blocks)
    )
    return OK if fine else Answer(400, "invalid_blocks")


def failures(number: int, **fields: Any) -> list[Event]:
    given: dict[str, Any] = {"error": "boom"} | fields
    events: list[Event] = [NodeFailed(node=f"n{one}", **given) for one in range(number)]
    return events


def texts(endpoint: Endpoint) -> list[str]:
    """Every block of every message."""
    return [block["text"]["text"] for one in endpoint.received for block in one.json["blocks"]]


async def test_a_circuit_that_opens_and_closes_is_told_of_out_of_the_box():
    breaker = CircuitBreaker(
        name="provider", on=LLMPromptSent, by=("model",), consecutive_failures=3
    )
    async with Endpoint(judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, batch_delay=0)
        async with memory_bus(breaker, observers=[sink]) as bus:
            await bus.check(LLMPromptSent(model="m1"))
            await bus.force("provider", CircuitState.FORCED_OPEN, model="m1")
            await eventually(lambda: texts(endpoint))
            await bus.force("provider", CircuitState.CLOSED, model="m1")
            await eventually(lambda: len(texts(endpoint)) == 2)
    assert len(texts(endpoint)) == 2
    opened, closed = texts(endpoint)
    assert opened.startswith(":rotating_light: *circuit-open* (critical)\n• Circuit provider is")
    assert "open for m1" in opened
    assert closed.startswith(":white_check_mark: *circuit-open* is resolved\n• circuit:closed")
    assert endpoint.received[0].json["text"].startswith("Circuit provider is open for m1")
    assert endpoint.received[1].json["text"].startswith("Resolved: circuit:closed")


async def test_the_alerts_of_a_rule_are_one_block_and_what_is_too_much_is_counted():
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=[RULE]), *failures(40)) is None
    [text] = texts(endpoint)
    lines = text.splitlines()
    assert lines[0] == ":red_circle: *node-failed* (error)"
    assert lines[1:3] == ["• n0: boom", "• n1: boom"]
    assert (len(lines), lines[-1]) == (22, "_and 20 more_")
    assert endpoint.received[0].json["text"] == "n0: boom and 39 more"


async def test_events_of_a_group_are_counted():
    events = [NodeFailed(node="a", error=f"e{number}") for number in range(43)]
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=[RULE]), *events) is None
    since = f"{events[0].timestamp:%Y-%m-%d %H:%M:%S} UTC"
    assert texts(endpoint)[0].splitlines()[1] == f"• a: e42 _and 42 more since {since}_"


async def test_beginnings_and_ends_stay_in_their_order():
    events = [*failures(2), NodeCompleted(node="n0", duration=1.0), *failures(1)]
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=[RULE]), *events) is None
    heads = [text.splitlines()[0].split()[0] for text in texts(endpoint)]
    # What is told of n1 waits for the end of the batch, in which it may still be counted up.
    assert heads == [":red_circle:", ":white_check_mark:", ":red_circle:"]
    assert [text.splitlines()[1] for text in texts(endpoint)] == [
        *("• n0: boom", "• node:completed node=n0", "• n1: boom")
    ]


async def test_text_from_events_calls_nobody_and_links_nowhere():
    event = NodeFailed(node="<!channel>", error="<https://x|ok> & <@U1>\n• forged", tenant="t")
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=[RULE]), event) is None
    [text] = texts(endpoint)
    assert text.splitlines()[1:] == [
        "• &lt;!channel&gt;: &lt;https://x|ok&gt; &amp; &lt;@U1&gt; • forged"
    ]
    message = endpoint.received[0].json
    assert message["blocks"][0]["text"]["verbatim"] is True
    assert "<" not in message["text"]


@pytest.mark.parametrize("error", ["&" * 500, "e" * 500])
async def test_no_block_is_longer_than_slack_takes(error: str):
    rule = AlertRule("long", on=NodeFailed, group_by=("node", "error"), text="$node $error $error")
    events = failures(30, error=error)
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=[rule]), *events) is None
    [text] = texts(endpoint)
    assert 2000 < len(text) <= 3000
    lines = text.splitlines()
    assert lines[-1] == f"_and {30 - (len(lines) - 2)} more_"
    assert all(len(line) <= 620 for line in lines)
    # Nothing is cut in the middle of an escape.
    assert not re.search(r"&(?!amp;)", text)


async def test_rules_that_are_many_become_several_messages():
    rules = [AlertRule(f"r{number}", on=NodeFailed, text=f"{number}") for number in range(60)]
    async with Endpoint(judge=slack) as endpoint:
        assert await send(SlackSink(url=endpoint.url, rules=rules), *failures(1)) is None
    assert [len(one.json["blocks"]) for one in endpoint.received] == [45, 15]


# ---- what comes of an answer


async def test_slack_says_how_long_to_wait_and_the_alert_is_sent_then():
    [event] = failures(1)
    async with Endpoint(Answer(429, headers={"Retry-After": "30"}), judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch([event])
        assert (caught.value.retry_after, caught.value.permanent) == (30.0, False)
        assert caught.value.events == (event,)
        assert len(endpoint.received) == 1
        await sink.handle_batch([event])
        await sink.close()
    first, second = endpoint.received
    assert first.json == second.json


async def test_an_alert_that_its_events_do_not_bring_again_goes_with_the_next():
    first, second = failures(2)
    async with Endpoint(Answer(503), judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered):
            await sink.handle_batch([first])
        await sink.handle_batch([second])
        await sink.close()
    lines = [text.splitlines()[1:] for text in texts(endpoint)]
    assert lines == [["• n0: boom"], ["• n0: boom", "• n1: boom"]]


async def test_what_was_not_taken_is_tried_again_without_a_new_event():
    async with Endpoint(Answer(503, headers={"Retry-After": "1"}), judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        before = time.monotonic()
        with pytest.raises(Undelivered):
            await sink.handle_batch(failures(2))
        await eventually(lambda: len(endpoint.received) == 2)
        assert time.monotonic() - before > 0.9
        await sink.close()
    first, second = endpoint.received
    assert first.json == second.json


async def test_what_was_held_back_is_told_when_its_time_has_come():
    rule = AlertRule("held", on=NodeFailed, group_by=("node",), every="400ms", text="$error")
    first, *more = (NodeFailed(node="a", error=f"e{number}") for number in range(4))
    async with Endpoint(judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[rule])
        await sink.start()
        await sink.handle_batch([first])
        before = time.monotonic()
        await sink.handle_batch(more)
        assert len(endpoint.received) == 1
        await eventually(lambda: len(endpoint.received) == 2)
        assert time.monotonic() - before > 0.2
        await sink.close()
    since = f"{more[0].timestamp:%Y-%m-%d %H:%M:%S} UTC"
    assert texts(endpoint)[1].splitlines()[1] == f"• e3 _and 2 more since {since}_"


async def test_an_alert_that_cannot_be_put_in_words_stands_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def text(alert: Alert) -> str:
        if alert.group == ("n1",):
            raise LookupError("words fail me")
        return alert.group[0]

    monkeypatch.setattr(Alert, "text", property(text))
    events = failures(4)
    async with Endpoint(judge=slack) as endpoint:
        undelivered = await send(SlackSink(url=endpoint.url, rules=[RULE]), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[1],), True)
    told = [line for text in texts(endpoint) for line in text.splitlines()[1:]]
    assert told == ["• n0", "• n2", "• n3"]
    assert "LookupError" in caplog.text
    assert "words fail me" not in caplog.text


async def test_events_that_lead_to_nothing_wait_for_what_is_in_the_way():
    first, second = (NodeFailed(node="a", error=f"e{number}") for number in range(2))
    async with Endpoint(Answer(503), Answer(503), judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        for event in (first, second):
            with pytest.raises(Undelivered) as caught:
                await sink.handle_batch([event])
            assert caught.value.events == (event,)
        await sink.handle_batch([second])
        await sink.close()
    assert [text.splitlines()[1:] for text in texts(endpoint)] == [["• a: e0"]] * 3


async def test_alerts_that_are_never_sent_are_counted_at_the_end(
    caplog: pytest.LogCaptureFixture,
):
    async with Endpoint(Answer(503)) as endpoint:
        undelivered = await send(SlackSink(url=endpoint.url, rules=[RULE]), *failures(3))
    assert undelivered is not None
    assert "is closed and 3 alerts were not sent" in caplog.text


async def test_alerts_that_pile_up_give_way_the_oldest_first_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
):
    async with Endpoint(Answer(503), judge=slack) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered):
            await sink.handle_batch(failures(1003))
        endpoint.received.clear()
        await sink.handle_batch([NodeFailed(node="new", error="e")])
        await sink.close()
    assert "more than 1000 alerts to send: the 3 oldest are dropped" in caplog.text
    # One more gave way to the new one.
    assert endpoint.received[0].json["text"] == "n4: boom and 44 more"
    assert "• new: e" in texts(endpoint)[-1]


@pytest.mark.parametrize("status", [403, 404, 410, 500])
async def test_a_channel_that_is_gone_may_come_back(status: int):
    events = failures(2)
    async with Endpoint(Answer(status, "no_service")) as endpoint:
        undelivered = await send(SlackSink(url=endpoint.url, rules=[RULE]), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == (tuple(events), False)
    assert undelivered.reason == f"{endpoint.origin} answered {status}"


async def test_what_slack_refuses_as_malformed_is_given_up_and_said(
    caplog: pytest.LogCaptureFixture,
):
    def judge(request: Received) -> Answer:
        poison = any("n1" in block["text"]["text"] for block in request.json["blocks"])
        return Answer(400, "invalid_blocks") if poison else slack(request)

    events = failures(3)
    async with Endpoint(judge=judge) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch(events)
        assert (caught.value.events, caught.value.permanent) == ((events[1],), True)
        assert "gives up 1 alerts" in caplog.text
        endpoint.received.clear()
        await sink.handle_batch([NodeFailed(node="new", error="e")])
        await sink.close()
    assert [text.splitlines()[1:] for text in texts(endpoint)] == [["• new: e"]]


async def test_a_page_that_is_not_slack_takes_nothing():
    async with Endpoint(Answer(200, "<html>Sign in</html>")) as endpoint:
        undelivered = await send(SlackSink(url=endpoint.url, rules=[RULE]), *failures(1))
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin} answered 200, but not as Slack does"


async def test_a_receiver_that_hangs_holds_nobody_longer_than_the_deadline():
    async with Endpoint(Answer(hangs=True)) as endpoint:
        before = time.monotonic()
        sink = SlackSink(url=endpoint.url, rules=[RULE], deadline=0.3)
        undelivered = await send(sink, *failures(1))
        assert time.monotonic() - before < 2.0
    assert undelivered is not None
    assert undelivered.reason == "not confirmed within 0.3 s"


async def test_the_manager_hands_over_what_the_rules_are_about():
    async with Endpoint(judge=slack) as endpoint, ObserverManager() as manager:
        name = manager.register(SlackSink(url=endpoint.url, rules=[RULE], batch_delay=0))
        manager.notify(LLMPromptSent(model="m1"))
        for event in failures(3):
            manager.notify(event)
        assert await manager.drain(5.0)
        assert manager.stats()[name].delivered == 3
    assert sum(text.count("•") for text in texts(endpoint)) == 3


async def test_a_sink_and_its_rules_can_come_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with Endpoint(judge=slack) as endpoint:
        file = tmp_path / "bus.yaml"
        file.write_text("""
            url: memory://
            observers:
              - kind: slack
                url: ${SLACK_URL}
                batch_delay: 0
                rules:
                  - name: node-failed
                    on: [node:failed]
                    where: {will_retry: false, node: [a, b]}
                    group_by: [node]
                    severity: warning
                    text: $node is broken in $metadata.region
        """)
        monkeypatch.setenv("SLACK_URL", endpoint.url)
        async with EventBus.from_config(file) as bus:
            bus.notify(NodeFailed(node="a", error="e", will_retry=True))
            bus.notify(NodeFailed(node="b", error="e", metadata={"region": "eu"}))
            assert await bus.observers.drain(5.0)
    assert texts(endpoint) == [":warning: *node-failed* (warning)\n• b is broken in eu"]


async def test_only_a_certificate_that_is_trusted_is_talked_to(tmp_path: Path):
    ca = trustme.CA()
    async with Endpoint(judge=slack, tls=ca) as endpoint:
        trusting = SlackSink(url=endpoint.url, rules=[RULE], ca_file=ca_file(ca, tmp_path))
        assert await send(trusting, *failures(1)) is None
        undelivered = await send(SlackSink(url=endpoint.url, rules=[RULE]), *failures(1))
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin}: ClientConnectorCertificateError"
    assert len(endpoint.received) == 1


# ---- declarations


async def test_the_url_is_never_told(caplog: pytest.LogCaptureFixture):
    told = Told.watching(caplog)
    async with Endpoint(Answer(404, "no_team")) as endpoint:
        sink = SlackSink(url=endpoint.url, rules=[RULE])
        for one in (
            sink,
            SlackSink(url="http://127.0.0.1:9/s3cr3t-path", rules=[RULE]),
            SlackSink(url="https://127.0.0.1:9/s3cr3t-path", rules=[RULE]),
        ):
            undelivered = await send(one, *failures(1))
            assert undelivered is not None
            told.error(undelivered)
    for url in ("http://hooks.slack.com/s3cr3t-path", "s3cr3t-path", "https://u@x/s3cr3t-path"):
        with pytest.raises(ConfigError) as caught:
            SlackSink(url=url)
        told.error(caught.value)
    everything = told.everything(sink)
    assert "SlackSink(http://127.0.0.1:" in everything
    assert "s3cr3t-path" not in everything


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": "http://hooks.slack.com/services/T/B/x"}, "url: expected an https"),
        ({"url": ""}, "url"),
        ({"rules": []}, "rules"),
        ({"rules": [{"name": "r", "on": "a:b", "threshold": 0}]}, "threshold"),
        ({"deadline": -1}, "deadline"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_delay": "x"}, "batch_delay"),
        ({"on": []}, "on"),
    ],
)
def test_what_cannot_work_is_refused_when_the_sink_is_made(fields: dict[str, Any], named: str):
    given: dict[str, Any] = {"url": "https://hooks.slack.com/services/T/B/x"}
    with pytest.raises(ConfigError, match=f"^{named}"):
        SlackSink(**(given | fields))
