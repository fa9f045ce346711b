"""What scripts publish about shared state, heard by every process, over a real server's pub/sub."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanchion import CircuitBreaker, EventBus, Quota
from stanchion.decisions import CircuitState, Outcome
from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.events import (
    CircuitChanged,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    PolicyChanged,
    QuotaThresholdReached,
)
from stanchion.observers import ControlListener, ObserverManager, RedisPublisher
from stanchion.store.keys import Keyspace
from stanchion.store.protocol import Published, Subscribed
from stanchion.store.redis_store import RedisStore
from tests.waiting import eventually

NAMESPACE = "observed"
CONTROL = "stanchion:{observed}:control"
KEY = "stanchion:{observed}:circuit:provider:m1"
SECRET = "a prompt that nobody but the model may read"
AT = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z


@pytest.fixture
async def store_at():
    """Opens stores, each with connections of its own, as if in other processes."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_store(server):
            store = RedisStore(server.url, Keyspace(NAMESPACE))
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield open_store


def opened(seq, **fields):
    return {
        "v": "1",
        "type": "circuit:opened",
        "key": KEY,
        "policy": "provider",
        "subject": "m1",
        "seq": str(seq),
        "generation": "3",
        "previous": "closed",
        "state": "open",
        "open_until_us": str(AT + 10_000_000),
        "at_us": str(AT),
        "reason": "failure_rate",
        **fields,
    }


def half_opened(seq, **fields):
    given = {"type": "circuit:halfopened", "previous": "open", "state": "half_open"}
    return opened(seq, **{**given, "open_until_us": "0", **fields})


def closed(seq, **fields):
    given = {"type": "circuit:closed", "previous": "half_open", "state": "closed"}
    return opened(seq, **{**given, "open_until_us": "0", **fields})


class States:
    """What the store would say; remembers how it was asked."""

    def __init__(self, *states):
        self.states = {state["key"]: state for state in states}
        self.asked = []
        self.failures = []

    async def __call__(self, key=None, /):
        self.asked.append(key)
        if self.failures:
            raise self.failures.pop(0)
        return [state for state in self.states.values() if key in {None, state["key"]}]


@contextlib.asynccontextmanager
async def controlled(channel, states):
    """A listener that is subscribed and has read the states, and what it told."""
    told = []
    listener = ControlListener(channel, NAMESPACE, notify=told.append, resync=states)
    async with listener:
        assert await listener.synced(5)
        yield listener, told


def tell(server, *payloads):
    for payload in payloads:
        server.execute("PUBLISH", CONTROL, json.dumps(payload))


def seqs(told):
    return [event.seq for event in told]


async def test_a_circuit_opened_elsewhere_is_told_here(valkey, store_at):
    async with controlled(await store_at(valkey), States()) as (_, told):
        tell(valkey, opened(5), half_opened(6), closed(7))
        await eventually(lambda: len(told) == 3)
    first, second, third = told
    assert first == CircuitOpened(
        id=first.id,
        timestamp=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        policy="provider",
        subject="m1",
        previous=CircuitState.CLOSED,
        state=CircuitState.OPEN,
        generation=3,
        seq=5,
        open_until=datetime(2023, 11, 14, 22, 13, 30, tzinfo=UTC),
        reason="failure_rate",
    )
    assert isinstance(second, CircuitHalfOpened)
    assert second.open_until is None
    assert isinstance(third, CircuitClosed)


@pytest.mark.parametrize(
    ("payload", "kind", "state"),
    [
        (opened(1, type="circuit:forced", state="forced_open"), CircuitOpened, "forced_open"),
        (opened(1, type="circuit:forced", state="disabled"), CircuitClosed, "disabled"),
        (closed(1, previous="", reason="reset", change="reset"), CircuitClosed, "closed"),
    ],
)
async def test_forced_and_reset_circuits_are_told_by_their_state(
    payload, kind, state, valkey, store_at
):
    async with controlled(await store_at(valkey), States()) as (_, told):
        tell(valkey, payload)
        await eventually(lambda: told)
    assert type(told[0]) is kind
    assert told[0].state == state


async def test_a_reset_says_what_it_ended_and_is_no_gap(valkey, store_at):
    states = States()
    async with controlled(await store_at(valkey), states) as (listener, told):
        tell(valkey, opened(5), closed(9000, previous="", reason="reset", change="reset"))
        tell(valkey, opened(9500))
        await eventually(lambda: len(told) == 3)
        assert listener.stats.gaps == 0
    assert told[1].previous is CircuitState.OPEN
    assert states.asked == [None]


async def test_quotas_and_policies_are_told_too(valkey, store_at):
    common = {"v": "1", "policy": "tokens", "subject": "acme", "at_us": str(AT)}
    threshold = {
        **common,
        "type": "quota:threshold",
        "key": "stanchion:{observed}:quota:tokens:acme",
        "seq": "12",
        "threshold": "0.80000000000000004",
        "used": "1600000",
        "limit": "2000000",
        "window_end_us": str(AT + 1),
    }
    changed = {**common, "type": "policy:changed", "key": "k", "seq": "1", "change": "reset"}
    async with controlled(await store_at(valkey), States()) as (_, told):
        tell(valkey, threshold, changed)
        await eventually(lambda: len(told) == 2)
    assert isinstance(told[0], QuotaThresholdReached)
    assert (told[0].threshold, told[0].used, told[0].limit) == (0.8, 1_600_000, 2_000_000)
    assert told[0].window_end == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert isinstance(told[1], PolicyChanged)
    assert (told[1].policy, told[1].change) == ("tokens", "reset")


class ObservedCost(Event, type="observed:cost"):
    model: str = "m1"
    tokens: int = 1


async def test_what_the_scripts_publish_is_understood(server, store_at):
    policies = [
        CircuitBreaker(name="provider", on=ObservedCost, by=("model",), consecutive_failures=1),
        Quota(name="tokens", on=ObservedCost, limit=100, per="1h", cost="tokens", warn_at=(0.8,)),
    ]
    event = ObservedCost(tokens=90)
    async with (
        EventBus.from_url(server.url, namespace=NAMESPACE, policies=policies) as bus,
        controlled(await store_at(server), States()) as (listener, told),
    ):
        decision = await bus.check(event)
        assert decision.permit is not None
        await bus.settle(decision.permit, Outcome.FAILURE)
        await bus.force("provider", CircuitState.DISABLED, model="m1")
        await bus.force("provider", CircuitState.CLOSED, model="m1")
        await bus.reset("provider", model="m1")
        await bus.reset("tokens")
        await eventually(lambda: listener.stats.received >= 6)
        stats = listener.stats
    assert (stats.malformed, stats.stale, stats.gaps) == (0, 0, 0)
    circuit = [(e.previous, e.state) for e in told if isinstance(e, CircuitChanged)]
    assert [state for _, state in circuit] == ["open", "disabled", "closed", "closed"]
    assert circuit[0] == ("closed", "open")
    assert {e.subject for e in told if isinstance(e, CircuitChanged)} == {"m1"}
    (reached,) = [e for e in told if isinstance(e, QuotaThresholdReached)]
    assert (reached.policy, reached.used, reached.limit) == ("tokens", 90, 100)
    assert reached.threshold == 0.8
    (changed,) = [e for e in told if isinstance(e, PolicyChanged)]
    assert (changed.policy, changed.change) == ("tokens", "reset")
    assert all(abs(e.timestamp - event.timestamp) < timedelta(minutes=1) for e in told)


async def test_every_process_gives_a_change_the_same_id(valkey, store_at):
    """By whichever way it learned of it; another change has another id."""
    states = States()
    async with (
        controlled(await store_at(valkey), states) as (_, one),
        controlled(await store_at(valkey), states) as (_, two),
    ):
        tell(valkey, opened(5), opened(6), opened(6, key=f"{KEY}2"), opened(7, generation="4"))
        await eventually(lambda: len(one) == len(two) == 4)
        states.states = {KEY: opened(7, generation="4")}
        async with controlled(await store_at(valkey), states) as (_, late):
            assert [event.id for event in late] == [one[3].id]
    assert [event.id for event in one] == [event.id for event in two]
    assert len({event.id for event in one}) == 4
    # The same in every release, too: not all processes are replaced at one time.
    assert one[0].id == "30ea6422-88e7-5241-a3e2-ae5bfeca2f7a"


async def test_duplicates_and_stragglers_are_dropped(valkey, store_at):
    async with controlled(await store_at(valkey), States()) as (listener, told):
        tell(valkey, opened(5), opened(5), half_opened(6), opened(5), closed(7))
        await eventually(lambda: listener.stats.received == 5)
        assert seqs(told) == [5, 6, 7]
        stats = listener.stats
    assert (stats.emitted, stats.stale, stats.gaps) == (3, 2, 0)


async def test_a_gap_is_noticed_and_the_key_read_anew(valkey, store_at):
    states = States()
    async with controlled(await store_at(valkey), states) as (listener, told):
        tell(valkey, opened(5))
        await eventually(lambda: told)
        # 6 to 8 were lost, and so is 10, which only the state tells of.
        states.states = {KEY: closed(10)}
        tell(valkey, half_opened(9))
        await eventually(lambda: len(told) == 3)
        assert states.asked == [None, KEY]
        assert listener.stats.gaps == 1
    assert seqs(told) == [5, 9, 10]
    assert isinstance(told[2], CircuitClosed)


async def test_what_was_missed_during_a_break_is_read_from_state(valkey, store_at):
    other = f"{KEY}-other"
    states = States()
    async with controlled(await store_at(valkey), states) as (listener, told):
        tell(valkey, opened(5), opened(5, key=other))
        await eventually(lambda: len(told) == 2)
        states.states = {KEY: closed(7), other: opened(5, key=other)}
        assert valkey.execute("CLIENT", "KILL", "TYPE", "pubsub") == 1
        await eventually(lambda: len(told) == 3)
        assert await listener.synced(5)
        tell(valkey, opened(8))
        await eventually(lambda: len(told) == 4)
        assert listener.stats.gaps == 0
    assert seqs(told) == [5, 5, 7, 8]
    assert states.asked == [None, None]


async def test_who_comes_late_learns_what_is_open_and_nothing_of_what_is_closed(valkey, store_at):
    still = f"{KEY}-closed"
    states = States(opened(41), closed(7, key=still))
    async with controlled(await store_at(valkey), states) as (_, told):
        assert seqs(told) == [41]
        # What was taken note of in silence still has its place in the order.
        tell(valkey, closed(7, key=still), opened(8, key=still))
        await eventually(lambda: len(told) == 2)
        assert seqs(told) == [41, 8]


MALFORMED = {
    "nothing": b"",
    "text": SECRET.encode(),
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "deep": b'{"a":' * 100_000,
    "another version": opened(6, v="2"),
    "another state": opened(6, state="exploded"),
    "another type": opened(6, type="weather:changed"),
    "no number": opened("six"),
    "too large a number": opened("9" * 5000),
    "not text": {**opened(6), "seq": 6},
    "the far future": opened(6, at_us="9" * 30),
    "a negative count": opened(6, generation="-1"),
    "no policy": opened(6, policy=""),
    "no key": {name: text for name, text in opened(6).items() if name != "key"},
    "no threshold": opened(6, type="quota:threshold"),
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_message_is_counted_and_survived(payload, valkey, store_at, caplog):
    if isinstance(payload, dict):
        payload = json.dumps(payload)
    async with (
        controlled(await store_at(valkey), States()) as (listener, told),
        valkey.client() as client,
    ):
        await client.publish(CONTROL, json.dumps(opened(5)))
        await client.publish(CONTROL, payload)
        await client.publish(CONTROL, json.dumps(half_opened(6)))
        await eventually(lambda: len(told) == 2)
        stats = listener.stats
    assert seqs(told) == [5, 6]
    assert (stats.malformed, stats.received, stats.gaps) == (1, 3, 0)
    assert "a message on stanchion:{observed}:control is left out" in caplog.text
    assert SECRET not in caplog.text


async def test_a_state_that_cannot_be_read_is_left_out(valkey, store_at):
    states = States(opened(5), {**opened(6), "key": "k", "state": "exploded"})
    async with controlled(await store_at(valkey), states) as (listener, told):
        assert seqs(told) == [5]
        assert listener.stats.malformed == 1


async def test_a_resync_that_fails_is_tried_again(valkey, store_at, caplog):
    states = States(opened(5))
    states.failures = [StoreUnavailable(SECRET), ValueError(SECRET), TimeoutError()]
    async with controlled(await store_at(valkey), states) as (listener, told):
        assert seqs(told) == [5]
        assert listener.stats.failed_resyncs == 3
        states.failures = [StoreUnavailable(SECRET)]
        states.states = {KEY: closed(9)}
        tell(valkey, opened(8))
        await eventually(lambda: seqs(told) == [5, 8, 9])
        assert states.asked == [None] * 4 + [KEY] * 2
    assert "cannot read the states behind stanchion:{observed}:control" in caplog.text
    assert SECRET not in caplog.text


class Flaky:
    """A channel whose first subscriptions fail, or end, as scripted."""

    def __init__(self, channel, *faults):
        self._channel = channel
        self._faults = list(faults)

    def subscribe(self, *channels):
        fault = self._faults.pop(0) if self._faults else None
        return self._broken(fault, channels) if fault else self._channel.subscribe(*channels)

    @contextlib.asynccontextmanager
    async def _broken(self, fault, channels):
        if fault == "refused":
            raise StoreUnavailable(SECRET)

        async def messages():
            yield Subscribed(channels[0])
            if fault == "breaks":
                raise ConnectionError(SECRET)

        yield messages()


async def test_a_subscription_that_fails_breaks_or_ends_is_begun_again(valkey, store_at, caplog):
    channel = Flaky(await store_at(valkey), "refused", "refused", "breaks", "ends", "refused")
    states = States()
    async with controlled(channel, states) as (listener, told):
        await eventually(lambda: listener.stats.resyncs >= 3)
        tell(valkey, opened(5))
        await eventually(lambda: told)
    assert (
        "cannot subscribe to stanchion:{observed}:control: stanchion.errors.StoreU" in caplog.text
    )
    assert "the subscription to stanchion:{observed}:control has ended" in caplog.text
    assert SECRET not in caplog.text


async def test_control_events_are_not_published_by_those_who_hear_them(valkey, store_at):
    store = await store_at(valkey)
    async with ObserverManager() as manager:
        publisher = RedisPublisher(on="*")
        publisher.attach(store, NAMESPACE)
        manager.register(publisher)
        listener = ControlListener(store, NAMESPACE, notify=manager.notify, resync=States())
        async with listener:
            assert await listener.synced(5)
            with valkey.counting() as counts:
                tell(valkey, opened(5))
                await eventually(lambda: manager.stats()["RedisPublisher"].delivered == 1)
    assert counts["publish"] == 1  # the one by hand


async def test_a_listener_starts_and_ends_once(valkey, store_at):
    told = []
    store = await store_at(valkey)
    listener = ControlListener(store, NAMESPACE, notify=told.append, resync=States())
    assert not await listener.synced(0.01)
    await listener.start()
    await listener.start()
    assert await listener.synced(5)
    tell(valkey, opened(5))
    await eventually(lambda: told)
    await listener.close()
    await listener.close()
    assert seqs(told) == [5]
    await eventually(lambda: not valkey.execute("CLIENT", "LIST", "TYPE", "pubsub"))


class Scripted:
    """A channel that says what it is told to: what a real one loses cannot be chosen."""

    def __init__(self):
        self.messages = asyncio.Queue()

    async def publish(self, channel, payload):
        raise AssertionError(channel, payload)

    @contextlib.asynccontextmanager
    async def subscribe(self, *channels):
        del channels

        async def messages():
            while True:
                yield await self.messages.get()

        yield messages()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["sent", "lost", "twice", "late"])),
        max_size=25,
    )
)
def test_whatever_is_lost_or_repeated_the_view_converges(steps):
    asyncio.run(_converge(steps))


async def _converge(steps):
    states, channel, seq, late = States(), Scripted(), {"a": 0, "b": 0}, []
    channel.messages.put_nowait(Subscribed(CONTROL))
    async with controlled(channel, states) as (listener, told):
        for key, fate in steps:
            seq[key] += 1
            kind = (opened, half_opened, closed)[seq[key] % 3]
            payload = kind(seq[key], key=key, subject=key)
            states.states[key] = payload
            message = Published(CONTROL, json.dumps(payload).encode())
            for _ in range({"sent": 1, "twice": 2}.get(fate, 0)):
                channel.messages.put_nowait(message)
            if fate == "late":
                late.append(message)
            await asyncio.sleep(0)
        for message in [*late, Subscribed(CONTROL)]:
            channel.messages.put_nowait(message)
        await eventually(lambda: states.asked.count(None) == 2, interval=0)
        assert await listener.synced(5)
    for key, last in seq.items():
        mine = [event for event in told if event.subject == key]
        # Each one newer than the one before, and the last is how things stand.
        assert seqs(mine) == sorted(set(seqs(mine)))
        if mine:
            assert mine[-1].seq == last
        else:
            assert last == 0 or states.states[key]["state"] == "closed"


def test_a_bad_namespace_is_refused():
    with pytest.raises(ConfigError, match="namespace="):
        ControlListener(Scripted(), "a}{b", notify=print, resync=States())
