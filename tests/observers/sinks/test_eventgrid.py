"""EventGridSink: Azure's own SDK against an endpoint that checks as Event Grid does."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, NodeCompleted
from stanchion.events.cloudevents import parse_time, write_time
from stanchion.observers.sinks.eventgrid import EventGridSink
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.endpoints import (
    OK,
    Answer,
    Endpoint,
    Received,
    Told,
    ca_file,
    nodes,
    send,
)

KEY = "bm90IGEga2V5IG9mIGFueWJvZHksIHRob3VnaA=="
LIMIT = 1024 * 1024


def eventgrid(request: Received) -> Answer:
    """Judge a request by the rules that Azure documents for topics with the CloudEvents schema."""
    if request.headers.get("aeg-sas-key") != KEY:
        return Answer(401)
    if len(request.body) > LIMIT:
        return Answer(413)
    for document in request.json:
        # The reference reader raises for what is no CloudEvent.
        JSONFormat().read(CloudEvent, json.dumps(document))
    fine = (
        request.path == "/api/events"
        and request.query == {"api-version": "2018-01-01"}
        and request.headers["Content-Type"].startswith("application/cloudevents-batch+json")
    )
    return OK if fine else Answer(400)


@asynccontextmanager
async def topic(
    directory: Path,
    *answers: Answer,
    judge: Callable[[Received], Answer] = eventgrid,
) -> AsyncIterator[tuple[Endpoint, dict[str, Any]]]:
    """Get an endpoint with TLS, and the arguments of a sink for it."""
    ca = trustme.CA()
    async with Endpoint(*answers, judge=judge, tls=ca) as endpoint:
        yield (
            endpoint,
            {
                "endpoint": f"{endpoint.origin}/api/events",
                "key": KEY,
                "ca_file": ca_file(ca, directory),
            },
        )


async def test_the_contract_of_sinks(tmp_path: Path):
    async with topic(tmp_path) as (endpoint, arguments):

        async def read_back() -> Sequence[dict[str, Any]]:
            # The SDK leaves out the zeros at the end of the fraction of a second.
            return [one | {"time": write_time(parse_time(one["time"]))} for one in endpoint.events]

        await check_contract(Counterpart(EventGridSink(**arguments), read_back))
        assert all(eventgrid(request) is OK for request in endpoint.received)


async def test_a_namespace_topic_gets_the_same_documents(tmp_path: Path):
    events = nodes(2)
    async with topic(tmp_path, judge=lambda _: Answer(200, "{}")) as (endpoint, arguments):
        arguments["endpoint"] = endpoint.origin
        sink = EventGridSink(**arguments, namespace_topic="orders")
        assert await send(sink, *events) is None
    [request] = endpoint.received
    assert request.path == "/topics/orders:publish"
    assert request.headers["Authorization"] == f"SharedAccessKey {KEY}"
    assert [Event.from_cloudevent(document) for document in endpoint.events] == events


class Tokens:
    """Gives tokens as azure-identity's credentials do, or fails as they do."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.scopes: tuple[str, ...] = ()
        self.closed = False

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        if not self._token:
            raise ClientAuthenticationError("no identity here")
        self.scopes = scopes
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


async def test_a_credential_stands_in_for_the_key_and_stays_its_owners(tmp_path: Path):
    async with topic(tmp_path, judge=lambda _: OK) as (endpoint, arguments):
        arguments["key"] = None
        tokens = Tokens("t0k3n")
        assert await send(EventGridSink(**arguments, credential=tokens), *nodes(1)) is None
        assert endpoint.received[0].headers["Authorization"] == "Bearer t0k3n"
        assert tokens.scopes == ("https://eventgrid.azure.net/.default",)
        assert not tokens.closed
        undelivered = await send(EventGridSink(**arguments, credential=Tokens("")), *nodes(1))
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin}: ClientAuthenticationError"
    assert not undelivered.permanent


async def test_requests_keep_within_a_megabyte_as_the_sdk_writes_it(tmp_path: Path):
    # What the SDK writes as \u00fc has six bytes instead of two.
    events = nodes(8, metadata={"text": "ü" * 40_000})
    large = NodeCompleted(node="large", duration=1.0, result="ü" * 180_000)
    async with topic(tmp_path) as (endpoint, arguments):
        undelivered = await send(EventGridSink(**arguments), *events[:4], large, *events[4:])
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((large,), True)
    assert [len(request.json) for request in endpoint.received] == [4, 4]
    assert all(eventgrid(request) is OK for request in endpoint.received)


async def test_the_size_of_a_request_is_known_to_a_few_bytes(tmp_path: Path):
    events = nodes(50, metadata={"a": [1, 2.5, None, {"b": "é🚀\n"}]})
    padding = NodeCompleted(node="p", duration=1.0, result="x" * (LIMIT - 10_000))
    async with topic(tmp_path) as (endpoint, arguments):
        assert await send(EventGridSink(**arguments), padding, *events) is None
    first = endpoint.received[0]
    # Full, but for less than one more event.
    assert LIMIT - 1300 < len(first.body) <= LIMIT
    assert len(endpoint.received) == 2


# ---- what comes of an answer


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
async def test_what_may_pass_leaves_the_batch_to_be_sent_again(status: int, tmp_path: Path):
    events = nodes(3)
    answer = Answer(status, headers={"Retry-After": "12"})
    async with topic(tmp_path, answer) as (endpoint, arguments):
        undelivered = await send(EventGridSink(**arguments), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == (tuple(events), False)
    assert undelivered.retry_after == 12.0
    assert undelivered.reason == f"{endpoint.origin} answered {status}"
    # The SDK's own repetitions are off.
    assert len(endpoint.received) == 1


@pytest.mark.parametrize("status", [400, 413])
async def test_an_event_that_is_refused_does_not_take_the_others_with_it(
    status: int, tmp_path: Path
):
    def judge(request: Received) -> Answer:
        poison = any(document["data"]["node"] == "n3" for document in request.json)
        return Answer(status) if poison else eventgrid(request)

    events = nodes(8)
    async with topic(tmp_path, judge=judge) as (endpoint, arguments):
        undelivered = await send(EventGridSink(**arguments), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[3],), True)
    taken = [one for one in endpoint.received if judge(one) is OK]
    assert len([document for one in taken for document in one.json]) == 7


async def test_a_redirect_is_not_followed(tmp_path: Path):
    async with Endpoint() as other:
        moved = Answer(307, headers={"Location": other.url})
        async with topic(tmp_path, moved) as (endpoint, arguments):
            undelivered = await send(EventGridSink(**arguments), *nodes(1))
    assert undelivered is not None
    assert undelivered.reason == f"{endpoint.origin} answered 307"
    assert other.received == []


async def test_a_receiver_that_hangs_holds_nobody_longer_than_the_deadline(tmp_path: Path):
    async with topic(tmp_path, Answer(hangs=True)) as (_, arguments):
        before = time.monotonic()
        undelivered = await send(EventGridSink(**arguments, deadline=0.4), *nodes(1))
        assert time.monotonic() - before < 2.0
    assert undelivered is not None
    assert not undelivered.permanent


async def test_only_a_certificate_that_is_trusted_is_talked_to(tmp_path: Path):
    async with topic(tmp_path) as (endpoint, arguments):
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        for ca in (None, ca_file(trustme.CA(), stranger)):
            arguments["ca_file"] = ca
            undelivered = await send(EventGridSink(**arguments), *nodes(1))
            assert undelivered is not None
            assert undelivered.reason == f"{endpoint.origin}: ServiceRequestError"
    assert endpoint.received == []


# ---- declarations


async def test_the_key_is_never_told(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    told = Told.watching(caplog)
    async with topic(tmp_path, Answer(401)) as (_, arguments):
        sink = EventGridSink(**arguments)
        undelivered = await send(sink, *nodes(1))
        assert undelivered is not None
        told.error(undelivered)
    assert "EventGridSink(https://127.0.0.1:" in told.everything(sink)
    assert KEY not in told.everything(sink)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"endpoint": "http://x.eventgrid.azure.net/api/events"}, "endpoint: expected an https"),
        ({"endpoint": "x.eventgrid.azure.net"}, "endpoint"),
        ({"key": None}, "EventGridSink: expected one of key and credential"),
        ({"credential": object()}, "EventGridSink: expected one of key and credential"),
        ({"key": ""}, "key"),
        ({"namespace_topic": ""}, "namespace_topic"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
        ({"deadline": 0}, "deadline"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_delay": "soon"}, "batch_delay"),
        ({"on": "No Such"}, "on"),
    ],
)
def test_what_cannot_work_is_refused_when_the_sink_is_made(fields: dict[str, Any], named: str):
    given: dict[str, Any] = {"endpoint": "https://x.eventgrid.azure.net/api/events", "key": KEY}
    with pytest.raises(ConfigError, match=f"^{named}"):
        EventGridSink(**(given | fields))


async def test_a_sink_that_is_not_started_says_so():
    sink = EventGridSink(endpoint="https://x.eventgrid.azure.net/api/events", key=KEY)
    with pytest.raises(StanchionError, match="not started"):
        await sink.handle_batch(nodes(1))
