"""PulsarSink, against a broker in a process of its own that is killed, frozen and restarted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress

import pulsar
import pytest
import trustme

from stanchion.errors import ConfigError
from stanchion.events import LLMPromptSent, NodeCompleted, ToolCalled
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.pulsar import PulsarSink
from tests.observers.contract import Counterpart, check_contract, contract_events
from tests.observers.sinks.kafka_broker import tls_front
from tests.observers.sinks.pulsar_broker import PulsarLite, client, document, messages
from tests.observers.sinks.turns import longest_turn
from tests.servers import free_port
from tests.waiting import eventually

TOKEN = "do not show me"


@pytest.fixture
def broker(pool):
    return pool.lend("pulsar", lambda: PulsarLite(pool.reaper))


@pytest.fixture
async def opened():
    """Starts sinks, and closes them at the end of the test."""
    sinks: list[PulsarSink] = []

    async def start(*arguments, **named) -> PulsarSink:
        sink = PulsarSink(*arguments, **named)
        sinks.append(sink)
        await sink.start()
        return sink

    yield start
    for sink in sinks:
        await sink.close()


def calls(number: int, **fields) -> list[ToolCalled]:
    return [ToolCalled(tool=str(index), **fields) for index in range(number)]


async def ids(broker: PulsarLite, topic: str, number: int) -> list[str]:
    return [document(message)["id"] for message in await messages(broker.url, topic, number)]


async def delivered(sink: PulsarSink, events) -> None:
    """Hand a batch in until it is taken."""
    async with asyncio.timeout(10):
        while True:
            with suppress(Undelivered):
                return await sink.handle_batch(events)


# ---------------------------------------------------------------------------- what arrives, and how


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_the_contract_of_all_sinks_holds(broker, mode):
    topic = f"contract-{mode}"
    number = len(contract_events())

    async def read_back():
        return [document(message) for message in await messages(broker.url, topic, number)]

    sink = PulsarSink(broker.url, topic=topic, mode=mode)
    await check_contract(Counterpart(sink, read_back))


async def test_attributes_are_properties_and_the_run_is_the_key(broker, opened):
    sink = await opened(broker.url, topic="shape")
    event, alone = LLMPromptSent(model="m", run_id="Ω", prompt="wie?"), ToolCalled(tool="t")
    await sink.handle_batch([event, alone])
    found = {document(one)["id"]: one for one in await messages(broker.url, "shape", 2)}
    message = found[event.id]
    assert message.partition_key() == "Ω"
    assert found[alone.id].partition_key() == alone.id
    assert message.event_timestamp() == round(event.timestamp.timestamp() * 1000)
    properties = message.properties()
    assert properties["ce_type"] == "llm:prompt"
    assert properties["ce_specversion"] == "1.0"
    assert properties["content-type"] == "application/json"
    assert document(message) == event.to_cloudevent()


async def test_two_readers_of_one_subscription_get_each_run_in_order(broker, opened):
    runs = {f"run-{number}": calls(40, run_id=f"run-{number}") for number in range(6)}
    sink = await opened(broker.url, topic="shared")
    reading = client(broker.url)
    try:
        consumers = [
            await reading.subscribe(
                "shared", "readers", consumer_type=pulsar.ConsumerType.KeyShared
            )
            for _ in range(2)
        ]
        mixed = [event for row in zip(*runs.values(), strict=True) for event in row]
        await sink.handle_batch(mixed)
        seen: list[dict[str, list[str]]] = [{}, {}]

        async def read(consumer, into) -> None:
            while True:
                message = await consumer.receive()
                await consumer.acknowledge(message)
                into.setdefault(message.partition_key(), []).append(document(message)["id"])

        tasks = [asyncio.create_task(read(*pair)) for pair in zip(consumers, seen, strict=True)]
        await eventually(
            lambda: sum(len(run) for into in seen for run in into.values()) == len(mixed)
        )
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    finally:
        await reading.close()
    assert not seen[0].keys() & seen[1].keys(), "a run went to both"
    # A broker hands out batches of the library's whole, so each has to be of one run.
    batches = defaultdict(set)
    for message in await messages(broker.url, "shared", len(mixed)):
        place = message.message_id()
        batches[place.ledger_id(), place.entry_id()].add(message.partition_key())
    assert len(batches) < len(mixed)
    assert all(len(keys) == 1 for keys in batches.values())
    for key, events in runs.items():
        assert (seen[0] | seen[1])[key] == [event.id for event in events]


async def test_a_topic_is_made_from_the_type_or_chosen_by_it(broker, opened):
    sink = await opened(broker.url, topic="of-{type}")
    await sink.handle_batch(calls(2))
    assert len(await ids(broker, "persistent://public/default/of-tool.called", 2)) == 2

    chosen = await opened(broker.url, topic={"llm:*": "{namespace}-1", NodeCompleted: "nodes"})
    prompt, done = LLMPromptSent(model="m"), NodeCompleted(node="n", duration=1.0)
    other = ToolCalled(tool="t")
    assert chosen.on == ("llm:*", NodeCompleted)
    with pytest.raises(Undelivered) as caught:
        await chosen.handle_batch([prompt, other, done])
    assert (caught.value.events, caught.value.permanent) == ((other,), True)
    assert await ids(broker, "llm-1", 1) == [prompt.id]
    assert await ids(broker, "nodes", 1) == [done.id]


async def test_a_batch_does_not_keep_the_loop(broker, opened):
    sink = await opened(broker.url, topic="turns", timeout=20)
    events = calls(1000, run_id="r")
    began = time.thread_time()
    for event in events:
        event.to_cloudevent()
    at_once = time.thread_time() - began
    assert await longest_turn(sink.handle_batch(events)) < at_once / 3


# -------------------------------------------------------------------------------------- faults


async def test_an_event_that_is_too_large_is_refused_for_good_and_alone(broker, opened):
    sink = await opened(broker.url, topic="large")
    huge = ToolCalled(tool="t", arguments={"text": "x" * 6_000_000})
    small = calls(3)
    with pytest.raises(Undelivered) as caught:
        await sink.handle_batch([small[0], huge, *small[1:]])
    assert (caught.value.events, caught.value.permanent) == ((huge,), True)
    assert sorted(await ids(broker, "large", 3)) == sorted(event.id for event in small)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_lost_broker_is_told_in_time_and_what_is_sent_again_arrives(broker, opened, fault):
    topic = f"outage-{fault}"
    sink = await opened(broker.url, topic=topic, timeout=0.8)
    events = calls(30, run_id="r")
    await sink.handle_batch(events[:10])
    getattr(broker, fault)()
    for _ in range(2):
        began = asyncio.get_running_loop().time()
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch(events[10:20])
        assert asyncio.get_running_loop().time() - began < 1.8
        assert caught.value.events == tuple(events[10:20])
        assert not caught.value.permanent
    broker.refresh()
    await delivered(sink, events[10:20])
    await sink.handle_batch(events[20:])
    found = await ids(broker, topic, 30)
    # A frozen broker has read what was sent to it, and stores it when it thaws.
    assert list(dict.fromkeys(found)) == [event.id for event in events]
    if fault == "kill":
        assert len(found) == 30


async def test_after_an_outage_it_connects_at_once(broker, opened):
    sink = await opened(broker.url, topic="long", timeout=0.4)
    events = calls(2, run_id="r")
    await sink.handle_batch(events[:1])
    broker.kill()
    for _ in range(6):
        with pytest.raises(Undelivered):
            await sink.handle_batch(events[1:])
    broker.start()
    began = asyncio.get_running_loop().time()
    await delivered(sink, events[1:])
    assert asyncio.get_running_loop().time() - began < 1.5
    assert await ids(broker, "long", 2) == [event.id for event in events]


async def test_a_manager_delivers_although_the_broker_came_later(broker):
    sink = PulsarSink(broker.url, topic="late", timeout=0.5)
    broker.kill()
    with pytest.raises((pulsar.PulsarException, TimeoutError)):
        await sink.start()
    async with ObserverManager() as manager:
        manager.register(sink)
        events = calls(5, run_id="r")
        for event in events:
            manager.notify(event)
        broker.start()
        assert await manager.drain(10)
    assert await ids(broker, "late", 5) == [event.id for event in events]


async def test_connecting_is_within_the_deadline_too(broker, opened):
    broker.pause()
    sink = PulsarSink(broker.url, topic="unmet", timeout=0.3)  # the library counts whole seconds
    began = asyncio.get_running_loop().time()
    with pytest.raises(Undelivered, match="TimeoutError"):
        await sink.handle_batch(calls(1))
    assert asyncio.get_running_loop().time() - began < 0.9
    broker.resume()
    await sink.close()


async def test_it_closes_while_the_broker_is_frozen(broker):
    sink = PulsarSink(broker.url, topic="frozen", timeout=0.5)
    await sink.start()
    broker.pause()
    with pytest.raises(Undelivered):
        await sink.handle_batch(calls(3))
    async with asyncio.timeout(3):
        await sink.close()
    broker.resume()


ABANDONED = """
import asyncio, sys
from stanchion.events import ToolCalled
from stanchion.observers.sinks.pulsar import PulsarSink

async def main():
    global sink
    sink = PulsarSink(sys.argv[1], topic="abandoned", timeout=0.5)
    await sink.start()
    print("started", flush=True)
    sys.stdin.readline()
    asyncio.create_task(sink.handle_batch([ToolCalled(tool="t")]))
    await asyncio.sleep(0.1)

asyncio.run(main())
print("ended", flush=True)
sys.stdin.readline()
"""


def test_a_loop_that_ends_without_a_close_does_not_take_the_process_down(broker):
    with subprocess.Popen(
        [sys.executable, "-c", ABANDONED, broker.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        broker.pause()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"
        # The library's own thread has given up the message, and told us, when its time is over.
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.8)
        broker.resume()
        process.communicate("\n", timeout=10)
    assert process.returncode == 0


# ----------------------------------------------------------------------------------- arguments


async def test_a_token_is_never_shown(broker, opened, capfd, caplog):
    caplog.set_level(0)
    sink = await opened(broker.url, topic="token", token=TOKEN)
    await sink.handle_batch(calls(1))
    output = capfd.readouterr()
    assert TOKEN not in repr(sink) + caplog.text + output.out + output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("host", "trusted", "accepted"),
    [("localhost", "ca", True), ("elsewhere", "ca", False), ("localhost", "stranger", False)],
)
async def test_a_certificate_is_checked_and_the_host_in_it(
    broker, tmp_path, host, trusted, accepted
):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    trustme.CA().cert_pem.write_to_path(tmp_path / "stranger")
    certificate = tmp_path / "broker.pem"
    authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(certificate)
    front = free_port()
    async with tls_front(front, broker.port, certificate) as received:
        url = f"pulsar+ssl://localhost:{front}"
        sink = PulsarSink(url, topic="t", trusted=str(tmp_path / trusted), timeout=1)
        # This broker names no address for TLS, so nobody gets further than to ask for one.
        with pytest.raises((pulsar.PulsarException, TimeoutError)):
            await sink.start()
        await sink.close()
    assert bool(received) is accepted


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": "http://localhost:6650"}, "url: expected"),
        ({"topic": "no spaces"}, "topic='no spaces'"),
        ({"topic": "queue://a/b/c"}, "topic='queue://a/b/c'"),
        ({"topic": "of-{tenant}"}, "topic='of-{tenant}'"),
        ({"on": 7}, "on=7"),
        ({"mode": "avro"}, "mode='avro': expected one of binary, structured"),
        ({"compression": "rar"}, "compression='rar'"),
        ({"timeout": 0}, "timeout=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_delay": -1}, "batch_delay=-1"),
        ({"trusted": "/no/such/file"}, "trusted='/no/such/file'"),
        ({"options": {"logger": 1}}, "options='logger'"),
        ({"token": "a", "options": {"authentication": None}}, "give one of the two"),
    ],
)
def test_what_cannot_work_is_refused_when_declared(arguments, told):
    with pytest.raises(ConfigError, match=told):
        PulsarSink(**{"url": "pulsar://localhost:6650", **arguments})


def test_a_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as caught:
        PulsarSink(f"pulsar://me:{TOKEN.replace(' ', '')}@localhost:6650")
    assert "show" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pulsar", None)
    with pytest.raises(ConfigError, match=r"pip install 'stanchion\[pulsar\]'"):
        PulsarSink("pulsar://localhost:6650")
