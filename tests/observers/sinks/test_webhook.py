"""WebhookSink: signed batches, what comes of each answer, and nothing to anybody else."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook, WebhookVerificationError

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, NodeCompleted, NodeFailed
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.alerting import AlertRule
from stanchion.observers.sinks.http import require
from stanchion.observers.sinks.webhook import AlertResolved, AlertTriggered, WebhookSink
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.endpoints import Answer, Endpoint, Received, Told, ca_file, nodes, send
from tests.waiting import eventually

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
NEXT_SECRET = base64.b64encode(b"n" * 32).decode()


async def test_the_contract_of_sinks():
    async with Endpoint() as endpoint:

        async def read_back() -> list[dict[str, Any]]:
            return endpoint.events

        await check_contract(Counterpart(WebhookSink(url=endpoint.url), read_back))


# ---- the request


async def test_a_batch_is_what_the_reference_readers_understand():
    events = nodes(3)
    async with Endpoint() as endpoint:
        sink = WebhookSink(
            url=endpoint.url,
            secret=(NEXT_SECRET, SECRET),
            headers={"Authorization": "Bearer abc"},
        )
        assert await send(sink, *events) is None
    [request] = endpoint.received
    assert request.headers["Content-Type"].startswith("application/cloudevents-batch+json")
    assert request.headers["Authorization"] == "Bearer abc"
    for secret in (SECRET, NEXT_SECRET):
        read = Webhook(secret).verify(request.body, dict(request.headers))
        assert [Event.from_cloudevent(document) for document in read] == events
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body + b" ", dict(request.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"x" * 24)).verify(request.body, dict(request.headers))


async def test_a_batch_that_is_sent_again_has_the_same_id_and_a_signature_of_its_own_time():
    first, second = nodes(2)
    async with Endpoint() as endpoint:
        sink = WebhookSink(url=endpoint.url, secret=SECRET)
        await sink.start()
        for batch in ([first, second], [first, second], [first], [second, first]):
            await sink.handle_batch(batch)
        await sink.close()
    ids = [request.headers["webhook-id"] for request in endpoint.received]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    for request in endpoint.received:
        assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 10
        Webhook(SECRET).verify(request.body, dict(request.headers))


async def test_without_a_secret_nothing_is_signed():
    async with Endpoint() as endpoint:
        assert await send(WebhookSink(url=endpoint.url), *nodes(1)) is None
    assert "webhook-id" in endpoint.received[0].headers
    assert "webhook-signature" not in endpoint.received[0].headers


async def test_batches_share_a_connection_and_keep_to_size_and_number():
    big = "x" * 300_000
    async with Endpoint() as endpoint:
        sink = WebhookSink(url=endpoint.url, batch_size=5)
        assert await send(sink, *nodes(12)) is None
        assert [len(request.json) for request in endpoint.received] == [5, 5, 2]
        assert len({request.connection for request in endpoint.received}) == 1
        endpoint.received.clear()
        assert await send(sink, *nodes(5, metadata={"big": big})) is None
    assert [len(request.json) for request in endpoint.received] == [3, 2]
    assert max(len(request.body) for request in endpoint.received) < 1_000_000


# ---- what comes of an answer


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_the_200s_mean_taken(status: int):
    async with Endpoint(Answer(status, body="")) as endpoint:
        assert await send(WebhookSink(url=endpoint.url), *nodes(2)) is None


@pytest.mark.parametrize("status", [301, 302, 304, 401, 403, 404, 408, 410, 415, 429, 500, 503])
async def test_what_may_pass_leaves_the_batch_to_be_sent_again(status: int):
    events = nodes(3)
    answer = Answer(status, headers={"Location": "/elsewhere"} if status < 400 else {})
    async with Endpoint(answer) as endpoint:
        sink = WebhookSink(url=endpoint.url, batch_size=2)
        undelivered = await send(sink, *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == (tuple(events), False)
    assert undelivered.retry_after is None
    assert undelivered.reason == f"{endpoint.origin} answered {status}"
    # The receiver is not asked again within the same call.
    assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("999999999", 86_400, 86_400),
        (timedelta(hours=1), 3500, 3601),
        (timedelta(hours=-1), 0, 0),
        ("Mon, 04 May 2020 10:00:00 -0000", 0, 0),
    ],
)
async def test_the_receiver_says_how_long_to_wait(header: str | timedelta, low: float, high: float):
    if isinstance(header, timedelta):  # from now, and not from when the tests were collected
        header = format_datetime(datetime.now(UTC) + header, usegmt=True)
    async with Endpoint(Answer(429, headers={"Retry-After": header})) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), *nodes(1))
    assert undelivered is not None
    assert undelivered.retry_after is not None
    assert low <= undelivered.retry_after <= high


@pytest.mark.parametrize("header", ["", "soon", "-1", "1.5", "²", "Mon, 99 Nov 2026 00:00:00 GMT"])
async def test_a_wait_that_cannot_be_read_is_none(header: str):
    answer = Answer(503, headers={"Retry-After": header.encode().decode("latin-1")})
    async with Endpoint(answer) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), *nodes(1))
    assert undelivered is not None
    assert undelivered.retry_after is None


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_event_that_is_refused_for_good_does_not_take_the_others_with_it(status: int):
    def judge(request: Received) -> Answer:
        poison = any(document["data"]["node"] == "n5" for document in request.json)
        return Answer(status if poison else 200)

    events = nodes(32)
    async with Endpoint(judge=judge) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[5],), True)
    taken = [one for one in endpoint.received if judge(one).status == 200]
    delivered = [document["data"]["node"] for one in taken for document in one.json]
    # Once each, and in their order.
    assert delivered == [event.node for event in events if event.node != "n5"]


async def test_a_receiver_that_refuses_everything_is_not_asked_for_ever():
    events = nodes(100)
    async with Endpoint(judge=lambda _: Answer(400)) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == (tuple(events), False)
    assert len(endpoint.received) < 40


async def test_an_event_that_is_too_large_is_refused_here_and_the_others_go_out():
    large = NodeCompleted(node="large", duration=1.0, result="x" * 1_000_000)
    small = nodes(2)
    async with Endpoint() as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), small[0], large, small[1])
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((large,), True)
    assert "of at most 1000000" in undelivered.reason
    assert [document["data"]["node"] for document in endpoint.events] == ["n0", "n1"]


async def test_what_failed_for_good_and_what_may_pass_come_back_together():
    large = NodeCompleted(node="large", duration=1.0, result="x" * 1_000_000)
    [small] = nodes(1)
    async with Endpoint(Answer(503, headers={"Retry-After": "3"})) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), large, small)
    assert undelivered is not None
    assert undelivered.events == (large, small)
    assert (undelivered.permanent, undelivered.retry_after) == (False, 3.0)


async def test_an_answer_without_an_end_is_not_read():
    async with Endpoint(Answer(endless=True)) as endpoint:
        before = time.monotonic()
        assert await send(WebhookSink(url=endpoint.url, deadline=3.0), *nodes(1)) is None
        assert time.monotonic() - before < 2.0


async def test_a_receiver_that_does_not_answer_holds_nobody_longer_than_the_deadline():
    first, second, third = nodes(3)
    async with Endpoint(Answer(), Answer(hangs=True)) as endpoint:
        sink = WebhookSink(url=endpoint.url, deadline="300ms", batch_size=1)
        before = time.monotonic()
        undelivered = await send(sink, first, second, third)
        assert time.monotonic() - before < 2.0
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((second, third), False)
    assert undelivered.reason == "not confirmed within 0.3 s"


async def test_nobody_there_is_said_without_the_path():
    async with Endpoint() as endpoint:
        pass
    undelivered = await send(WebhookSink(url=endpoint.url), *nodes(1))
    assert undelivered is not None
    assert not undelivered.permanent
    assert undelivered.reason == f"{endpoint.origin}: ClientConnectorError"


async def test_the_manager_sends_again_when_the_receiver_said_and_loses_nothing():
    events = nodes(3)
    busy = Answer(429, headers={"Retry-After": "1"})
    async with Endpoint(busy) as endpoint, ObserverManager() as manager:
        name = manager.register(WebhookSink(url=endpoint.url))
        for event in events:
            manager.notify(event)
        await eventually(lambda: endpoint.received)
        before = time.monotonic()
        assert await manager.drain(10.0)
        assert time.monotonic() - before > 0.9
        assert manager.stats()[name].delivered == 3
    refused, *taken = endpoint.received
    delivered = [document["id"] for request in taken for document in request.json]
    assert delivered == [event.id for event in events]
    assert refused.headers["webhook-id"] == taken[0].headers["webhook-id"]


# ---- where it goes, and where it does not


async def test_a_redirect_within_the_host_is_followed_with_body_and_signature():
    async with Endpoint(Answer(307, headers={"Location": "/new?x=1"}), Answer(202)) as endpoint:
        assert await send(WebhookSink(url=endpoint.url, secret=SECRET), *nodes(2)) is None
    before, after = endpoint.received
    assert (after.path, after.body) == ("/new", before.body)
    Webhook(SECRET).verify(after.body, dict(after.headers))


async def test_a_redirect_to_another_host_gets_nothing():
    async with Endpoint() as other:
        moved = Answer(308, headers={"Location": other.url})
        async with Endpoint(moved) as endpoint:
            undelivered = await send(WebhookSink(url=endpoint.url), *nodes(1))
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin} redirects to {other.origin}"
    assert not undelivered.permanent
    assert other.received == []


@pytest.mark.parametrize("location", ["/hook", "http://[", "mailto:a@b", ""])
async def test_redirects_lead_nowhere_for_ever(location: str):
    judge = Answer(307, headers={"Location": location})
    async with Endpoint(judge=lambda _: judge) as endpoint:
        undelivered = await send(WebhookSink(url=endpoint.url), *nodes(1))
    assert undelivered is not None
    assert not undelivered.permanent
    assert 1 <= len(endpoint.received) <= 4


async def test_only_a_certificate_that_is_trusted_is_talked_to(tmp_path: Path):
    ca, stranger = trustme.CA(), trustme.CA()
    async with Endpoint(tls=ca) as endpoint:
        trusting = WebhookSink(url=endpoint.url, ca_file=ca_file(ca, tmp_path))
        assert await send(trusting, *nodes(1)) is None
        for sink in (
            WebhookSink(url=endpoint.url),
            WebhookSink(url=endpoint.url, ca_file=ca_file(stranger, tmp_path)),
        ):
            undelivered = await send(sink, *nodes(1))
            assert undelivered is not None
            assert "ClientConnectorCertificateError" in undelivered.reason
    assert len(endpoint.received) == 1


async def test_secrets_are_never_told(caplog: pytest.LogCaptureFixture):
    told = Told.watching(caplog)
    fields: dict[str, Any] = {"secret": SECRET, "headers": {"X-Api-Key": "t0ps3cret"}}
    async with Endpoint(Answer(500), Answer(307, headers={"Location": "http://x/"})) as endpoint:
        sink = WebhookSink(url=endpoint.url, **fields)
        for one in (sink, sink, WebhookSink(url="http://127.0.0.1:9/s3cr3t-path", **fields)):
            undelivered = await send(one, *nodes(1))
            assert undelivered is not None
            told.error(undelivered)
    wrongs: list[dict[str, Any]] = [
        {"url": "ftp://x/s3cr3t-path"},
        {"url": "http://u:s3cr3t-path@x/"},
        {"url": "http://x:y/s3cr3t-path"},
        {"secret": "whsec_s3cr3t-path"},
        {"headers": {"X-Api-Key": "t0ps3cret\n"}},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigError) as caught:
            WebhookSink(**{"url": "http://x", **wrong})
        told.error(caught.value)
    everything = told.everything(sink)
    assert "WebhookSink(http://127.0.0.1:" in everything
    for secret in ("s3cr3t-path", "t0ps3cret", SECRET.removeprefix("whsec_")):
        assert secret not in everything


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": 7}, "url"),
        ({"url": "x.example/hook"}, "url"),
        ({"url": "https:///hook"}, "url"),
        ({"url": "https://x.example/a b"}, "url"),
        ({"url": "https://user:pw@x.example/"}, "url"),
        ({"secret": "whsec_!!"}, "secret"),
        ({"secret": base64.b64encode(b"short").decode()}, "secret"),
        ({"secret": base64.b64encode(b"l" * 65).decode()}, "secret"),
        ({"secret": [SECRET, 3]}, "secret"),
        ({"headers": {"Webhook-Id": "1"}}, "headers"),
        ({"headers": {"a b": "1"}}, "headers"),
        ({"headers": {"a": "1\r\nb: 2"}}, "headers"),
        ({"headers": "a: 1"}, "headers"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
        ({"deadline": 0}, "deadline"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_delay": -1}, "batch_delay"),
        ({"on": "No Such"}, "on"),
        ({"rules": []}, "rules"),
    ],
)
def test_what_cannot_work_is_refused_when_the_sink_is_made(fields: dict[str, Any], named: str):
    given: dict[str, Any] = {"url": "https://x.example/"}
    with pytest.raises(ConfigError, match=f"^{named}"):
        WebhookSink(**(given | fields))


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(ConfigError, match=r"WebhookSink needs nothing-here: pip install 'stan.*h"):
        require("nothing_here", "nothing-here", extra="http", owner="WebhookSink")


async def test_a_sink_that_is_not_started_says_so():
    with pytest.raises(StanchionError, match="not started"):
        await WebhookSink(url="http://x.example/").handle_batch(nodes(1))


async def test_starting_and_closing_twice_is_harmless():
    async with Endpoint() as endpoint:
        sink = WebhookSink(url=endpoint.url)
        await sink.start()
        assert await send(sink, *nodes(1)) is None
        await sink.close()
        assert await send(sink, *nodes(1)) is None
    assert len(endpoint.received) == 2


# ---- alerts


RULE = AlertRule(
    "node-failed",
    on=NodeFailed,
    group_by=("node",),
    resolve_on=NodeCompleted,
    severity="warning",
    text="$node: $error",
)


async def test_with_rules_a_webhook_is_told_of_alerts_and_of_nothing_else():
    failures = [NodeFailed(node="a", error=f"e{number}") for number in range(3)]
    end = NodeCompleted(node="a", duration=1.0)
    async with Endpoint() as endpoint:
        sink = WebhookSink(url=endpoint.url, secret=SECRET, rules=[RULE])
        assert sink.on == (NodeFailed, NodeCompleted)
        async with ObserverManager() as manager:
            manager.register(sink)
            for event in (*failures, *nodes(3), end):
                manager.notify(event)
            assert await manager.drain(5.0)
    opened, closed = [Event.from_cloudevent(document) for document in endpoint.events]
    Webhook(SECRET).verify(endpoint.received[0].body, dict(endpoint.received[0].headers))
    assert isinstance(opened, AlertTriggered)
    assert (opened.rule, opened.severity, opened.text) == ("node-failed", "warning", "a: e2")
    assert (opened.group, opened.count) == ({"node": "a"}, 3)
    assert (opened.latest_type, opened.latest_id) == ("node:failed", failures[2].id)
    assert opened.since == failures[0].timestamp
    assert isinstance(closed, AlertResolved)
    assert closed.key == opened.key == "stanchion/node-failed/a"


async def test_an_alert_that_was_not_taken_is_sent_again_as_the_same_and_counted_once():
    failure = NodeFailed(node="a", error="e")
    async with Endpoint(Answer(503, headers={"Retry-After": "2"})) as endpoint:
        sink = WebhookSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch([failure])
        assert (caught.value.events, caught.value.retry_after) == ((failure,), 2.0)
        await sink.handle_batch([failure])
        await sink.handle_batch([failure])
        await sink.close()
    first, second = endpoint.received
    assert first.json == second.json
    assert first.json[0]["data"]["count"] == 1
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_calls_at_the_same_time_send_every_alert_once():
    async with Endpoint() as endpoint:
        sink = WebhookSink(url=endpoint.url, rules=[RULE])
        await sink.start()
        failures = [NodeFailed(node=f"n{number}", error="e") for number in range(20)]
        await asyncio.gather(*(sink.handle_batch([failure]) for failure in failures))
        await sink.close()
    assert [one["data"]["latest_id"] for one in endpoint.events] == [one.id for one in failures]
