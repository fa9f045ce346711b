"""EventBridgeSink: a bus of moto's with a rule to a queue, and the answers that AWS documents."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, NodeCompleted, UnknownEvent
from stanchion.observers import ObserverManager
from stanchion.observers.sinks.eventbridge import EventBridgeSink
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.endpoints import Answer, Endpoint, Received, nodes, send

REGION = "eu-central-1"
LIMIT = 256 * 1024
ACCOUNT = "123456789012"


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """AWS as far as moto has it, on a port of its own."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@dataclass
class Queue:
    """What the rule has put into the queue, read as often as asked."""

    sqs: Any
    url: str
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    async def read(self) -> Sequence[dict[str, Any]]:
        while found := (
            await self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10)
        ).get("Messages"):
            for message in found:
                self.messages.append(json.loads(message["Body"]))
                await self.sqs.delete_message(
                    QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"]
                )
        return self.messages

    async def documents(self) -> Sequence[dict[str, Any]]:
        return [message["detail"] for message in await self.read()]


@asynccontextmanager
async def bus_with_rule(aws: str, name: str, pattern: dict[str, Any]) -> AsyncIterator[Queue]:
    """Make a bus with a rule that takes what matches to a queue."""
    session: Any = AioSession()
    async with (
        session.create_client("events", endpoint_url=aws) as events,
        session.create_client("sqs", endpoint_url=aws) as sqs,
    ):
        url = (await sqs.create_queue(QueueName=name))["QueueUrl"]
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
        await events.create_event_bus(Name=name)
        await events.put_rule(Name=name, EventBusName=name, EventPattern=json.dumps(pattern))
        await events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "1", "Arn": arn}])
        yield Queue(sqs, url)


def entries(request: Received) -> list[dict[str, Any]]:
    assert request.headers["X-Amz-Target"] == "AWSEvents.PutEvents"
    return request.json["Entries"]


def answered(*codes: str | None, **headers: str) -> Answer:
    """An answer of AWS, with an error for each entry that has a code."""
    results = [
        {"ErrorCode": code, "ErrorMessage": "..."} if code else {"EventId": str(number)}
        for number, code in enumerate(codes)
    ]
    failed = sum(code is not None for code in codes)
    return Answer(200, json.dumps({"FailedEntryCount": failed, "Entries": results}), headers)


def all_taken(request: Received) -> Answer:
    return answered(*[None] * len(entries(request)))


def error(status: int, code: str, **headers: str) -> Answer:
    return Answer(status, json.dumps({"__type": code, "message": "..."}), headers)


def nodes_of(endpoint: Endpoint) -> list[list[str]]:
    return [
        [json.loads(entry["Detail"])["data"]["node"] for entry in entries(request)]
        for request in endpoint.received
    ]


# ---- a bus


async def test_the_contract_of_sinks(aws: str):
    async with bus_with_rule(aws, "contract", {"source": ["stanchion"]}) as queue:
        sink = EventBridgeSink(event_bus="contract", endpoint_url=aws)
        await check_contract(Counterpart(sink, queue.documents))


async def test_rules_see_source_type_time_and_every_field(aws: str):
    pattern = {
        "source": ["shop.worker"],
        "detail-type": ["node:completed"],
        "detail": {"data": {"tenant": ["acme"], "duration": [{"numeric": [">", 1]}]}},
    }
    before = datetime(2026, 1, 31, 12, tzinfo=UTC)
    wanted = NodeCompleted(node="a", duration=2.0, tenant="acme", timestamp=before)
    others = [
        NodeCompleted(node="b", duration=0.5, tenant="acme"),
        NodeCompleted(node="c", duration=2.0, tenant="other"),
    ]
    async with bus_with_rule(aws, "matching", pattern) as queue:
        sink = EventBridgeSink(
            event_bus="matching",
            source=lambda event: "shop.worker" if event.node != "d" else "elsewhere",
            endpoint_url=aws,
        )
        batch = [*others, wanted, NodeCompleted(node="d", duration=2.0, tenant="acme")]
        assert await send(sink, *batch) is None
        [message] = await queue.read()
    assert Event.from_cloudevent(message["detail"]) == wanted
    assert (message["source"], message["detail-type"]) == ("shop.worker", "node:completed")
    assert message["time"] == "2026-01-31T12:00:00Z"


async def test_thirty_five_events_are_four_requests_and_all_arrive(aws: str):
    events = nodes(35)
    async with bus_with_rule(aws, "many", {"source": ["stanchion"]}) as queue:
        sink = EventBridgeSink(event_bus="many", endpoint_url=aws, batch_size=100)
        assert await send(sink, *events) is None
        assert [Event.from_cloudevent(one) for one in await queue.documents()] == events


# ---- limits


async def test_requests_keep_to_ten_entries_and_to_the_size_that_aws_counts():
    # Two bytes a letter: characters are not what is counted.
    events = nodes(4, metadata={"text": "ü" * 60_000})
    large = NodeCompleted(node="large", duration=1.0, result="x" * LIMIT)
    async with Endpoint(judge=all_taken) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin, batch_size=50)
        undelivered = await send(sink, *events, large, *nodes(15))
        sizes = [
            sum(
                14 + sum(len(entry[name].encode()) for name in ("Source", "DetailType", "Detail"))
                for entry in entries(request)
            )
            for request in endpoint.received
        ]
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((large,), True)
    assert [len(one) for one in nodes_of(endpoint)] == [2, 10, 7]
    assert max(sizes) < LIMIT


@pytest.mark.parametrize(("room", "fits"), [(1, True), (0, False)])
async def test_an_entry_is_smaller_than_the_limit_by_a_byte_or_it_is_refused(room: int, fits: bool):
    [event] = nodes(1)
    detail = json.dumps(event.to_cloudevent(), separators=(",", ":"))
    size = 14 + len("stanchion") + len("node:completed") + len(detail)
    async with Endpoint(judge=all_taken) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin, max_bytes=size + room)
        assert (await send(sink, event) is None) is fits
    assert len(endpoint.received) == fits


# ---- what comes of an answer


async def test_only_the_entries_that_failed_come_back_and_in_their_order():
    events = nodes(5)
    answer = answered(None, "ThrottlingException", "InternalFailure", "ThrottlingException", None)
    async with Endpoint(answer, judge=all_taken) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin)
        undelivered = await send(sink, *events)
        assert undelivered is not None
        assert undelivered.events == tuple(events[1:4])
        assert (undelivered.permanent, undelivered.retry_after) == (False, 1.0)
        assert await send(sink, *undelivered.events) is None
    assert nodes_of(endpoint) == [[f"n{one}" for one in range(5)], ["n1", "n2", "n3"]]


async def test_the_manager_sends_the_failed_entries_again_and_no_others():
    events = nodes(5)
    answer = answered(None, "InternalFailure", None, "InternalFailure", None)
    async with Endpoint(answer, judge=all_taken) as endpoint, ObserverManager() as manager:
        sink = EventBridgeSink(endpoint_url=endpoint.origin, batch_size=5, batch_delay="1m")
        name = manager.register(sink)
        for event in events:
            manager.notify(event)
        assert await manager.drain(10.0)
        stats = manager.stats()[name]
    assert (stats.delivered, stats.failed) == (5, 0)
    assert nodes_of(endpoint) == [[f"n{one}" for one in range(5)], ["n1", "n3"]]


@pytest.mark.parametrize(
    ("code", "permanent"),
    [
        ("MalformedDetail", True),
        ("InvalidArgument", True),
        ("NotAuthorizedForSourceException", True),
        ("AccessDeniedException", False),
        ("InternalFailure", False),
        ("SomethingNew", False),
    ],
)
async def test_an_entry_that_will_never_do_is_told_from_one_that_may(code: str, permanent: bool):
    events = nodes(2)
    async with Endpoint(answered(None, code)) as endpoint:
        undelivered = await send(EventBridgeSink(endpoint_url=endpoint.origin), *events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[1],), permanent)
    assert undelivered.reason == f"EventBridge answered {code} for an entry"
    assert undelivered.retry_after is None


async def test_failures_of_both_kinds_come_back_until_those_for_good_are_alone():
    events = nodes(3)
    async with Endpoint(
        answered("InternalFailure", "MalformedDetail", None), answered(None, "MalformedDetail")
    ) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin)
        undelivered = await send(sink, *events)
        assert undelivered is not None
        assert (undelivered.events, undelivered.permanent) == ((events[0], events[1]), False)
        undelivered = await send(sink, *undelivered.events)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((events[1],), True)


@pytest.mark.parametrize(
    ("answer", "wait", "permanent"),
    [
        (error(400, "ThrottlingException"), 1.0, False),
        (error(429, "TooManyRequests", **{"Retry-After": "9"}), 9.0, False),
        (error(500, "InternalException"), None, False),
        (error(503, "ServiceUnavailable"), None, False),
        (error(400, "AccessDeniedException"), None, False),
        (error(400, "ResourceNotFoundException"), None, False),
        (error(400, "ValidationException"), None, True),
    ],
)
async def test_what_a_refused_request_says(answer: Answer, wait: float | None, permanent: bool):
    [event] = nodes(1)
    async with Endpoint(answer) as endpoint:
        undelivered = await send(EventBridgeSink(endpoint_url=endpoint.origin), event)
    assert undelivered is not None
    assert (undelivered.events, undelivered.permanent) == ((event,), permanent)
    assert undelivered.retry_after == wait
    # The SDK's own repetitions are off: the manager decides when.
    assert len(endpoint.received) == 1


async def test_a_refused_request_leaves_the_next_ones_unsent():
    events = nodes(25)
    async with Endpoint(error(400, "ThrottlingException"), judge=all_taken) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin, batch_size=25)
        undelivered = await send(sink, *events)
    assert undelivered is not None
    assert undelivered.events == tuple(events)
    assert len(endpoint.received) == 1


async def test_aws_that_hangs_holds_nobody_longer_than_the_deadline():
    async with Endpoint(Answer(hangs=True)) as endpoint:
        sink = EventBridgeSink(endpoint_url=endpoint.origin, deadline="400ms")
        before = time.monotonic()
        undelivered = await send(sink, *nodes(2))
        assert time.monotonic() - before < 2.0
    assert undelivered is not None
    assert (len(undelivered.events), undelivered.permanent) == (2, False)


async def test_without_credentials_and_with_nobody_there_the_batch_waits(
    monkeypatch: pytest.MonkeyPatch,
):
    async with Endpoint() as endpoint:
        pass
    undelivered = await send(EventBridgeSink(endpoint_url=endpoint.origin), *nodes(1))
    assert undelivered is not None
    assert "EndpointConnectionError" in undelivered.reason
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    undelivered = await send(EventBridgeSink(endpoint_url=endpoint.origin), *nodes(1))
    assert undelivered is not None
    assert "NoCredentialsError" in undelivered.reason
    assert not undelivered.permanent


async def test_what_the_users_own_functions_make_of_an_event_holds_up_no_other():
    def source(event: Event) -> str:
        return {"n0": "", "n1": "fine", "n2": "x" * 257}[event.node or ""]

    events = nodes(4)
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "t" * 129 + ".x"}
    unknown = UnknownEvent(document=document)
    async with Endpoint(judge=all_taken) as endpoint:
        undelivered = await send(
            EventBridgeSink(endpoint_url=endpoint.origin, source=source), *events
        )
        assert undelivered is not None
        assert undelivered.events == (events[0], events[2], events[3])
        assert undelivered.permanent
        assert "KeyError" in undelivered.reason
        undelivered = await send(EventBridgeSink(endpoint_url=endpoint.origin), unknown, events[0])
        assert undelivered is not None
        assert undelivered.events == (unknown,)
    assert nodes_of(endpoint) == [["n1"], ["n0"]]


# ---- declarations


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"event_bus": ""}, "event_bus"),
        ({"source": "aws.mine"}, "source"),
        ({"source": 1}, "source"),
        ({"detail_type": "x" * 129}, "detail_type"),
        ({"endpoint_url": "localhost:4566"}, "endpoint_url"),
        ({"max_bytes": 1024 * 1024 + 1}, "max_bytes"),
        ({"deadline": "0s"}, "deadline"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_delay": -1}, "batch_delay"),
        ({"on": "No Such"}, "on"),
    ],
)
def test_what_cannot_work_is_refused_when_the_sink_is_made(fields: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=f"^{named}"):
        EventBridgeSink(**fields)


async def test_a_region_that_nobody_names_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    sink = EventBridgeSink()
    with pytest.raises(ConfigError, match=r"^region"):
        await sink.start()
    await sink.close()
    with pytest.raises(StanchionError, match="not started"):
        await sink.handle_batch(nodes(1))
