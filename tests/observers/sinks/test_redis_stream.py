"""The log in a Redis Stream: appended, trimmed, replayed, and shared by groups of consumers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys

import pytest

from stanchion import ConfigError, Event, EventBus, StanchionError, StoreUnavailable
from stanchion.events import CircuitOpened, ToolCalled
from stanchion.observers import Recorder, RedisPublisher
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.observers.streams import StreamReader
from tests.busses import breaker, command
from tests.observers.contract import Counterpart, check_contract
from tests.waiting import eventually

KEY = "stanchion:{default}:stream"
GROUP = "g"


class Tick(Event, type="stream:tick"):
    number: int


class Loose(Event, type="stream:loose"):
    value: object = None


def ticks(count, first=0):
    return [Tick(number=number) for number in range(first, first + count)]


@contextlib.asynccontextmanager
async def writing(url, **options):
    """A sink of its own, started."""
    sink = RedisStreamSink(url, **options)
    await sink.start()
    try:
        yield sink
    finally:
        await sink.close()


async def append(url, events, **options):
    async with writing(url, **options) as sink:
        await sink.handle_batch(events)


def entries(server, key=KEY):
    with server.sync_client() as client:
        return [json.loads(fields[b"event"]) for _, fields in client.xrange(key)]


def pending(server, group=GROUP):
    with server.sync_client() as client:
        return client.xpending(KEY, group)["pending"]


async def taken(reader, count, **options):
    """Exactly so many deliveries, and then none."""
    found = []

    async def enough():
        found.extend(await reader.take(wait=0.05, **options))
        return len(found) >= count

    await eventually(enough)
    assert len(found) == count
    return found


def numbers(deliveries):
    return [delivery.event.number for delivery in deliveries]


# ---- appending


async def test_every_event_arrives_whole(server):
    async def read_back():
        return entries(server)

    await check_contract(Counterpart(RedisStreamSink(server.url), read_back))


async def test_pub_sub_carries_every_event_whole_too(valkey):
    got = []
    async with EventBus.from_url(valkey.url) as bus:
        publisher = RedisPublisher(on="*")
        publisher.attach(bus._store, "default")
        async with bus._store.subscribe("stanchion:{default}:events") as messages:

            def take(message):
                got.append(json.loads(message.payload) if hasattr(message, "payload") else None)

            async def collect():
                async for message in messages:
                    take(message)

            async def read_back():
                return got[1:]

            task = asyncio.create_task(collect())
            try:
                await eventually(lambda: got == [None])
                adds = frozenset({"stanchionorigin"})
                await check_contract(Counterpart(publisher, read_back, adds))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def test_a_bus_appends_where_its_state_is(open_bus):
    bus = await open_bus(observers=[RedisStreamSink()], namespace="staging")
    bus.notify(Tick(number=1))
    assert await bus.observers.drain()
    key = "stanchion:{staging}:stream"
    assert await command(bus, "XLEN", key) == 1
    assert 0 < await command(bus, "PTTL", key) <= 7 * 86400 * 1000
    async with StreamReader(bus._store, namespace="staging", start="0") as reader:
        assert numbers(await taken(reader, 1)) == [1]


async def test_more_than_so_many_entries_do_not_stay(store_url):
    bus = EventBus.from_url(store_url, observers=[RedisStreamSink(max_length=200)])
    async with bus:
        for first in range(0, 2000, 500):
            for event in ticks(500, first):
                bus.notify(event)
            assert await bus.observers.drain()
        # Redis trims whole nodes of a hundred entries.
        assert 200 <= await command(bus, "XLEN", KEY) <= 400


async def test_what_is_older_than_so_long_goes_and_so_does_a_stream_that_gets_nothing(server):
    with server.sync_client() as client:
        for number in range(300):
            client.xadd(KEY, {"event": "old"}, id=f"{1000 + number}-0")
    await append(server.url, ticks(1), max_age="1h")
    with server.sync_client() as client:
        assert client.xlen(KEY) <= 101
        assert 3500 < client.ttl(KEY) <= 3600


async def test_everything_stays_where_that_is_asked_for(valkey):
    await append(valkey.url, ticks(300), max_age=None, max_length=None, batch_size=300)
    with valkey.sync_client() as client:
        assert (client.xlen(KEY), client.ttl(KEY)) == (300, -1)
        client.delete(KEY)


async def test_what_every_process_tells_of_is_in_the_stream_once(open_shared, server):
    """A circuit's change reaches all processes, and each of them has the sink."""
    buses = [await open_shared(breaker(), observers=[RedisStreamSink()]) for _ in range(3)]
    recorders = [Recorder() for _ in buses]
    for bus, recorder in zip(buses, recorders, strict=True):
        bus.observers.register(recorder, on=CircuitOpened)
    for bus in buses:
        bus.notify(Tick(number=0))
    await buses[0].force("provider", "open")
    for bus, recorder in zip(buses, recorders, strict=True):
        await recorder.wait_for(CircuitOpened)
        assert await bus.observers.drain()
    kinds = [document["type"] for document in entries(server)]
    assert sorted(kinds) == ["circuit:opened", *["stream:tick"] * 3]
    assert 0 < server.execute("PTTL", f"{KEY}.seen") <= 3_600_000


async def test_what_was_read_from_a_stream_is_not_appended_to_it_again(valkey):
    await append(valkey.url, ticks(1))
    async with StreamReader(valkey.url, start="0") as reader:
        (delivery,) = await taken(reader, 1)
    await append(valkey.url, [delivery.event, *ticks(1, first=1)])
    assert [document["data"]["number"] for document in entries(valkey)] == [0, 1]
    await append(valkey.url, [delivery.event], key="{other}")
    (copy,) = entries(valkey, "{other}")
    assert copy["id"] == delivery.event.id


async def test_an_event_that_is_no_json_is_refused_for_good_and_the_others_are_there(valkey):
    bad = Loose(value=object())
    async with writing(valkey.url) as sink:
        with pytest.raises(Undelivered) as caught:
            await sink.handle_batch([*ticks(1), bad, *ticks(1, first=1)])
    assert (caught.value.events, caught.value.permanent) == ((bad,), True)
    assert len(entries(valkey)) == 2


async def test_a_full_server_takes_all_of_a_batch_or_none(server):
    async with writing(server.url) as sink:
        with (
            server.configured(maxmemory=1, maxmemory_policy="noeviction"),
            pytest.raises(StoreUnavailable, match="maxmemory"),
        ):
            await sink.handle_batch(ticks(5))
        await sink.handle_batch(ticks(5))
    assert len(entries(server)) == 5


async def test_a_server_that_hangs_costs_a_batch_its_deadline_and_no_more(valkey):
    async with writing(valkey.url, deadline="200ms") as sink:
        valkey.pause()
        with pytest.raises(StoreUnavailable):
            await sink.handle_batch(ticks(1))
        valkey.resume()
        await sink.handle_batch(ticks(1, first=1))
    assert entries(valkey)[-1]["data"]["number"] == 1


async def test_a_cluster_serves_streams_and_their_groups(cluster):
    await append(cluster.url, ticks(3))
    await append(cluster.url, ticks(1), key="one-without-a-tag", max_age="1h")
    async with StreamReader(cluster.url, group=GROUP, start="0") as reader:
        deliveries = await taken(reader, 3)
        await reader.ack(*deliveries)
        assert (await reader.backlog())[:2] == (0, 0)
    async with StreamReader(cluster.url, key="one-without-a-tag", start="0") as reader:
        assert numbers(await taken(reader, 1)) == [0]


# ---- replaying and following


async def test_a_stream_is_replayed_from_its_beginning_or_from_after_an_entry(server):
    await append(server.url, ticks(5))
    async with StreamReader(server.url, start="0") as reader:
        all_of_them = await taken(reader, 5)
    assert numbers(all_of_them) == [0, 1, 2, 3, 4]
    async with StreamReader(server.url, start=all_of_them[2].id) as reader:
        assert numbers(await taken(reader, 2)) == [3, 4]


async def test_what_comes_from_now_on_is_followed_without_a_hole(server):
    await append(server.url, ticks(2))
    async with StreamReader(server.url) as reader, writing(server.url) as sink:
        # Before the first read: it begins where the reader was opened.
        await sink.handle_batch(ticks(1, first=2))
        found = []

        async def follow():
            async for delivery in reader:
                found.append(delivery)
                if len(found) == 3:
                    return

        task = asyncio.create_task(follow())
        await eventually(lambda: len(found) == 1)
        await sink.handle_batch(ticks(2, first=3))
        await asyncio.wait_for(task, 5)
    assert numbers(found) == [2, 3, 4]


async def test_a_reader_in_a_bus_of_memory_works_as_on_a_server(open_bus):
    bus = await open_bus(observers=[RedisStreamSink()])
    async with StreamReader(bus._store, group=GROUP) as reader:
        for event in ticks(3):
            bus.notify(event)
        found = await taken(reader, 3)
        await reader.ack(*found)
        assert (await reader.backlog()).pending == 0
        assert reader.stats.in_hand == 0


async def test_a_stream_that_is_not_there_yet_is_waited_for_and_missed_nothing_of(valkey):
    async with StreamReader(valkey.url, group=GROUP) as shared, StreamReader(valkey.url) as alone:
        assert await shared.take(wait=0.15) == [] == await alone.take(wait=0.05)
        # Nothing was made that nobody would ever remove.
        assert not list(valkey.keys("*"))
        await append(valkey.url, ticks(2))
        assert numbers(await taken(shared, 2)) == [0, 1] == numbers(await taken(alone, 2))


async def test_a_stream_that_was_wiped_out_is_read_on_from_its_new_beginning(valkey):
    await append(valkey.url, ticks(2))
    async with StreamReader(valkey.url, group=GROUP, start="0") as reader:
        await reader.ack(*await taken(reader, 2))
        valkey.execute("FLUSHALL")
        assert await reader.take(wait=0.1) == []
        await append(valkey.url, ticks(2, first=2))
        assert numbers(await taken(reader, 2)) == [2, 3]


async def test_a_stream_that_begins_anew_after_a_clock_was_ahead_is_read_all_the_same(valkey):
    with valkey.sync_client() as client:
        client.xadd(KEY, {"event": "of a server that has gone"}, id="9999999999999-0")
        client.expire(KEY, 60)
    async with StreamReader(valkey.url, group=GROUP) as reader:
        assert await reader.take(wait=0.05) == []
        valkey.execute("FLUSHALL")
        await append(valkey.url, ticks(2))
        assert numbers(await taken(reader, 2)) == [0, 1]


async def test_a_server_that_is_away_is_waited_for(valkey, caplog):
    async with StreamReader(valkey.url, deadline="200ms") as reader:
        task = asyncio.create_task(reader.take(wait=0.5))
        valkey.restart()
        await eventually(lambda: "trying again" in caplog.text or task.done())
        await append(valkey.url, ticks(2))
        found = await asyncio.wait_for(task, 5)
        if not found:
            found = await taken(reader, 2)
        assert numbers(found) == [0, 1]


async def test_only_what_was_asked_for_is_handed_out_and_the_rest_is_not_pending(valkey):
    await append(valkey.url, [ToolCalled(tool="t"), *ticks(1), ToolCalled(tool="t")])
    async with StreamReader(valkey.url, group=GROUP, start="0", on="stream:*") as reader:
        (delivery,) = await taken(reader, 1)
        await reader.ack(delivery)
        assert pending(valkey) == 0


async def test_an_entry_that_is_no_event_is_counted_and_does_not_come_again(server, caplog):
    with server.sync_client() as client:
        client.xadd(KEY, {"other": "field"})
        client.xadd(KEY, {"event": "no JSON"})
        client.xadd(KEY, {"event": '{"specversion":"1.0"}'})
        client.expire(KEY, 60)
    await append(server.url, ticks(1))
    async with StreamReader(server.url, group=GROUP, start="0") as reader:
        deliveries = await taken(reader, 1)
        await reader.ack(*deliveries)
        assert reader.stats.malformed == 3
    assert pending(server) == 0
    assert "no JSON" not in caplog.text


# ---- groups


async def test_the_consumers_of_a_group_share_the_entries_and_groups_do_not(server):
    await append(server.url, ticks(40))
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(StreamReader(server.url, group=group, start="0"))
            for group in ("a", "a", "b")
        ]
        first = await readers[0].take(most=15)
        rest = await taken(readers[1], 25)
        everything = await taken(readers[2], 40)
    assert sorted(numbers([*first, *rest])) == numbers(everything) == list(range(40))
    assert numbers(first) == list(range(15))


async def test_what_was_acknowledged_does_not_come_again_and_what_was_not_does(server):
    await append(server.url, ticks(4))
    options = {"group": GROUP, "consumer": "c", "start": "0"}
    async with StreamReader(server.url, **options) as reader:
        found = await taken(reader, 4)
        await reader.ack(*found[:2])
    # The same consumer, after a restart, at once.
    async with StreamReader(server.url, **options) as reader:
        found = await taken(reader, 2)
        assert numbers(found) == [2, 3]
        await reader.ack(*found)
    async with StreamReader(server.url, **options) as reader:
        assert await reader.take(wait=0.1) == []
    with server.sync_client() as client:
        # It left nothing behind in the group, not even its name.
        assert client.xinfo_consumers(KEY, GROUP) == []


async def test_two_that_make_a_group_at_once_have_one_group(valkey):
    await append(valkey.url, ticks(1))
    readers = [StreamReader(valkey.url, group=GROUP, start="0") for _ in range(4)]
    await asyncio.gather(*(reader.open() for reader in readers))
    found = await asyncio.gather(*(reader.take(wait=0.2) for reader in readers))
    assert sorted(map(len, found)) == [0, 0, 0, 1]
    await asyncio.gather(*(reader.close() for reader in readers))


@contextlib.contextmanager
def killed_at_last(url):
    program = [sys.executable, "-W", "error", "-m", "tests.observers.sinks.consumer"]
    with subprocess.Popen([*program, url, GROUP], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_what_a_killed_consumer_had_in_hand_is_taken_over(server):
    await append(server.url, ticks(10))
    with killed_at_last(server.url) as victim:
        assert victim.stdout
        ids = json.loads(await asyncio.to_thread(victim.stdout.readline))
        async with StreamReader(server.url, group=GROUP, claim_after="300ms") as reader:
            # While it lives they are its own, however long it takes.
            ends = asyncio.get_running_loop().time() + 0.7
            while asyncio.get_running_loop().time() < ends:
                assert await reader.take(wait=0.2) == []
            victim.kill()
            found = await taken(reader, 5)
            assert [delivery.event.id for delivery in found] == ids[5:]
            assert reader.stats.claimed == 5
            await reader.ack(*found)
    assert pending(server) == 0


async def test_a_consumer_that_was_silent_for_too_long_learns_what_it_has_lost(valkey):
    await append(valkey.url, ticks(3))
    async with contextlib.AsyncExitStack() as stack:
        slow, other = [
            await stack.enter_async_context(
                StreamReader(valkey.url, group=GROUP, start="0", claim_after="300ms")
            )
            for _ in range(2)
        ]
        await taken(slow, 3)
        # As if its process had been stopped for a while.
        assert slow._keeping is not None
        slow._keeping.cancel()
        slow._keeping = None
        found = await taken(other, 3)
        slow._keeping = asyncio.create_task(slow._keep())
        await eventually(lambda: slow.stats.lost == 3)
        assert slow.stats.in_hand == 0
        await other.ack(*found)


async def test_an_acknowledgement_that_the_server_did_not_take_is_made_up_for(valkey):
    await append(valkey.url, ticks(3))
    async with StreamReader(valkey.url, group=GROUP, start="0") as reader:
        found = await taken(reader, 3)
        valkey.execute("ACL", "SETUSER", "default", "-xack")
        try:
            await reader.ack(*found)
        finally:
            valkey.execute("ACL", "SETUSER", "default", "+xack")
        assert pending(valkey) == 3
        assert await reader.take(wait=0.1) == []
        assert pending(valkey) == 0


async def test_entries_that_were_trimmed_while_in_hand_do_no_harm(server):
    await append(server.url, ticks(5))
    options = {"group": GROUP, "consumer": "c", "start": "0", "claim_after": "200ms"}
    async with StreamReader(server.url, **options) as reader:
        await taken(reader, 5)
    server.execute("XTRIM", KEY, "MAXLEN", 2)
    async with StreamReader(server.url, **options) as reader:
        await reader.ack(*await taken(reader, 2))
    assert pending(server) == 0


async def test_what_was_trimmed_before_the_group_had_read_it_is_counted_once(server, caplog):
    await append(server.url, ticks(10))
    options = {"group": GROUP, "start": "0", "claim_after": "300ms"}
    async with StreamReader(server.url, **options) as reader:
        await reader.ack(*await reader.take(most=4))
        server.execute("XTRIM", KEY, "MAXLEN", 3)
        await eventually(lambda: reader.stats.missed == 3)
        server.execute("XTRIM", KEY, "MAXLEN", 2)
        await eventually(lambda: reader.stats.missed == 4)
        assert (await reader.backlog()).behind == 2
        found = await taken(reader, 2)
        assert numbers(found) == [8, 9]
        await reader.ack(*found)
        assert (await reader.backlog())[:2] == (0, 0)
        assert reader.stats.missed == 4
    assert "were trimmed before the group g had read them" in caplog.text
    # It shows at once where it happened while nobody read.
    await append(server.url, ticks(5))
    server.execute("XTRIM", KEY, "MAXLEN", 1)
    async with StreamReader(server.url, **options) as reader:
        # Redis 7.0 does not know that the group is past those that were trimmed before.
        assert reader.stats.missed == (8 if server.name == "redis7" else 4)
    # What was trimmed before there was a group, that group has not missed.
    async with StreamReader(server.url, group="new", start="0") as reader:
        assert numbers(await taken(reader, 1)) == [4]
        await reader.backlog()
        assert reader.stats.missed == 0


# ---- what cannot be


async def test_a_sink_without_a_place_says_so():
    sink = RedisStreamSink()
    with pytest.raises(StanchionError, match="URL"):
        await sink.start()
    with pytest.raises(StanchionError, match="not started"):
        await sink.handle_batch(ticks(1))


async def test_a_server_that_is_not_there_is_said_when_it_starts(valkey):
    valkey.kill()
    for starting in (RedisStreamSink(valkey.url).start, StreamReader(valkey.url).open):
        with pytest.raises(StoreUnavailable):
            await starting()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "kafka://x"}, "url scheme='kafka'"),
        ({"namespace": "a b"}, "namespace='a b'"),
        ({"key": ""}, "key=''"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": True}, "max_length=True"),
        ({"max_age": "soon"}, "max_age='soon'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"deadline": 0}, "deadline=0"),
        ({"on": 1}, "on=1"),
    ],
)
def test_an_argument_of_the_sink_that_cannot_work_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        RedisStreamSink(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"place": object()}, "object has no streams"),
        ({"start": "yesterday"}, "start='yesterday'"),
        ({"group": ""}, "group=''"),
        ({"consumer": "c"}, "consumer='c'"),
        ({"claim_after": 0}, "claim_after=0"),
        ({"on": 1}, "on=1"),
        ({"namespace": "{}"}, "namespace='{}'"),
    ],
)
def test_an_argument_of_the_reader_that_cannot_work_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        StreamReader(**{"place": "redis://localhost", **arguments})
