"""KafkaSink, against a real broker in a process of its own, and one that fails when told to."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time
from collections import defaultdict
from contextlib import suppress

import pytest
import trustme
from aiokafka.errors import KafkaConnectionError
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event, LLMPromptSent, NodeCompleted, ToolCalled, UnknownEvent
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.kafka import KafkaSink
from tests.observers.contract import Counterpart, check_contract
from tests.observers.sinks.kafka_broker import (
    CLUSTER_UNAUTHORIZED,
    INIT_PRODUCER_ID,
    NOT_LEADER,
    OUT_OF_ORDER,
    PRODUCE,
    TIMED_OUT,
    TOO_LARGE,
    UNAUTHORIZED,
    MockCluster,
    Tansu,
    create_topics,
    document,
    records,
    tls_front,
)
from tests.observers.sinks.turns import longest_turn
from tests.servers import free_port
from tests.waiting import eventually

PASSWORD = "do not show me"


@pytest.fixture
def tansu(pool):
    return pool.lend("tansu", lambda: Tansu(pool.reaper))


@pytest.fixture
def mock():
    cluster = MockCluster()
    cluster.create_topic("events")
    yield cluster
    cluster.close()


@pytest.fixture
async def opened():
    """Starts sinks, and closes them at the end of the test."""
    sinks: list[KafkaSink] = []

    async def start(*arguments, **named) -> KafkaSink:
        sink = KafkaSink(*arguments, **named)
        sinks.append(sink)
        await sink.start()
        return sink

    yield start
    for sink in sinks:
        await sink.close()


def calls(number: int, **fields) -> list[ToolCalled]:
    return [ToolCalled(tool=str(index), **fields) for index in range(number)]


async def ids(cluster: MockCluster, topic: str = "events") -> list[str]:
    """Get the ids of all that was written, without an order."""
    found = await records(cluster.address, topic, partitions=4)
    return sorted(document(record)["id"] for record in found)


async def delivered(sink: KafkaSink, events) -> None:
    """Hand a batch in until it is taken."""
    async with asyncio.timeout(10):
        while True:
            with suppress(Undelivered):
                return await sink.handle_batch(events)


def known(events) -> list[str]:
    return sorted(event.id for event in events)


# ---------------------------------------------------------------------------- what arrives, and how


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_the_contract_of_all_sinks_holds(tansu, mode):
    topic = f"contract.{mode}"
    await create_topics(tansu.address, topic)

    async def read_back():
        return [document(record) for record in await records(tansu.address, topic)]

    sink = KafkaSink(tansu.address, topic=topic, mode=mode)
    await check_contract(Counterpart(sink, read_back))


async def test_a_reference_reader_reads_the_binary_mode(tansu, opened):
    await create_topics(tansu.address, "binary", partitions=1)
    event = LLMPromptSent(model="m1", run_id="Ω", prompt="wie geht's?", metadata={"n": 1})
    sink = await opened(tansu.address, topic="binary")
    await sink.handle_batch([event])
    (record,) = await records(tansu.address, "binary", partitions=1)
    message = KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value)
    read = from_binary_event(message)
    ours = event.to_cloudevent()
    assert (read.get_id(), read.get_type(), read.get_source()) == (
        *(ours["id"], ours["type"], ours["source"]),
    )
    assert read.get_subject() == ours["subject"]
    assert read.get_data() == ours["data"]
    assert dict(record.headers)["content-type"] == b"application/json"
    assert abs(record.timestamp - event.timestamp.timestamp() * 1000) <= 1


async def test_values_of_every_kind_become_headers_and_bytes(mock, opened):
    common = {"specversion": "1.0", "source": "/x", "type": "com.example.x"}
    events = [
        UnknownEvent.from_cloudevent({**common, "id": "1", "flag": True, "count": -7}),
        UnknownEvent.from_cloudevent({**common, "id": "2", "data_base64": "AAH/"}),
        UnknownEvent.from_cloudevent(
            {**common, "id": "3", "datacontenttype": "text/plain", "data": "<é>"}
        ),
        UnknownEvent.from_cloudevent({**common, "id": "4", "data": "text"}),
    ]
    sink = await opened(mock.address, topic="events")
    await sink.handle_batch(events)
    found = {
        dict(record.headers)["ce_id"]: record
        for record in await records(mock.address, "events", partitions=4)
    }
    headers = dict(found[b"1"].headers)
    assert (headers["ce_flag"], headers["ce_count"]) == (b"true", b"-7")
    assert "content-type" not in headers
    bodies = [found[key].value for key in (b"1", b"2", b"3", b"4")]
    assert bodies == [None, b"\x00\x01\xff", "<é>".encode(), b'"text"']


async def test_a_run_stays_in_one_partition_and_in_order(tansu, opened):
    await create_topics(tansu.address, "runs", partitions=4)
    runs = [calls(60, run_id=f"run-{number}") for number in range(6)]
    alone = calls(8)
    mixed: list[Event] = [event for row in zip(*runs, strict=True) for event in row]
    sink = await opened(tansu.address, topic="runs")
    await sink.handle_batch([*mixed[:100], *alone])
    await sink.handle_batch(mixed[100:])
    places = defaultdict(set)
    order = defaultdict(list)
    for record in await records(tansu.address, "runs", partitions=4):
        key = record.key.decode()
        places[key].add(record.partition)
        order[key].append(document(record)["id"])
    for number, run in enumerate(runs):
        assert order[f"run-{number}"] == [event.id for event in run]
        assert len(places[f"run-{number}"]) == 1
    assert all(order[event.id] == [event.id] for event in alone)
    assert len({place for found in places.values() for place in found}) > 1


async def test_a_topic_is_made_from_the_type_or_chosen_by_it(mock, opened):
    for topic in ("of.tool.called", "llm", "nodes"):
        mock.create_topic(topic)
    sink = await opened(mock.address, topic="of.{type}")
    await sink.handle_batch(calls(1))
    assert len(await ids(mock, "of.tool.called")) == 1

    chosen = await opened(mock.address, topic={"llm:*": "{namespace}", NodeCompleted: "nodes"})
    prompt, done = LLMPromptSent(model="m"), NodeCompleted(node="n", duration=1.0)
    other = ToolCalled(tool="t")
    assert chosen.on == ("llm:*", NodeCompleted)
    with pytest.raises(Undelivered) as caught:
        await chosen.handle_batch([prompt, other, done])
    assert (caught.value.events, caught.value.permanent) == ((other,), True)
    assert await ids(mock, "llm") == [prompt.id]
    assert await ids(mock, "nodes") == [done.id]


# --------------------------------------------------------------------------------- idempotence


async def test_a_broker_that_cannot_drop_duplicates_is_used_all_the_same(tansu, opened):
    await create_topics(tansu.address, "plain", partitions=1)
    sink = await opened(tansu.address, topic="plain")
    assert sink.drops_duplicates is False
    await sink.handle_batch(calls(3))
    assert len(await records(tansu.address, "plain", partitions=1)) == 3


async def test_what_insists_on_idempotence_does_not_start_without(tansu):
    sink = KafkaSink(tansu.address, idempotence="on")
    with pytest.raises(StanchionError, match="refuse idempotent producers"):
        await sink.start()
    await sink.close()


async def test_brokers_that_drop_duplicates_are_asked_to(mock, opened):
    sink = await opened(mock.address, idempotence="auto")
    assert sink.drops_duplicates is True
    off = await opened(mock.address, idempotence="off")
    assert off.drops_duplicates is False
    assert mock.requests()[INIT_PRODUCER_ID] == 1


async def test_brokers_that_do_not_allow_it_are_asked_once(mock, opened):
    mock.fail(INIT_PRODUCER_ID, CLUSTER_UNAUTHORIZED)
    sink = await opened(mock.address, topic="events", timeout=2)
    assert sink.drops_duplicates is False
    mock.fail(PRODUCE, UNAUTHORIZED)
    events = calls(1)
    with pytest.raises(Undelivered):
        await sink.handle_batch(events)
    await sink.handle_batch(events)
    assert mock.requests()[INIT_PRODUCER_ID] == 1


async def test_a_batch_does_not_keep_the_loop(mock, opened):
    sink = await opened(mock.address, topic="events", timeout=20)
    events = calls(1000, run_id="r")
    began = time.thread_time()
    for event in events:
        event.to_cloudevent()
    at_once = time.thread_time() - began
    assert await longest_turn(sink.handle_batch(events)) < at_once / 3


# -------------------------------------------------------------------------------------- faults


async def test_what_passes_by_itself_is_not_noticed(mock, opened):
    sink = await opened(mock.address, topic="events")
    mock.fail(PRODUCE, NOT_LEADER, TIMED_OUT)
    events = calls(20, run_id="r")
    await sink.handle_batch(events)
    assert await ids(mock) == known(events)


async def test_only_what_a_broker_refused_is_named_and_the_rest_goes_on(mock, opened):
    mock.create_topic("first")
    mock.create_topic("second")
    sink = await opened(mock.address, topic={"tool:*": "first", "*": "second"}, timeout=2)
    tools, nodes = calls(5, run_id="r"), [NodeCompleted(node="n", duration=1.0, run_id="r")]
    await sink.handle_batch([tools[0]])
    mock.fail(PRODUCE, UNAUTHORIZED)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch(tools[1:])
    assert caught.value.events == tuple(tools[1:])
    assert not caught.value.permanent
    assert "TopicAuthorizationFailedError (4)" in caught.value.reason
    # The numbers of the refused records are used up, so another producer takes over.
    await sink.handle_batch([*tools[1:], *nodes])
    assert mock.requests()[INIT_PRODUCER_ID] == 2
    assert await ids(mock, "first") == known(tools)
    assert await ids(mock, "second") == known(nodes)


async def test_a_producer_out_of_step_is_replaced(mock, opened):
    sink = await opened(mock.address, topic="events", timeout=2)
    events = calls(3, run_id="r")
    mock.fail(PRODUCE, OUT_OF_ORDER)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch(events)
    assert caught.value.events == tuple(events)
    await sink.handle_batch(events)
    assert await ids(mock) == known(events)


async def test_an_event_that_is_too_large_is_refused_for_good_and_alone(mock, opened):
    sink = await opened(mock.address, topic="events")
    huge = ToolCalled(tool="t", arguments={"text": "x" * 2_000_000})
    small = calls(3)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch([small[0], huge, *small[1:]])
    assert (caught.value.events, caught.value.permanent) == ((huge,), True)
    assert await ids(mock) == known(small)
    mock.fail(PRODUCE, TOO_LARGE)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch(small[:1])
    assert caught.value.permanent


async def test_a_mixture_of_failures_is_worth_another_attempt(mock, opened):
    sink = await opened(mock.address, topic="events", timeout=2)
    huge, small = ToolCalled(tool="t", arguments={"text": "x" * 2_000_000}), calls(1)[0]
    mock.fail(PRODUCE, UNAUTHORIZED)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch([huge, small])
    assert (set(caught.value.events), caught.value.permanent) == ({huge, small}, False)


async def test_an_outage_is_told_in_time_and_afterwards_nothing_is_missing_or_twice(mock, opened):
    sink = await opened(mock.address, topic="events", timeout=0.6)
    events = calls(30, run_id="r")
    await sink.handle_batch(events[:10])
    mock.down()
    for _ in range(2):
        began = asyncio.get_running_loop().time()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch(events[10:20])
        assert asyncio.get_running_loop().time() - began < 1.5
        assert caught.value.events == tuple(events[10:20])
        assert not caught.value.permanent
    mock.up()
    await delivered(sink, events[10:20])
    await sink.handle_batch(events[20:])
    found = await records(mock.address, "events", partitions=4)
    assert [document(record)["id"] for record in found] == [event.id for event in events]


async def test_a_record_whose_fate_was_unknown_is_waited_for_and_not_written_again(mock, opened):
    sink = await opened(mock.address, topic="events", timeout=1.5)
    mock.delay(800)  # the first request of all goes ahead of the records
    events = calls(3, run_id="r")
    with pytest.raises(Undelivered, match="TimeoutError"):
        await sink.handle_batch(events)
    await delivered(sink, events)
    mock.delay(0)
    assert await ids(mock) == known(events)
    await sink.handle_batch(events)
    assert await ids(mock) == sorted(2 * known(events)), "delivered once, sent anew"


async def test_a_call_that_is_cancelled_is_taken_up_by_the_next(mock, opened):
    sink = await opened(mock.address, topic="events")
    mock.delay(300)
    events = calls(3)
    call = asyncio.create_task(sink.handle_batch(events))
    await asyncio.wait([call], timeout=0.8)
    call.cancel()
    await asyncio.wait([call])
    await sink.handle_batch(events)
    mock.delay(0)
    assert await ids(mock) == known(events)


async def test_an_error_that_nobody_asks_for_is_no_complaint_of_asyncio(mock, opened, caplog):
    sink = await opened(mock.address, topic="events")
    await sink.handle_batch(calls(1, run_id="r"))
    mock.delay(200)
    mock.fail(PRODUCE, UNAUTHORIZED)
    call = asyncio.create_task(sink.handle_batch(calls(1, run_id="r")))
    await eventually(lambda: mock.requests()[PRODUCE] == 2)
    call.cancel()
    await asyncio.wait([call])
    del call
    await sink.handle_batch(calls(1, run_id="r"))  # goes out when the answer to the other is there
    await sink.close()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_manager_delivers_over_an_outage_at_the_start(tansu):
    sink = KafkaSink(tansu.address, topic="late", timeout=1)
    tansu.kill()
    with pytest.raises(KafkaConnectionError):
        await sink.start()
    async with ObserverManager() as manager:
        manager.register(sink)
        events = calls(5, run_id="r")
        for event in events:
            manager.notify(event)
        tansu.start()
        await create_topics(tansu.address, "late", partitions=1)
        assert await manager.drain(10)
    found = await records(tansu.address, "late", partitions=1)
    assert [document(record)["id"] for record in found] == [event.id for event in events]


async def test_it_closes_while_no_broker_is_there(mock):
    sink = KafkaSink(mock.address, topic="events", timeout=0.5)
    await sink.start()
    await sink.handle_batch(calls(1, run_id="r"))
    mock.down()
    with pytest.raises(Undelivered):
        await sink.handle_batch(calls(3, run_id="r"))
    async with asyncio.timeout(3):
        await sink.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ------------------------------------------------------------------------------------ security


async def test_tls_is_spoken_and_the_certificate_checked(tansu, pool, tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    certificate = tmp_path / "broker.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    front = free_port()
    broker = Tansu(pool.reaper, advertised=front)
    broker.start()
    try:
        async with tls_front(front, broker.port, certificate):
            trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            await create_topics(broker.address, "tls", partitions=1, tls=trusting)
            sink = KafkaSink(broker.address, topic="tls", tls=str(tmp_path / "ca.pem"))
            await sink.start()
            await sink.handle_batch(calls(2))
            await sink.close()
            assert len(await records(broker.address, "tls", 1, trusting)) == 2
            for tls in (str(tmp_path / "stranger.pem"), False):
                wary = KafkaSink(broker.address, tls=tls, timeout=1)
                with pytest.raises((KafkaConnectionError, TimeoutError)):
                    await wary.start()
                await wary.close()
    finally:
        broker.stop()


async def test_a_password_is_never_shown(mock, caplog):
    caplog.set_level(0)
    sink = KafkaSink(mock.address, sasl_username="me", sasl_password=PASSWORD, timeout=0.5)
    with pytest.raises((KafkaConnectionError, TimeoutError)) as caught:
        await sink.start()
    await sink.close()
    assert PASSWORD not in repr(sink) + repr(caught.value) + caplog.text


# ----------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bootstrap_servers": "localhost"}, "bootstrap_servers='localhost'"),
        ({"bootstrap_servers": []}, r"bootstrap_servers=\[\]"),
        ({"topic": "no spaces"}, "topic='no spaces'"),
        ({"topic": "of.{tenant}"}, "topic='of.{tenant}'"),
        ({"topic": "of.{"}, "topic='of.{'"),
        ({"topic": ".."}, "topic='..'"),
        ({"topic": {}}, "topic={}"),
        ({"topic": {"no type": "t"}}, "topic='no type'"),
        ({"on": 7}, "on=7"),
        ({"mode": "avro"}, "mode='avro': expected one of binary, structured"),
        ({"idempotence": "maybe"}, "idempotence='maybe'"),
        ({"compression": "rar"}, "compression='rar'"),
        ({"timeout": 0}, "timeout=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_delay": -1}, "batch_delay=-1"),
        ({"tls": "/no/such/file"}, "tls='/no/such/file'"),
        ({"sasl_username": "me"}, "give both"),
        (
            {"sasl_username": "a", "sasl_password": "b", "sasl_mechanism": "X"},
            "sasl_mechanism='X'",
        ),
        ({"options": {"acks": 0}}, "options='acks'"),
    ],
)
def test_what_cannot_work_is_refused_when_declared(arguments, told):
    with pytest.raises(ConfigError, match=told):
        KafkaSink(**{"bootstrap_servers": "localhost:9092", **arguments})


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(ConfigError, match=r"pip install 'stanchion\[kafka\]'"):
        KafkaSink("localhost:9092")
