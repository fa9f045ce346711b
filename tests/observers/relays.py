"""Streams of events, and relays from them to observers that do as a test tells them."""

from __future__ import annotations

import asyncio
import contextlib

from stanchion import Event, EventBus
from stanchion.observers.delivery import Undelivered
from stanchion.observers.registration import Registration
from stanchion.observers.relay import Relay, selector_of
from stanchion.observers.retry import Retry
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.observers.streams import StreamReader
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

KEY = "stanchion:{default}:stream"


class Step(Event, type="observed:step"):
    number: int


def steps(count, first=0):
    return [Step(number=number) for number in range(first, first + count)]


async def notified(url, observer, *events):
    """Have a worker tell of events."""
    async with EventBus.from_url(url, observers=[Registration.of(observer, queue=10_000)]) as bus:
        for event in events:
            bus.notify(event)
        assert await bus.observers.drain()


async def appended(url, *events):
    await notified(url, RedisStreamSink(), *events)


def pending(server, name):
    """How many entries are in hand; None as long as there is no such group."""
    with server.sync_client() as client:
        groups = {group["name"].decode(): group for group in client.xinfo_groups(KEY)}
    group = groups.get(f"observe.{name}")
    return None if group is None else group["pending"]


class Target:
    """An observer that does what it is told, and remembers what it was given."""

    def __init__(self, *answers, idempotent=False, on="*"):
        self.answers = list(answers)
        self.idempotent = idempotent
        self.batch_size = 10
        self.on = on
        self.calls = []

    async def handle_batch(self, events):
        self.calls.append([event.number for event in events])
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            await answer(events)


@contextlib.asynccontextmanager
async def relaying(server, observer, *, redact=(), attempts=12, **terms):
    """A relay that runs."""
    store = RedisStore(server.url, Keyspace("default"))
    await store.open()
    given = Registration.of(observer, **{"name": "it", **terms})
    reader = StreamReader(
        store, group="observe.it", start="0", on=selector_of(given), claim_after="1s"
    )
    relay = Relay(
        given, reader, channel=store, namespace="default", redact=redact, attempts=attempts
    )
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop, 0.5))
    try:
        yield relay
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)
        await store.close()


def naming(*numbers, **options):
    async def answer(events):
        raise Undelivered([one for one in events if one.number in numbers], "busy", **options)

    return answer


FAST = Retry(attempts=2, first=0.01, longest=0.01)
