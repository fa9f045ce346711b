"""What a flood can make a process hold on to: each bound, met."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import EventBus, Permit, RateLimit, StanchionError
from stanchion.observers import ObserverManager, Recorder, RedisPublisher, listen
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.policies.remote import remote_policy
from tests.bounds.flooding import MIB, Flood, measured
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion.events import Event
    from tests.servers import RealServer

LARGE = 200_000
MANY = 150  # of these are 30 MB


def large(number: int) -> str:
    return f"{number:08d}" * (LARGE // 8)


async def warmed(bus: EventBus) -> None:
    for number in range(3):
        await bus.check(Flood(user=f"warm-{number}"))


async def test_long_ids_are_not_remembered(valkey: RealServer):
    policy = RateLimit(name="calls", on=Flood, by="user", limit=1, per="1h")
    async with EventBus.from_url(valkey.url, policies=[policy]) as bus:
        await warmed(bus)
        with measured() as grown:
            for number in range(MANY):
                assert await bus.check(Flood(user=large(number)))
                assert not await bus.check(Flood(user=large(number)))
    assert grown.bytes < 3 * MIB


async def test_short_ids_are_remembered_up_to_a_number(valkey: RealServer):
    """What is asked about a subject is kept at hand for the last 4,096, and not for each."""
    policy = RateLimit(name="calls", on=Flood, by="user", limit=1, per="1h")
    async with EventBus.from_url(valkey.url, policies=[policy], cache_denials=False) as bus:
        await warmed(bus)
        with measured() as grown:
            for start in range(0, 5_500, 500):
                users = range(start, start + 500)
                await asyncio.gather(*[bus.check(Flood(user=f"u{user}")) for user in users])
    # Some 1.2 KB for each: 5,500 would be 6.5 MB.
    assert grown.bytes < 5 * MIB


async def test_answers_of_a_service_are_kept_by_a_digest_of_long_questions():
    asked = 0

    @remote_policy(name="judge", on=Flood, by="user", cache_admit="1h", cache_size=10_000)
    async def judge(event: Flood) -> bool:
        nonlocal asked
        asked += 1
        return True

    async with EventBus.from_url("memory://", policies=[judge]) as bus:
        await warmed(bus)
        asked = 0
        with measured() as grown:
            for _ in range(2):
                for number in range(MANY):
                    assert await bus.check(Flood(user=large(number)))
        assert asked == MANY
    assert grown.bytes < 3 * MIB


async def test_redaction_neither_remembers_long_names_nor_takes_long_to_match_them():
    """Whoever sends an event chooses the names in its metadata."""
    recorder = Recorder(maxlen=1)
    async with ObserverManager(redact=("*_token", "api.*.key")) as manager:
        manager.register(recorder)

        async def notified(name: str) -> dict[str, Any]:
            manager.notify(Flood(user=name[:20], metadata={"kept": 1, name: 1, "my_token": 1}))
            await manager.drain(30)
            return recorder.events[-1].metadata

        await notified("warm")
        with measured() as grown:
            for number in range(MANY):
                await notified(large(number))
        began = time.monotonic()
        seen = await notified("." * 100_000 + "x")
        assert time.monotonic() - began < 5
        # What is too long to be looked at is covered, and no other.
        assert sorted(map(str, seen.values())) == ["1", "[redacted]", "[redacted]"]
        assert seen["kept"] == 1
    assert grown.bytes < 3 * MIB


async def test_callers_of_a_server_that_hangs_leave_within_the_deadline_and_leave_nothing(
    valkey: RealServer,
):
    policy = RateLimit(name="calls", on=Flood, by="user", limit=10, per="1h")
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=0.5) as bus:

        async def everybody() -> set[str | None]:
            events = [Flood(user=f"u{number}") for number in range(2_000)]
            return {one.reason for one in await asyncio.gather(*map(bus.check, events))}

        await everybody()
        valkey.pause()
        with measured() as grown:
            began = time.monotonic()
            assert await everybody() == {"store_unavailable"}
            assert time.monotonic() - began < 20
            # The loop itself holds on to what woke us until the next turn.
            await asyncio.sleep(0)
        valkey.resume()
    # Nobody's turn, reply or future; 2,000 of them would be 3 MB.
    assert grown.bytes < MIB


async def test_what_an_event_may_weigh_in_redis(valkey: RealServer):
    """A prompt of 10 MB is neither published nor appended, and others are."""
    seen: list[Event] = []
    publisher, stream = RedisPublisher(on="bounds:*"), RedisStreamSink(on="bounds:*")
    async with EventBus.from_url(valkey.url, observers=[publisher, stream]) as bus:

        async def follow() -> None:
            async with EventBus.from_url(valkey.url) as other:
                channel: Any = other._store
                async for event in listen(channel, "default", on="bounds:*"):
                    seen.append(event)  # noqa: PERF401 - it is looked at meanwhile

        following = asyncio.create_task(follow())
        await eventually(
            lambda: valkey.execute("PUBSUB", "NUMSUB", "stanchion:{default}:events")[1]
        )
        for size in (10 * MIB, 10):
            bus.notify(Flood(user="x" * size))
        await eventually(lambda: seen)
        assert [len(event.user or "") for event in seen if isinstance(event, Flood)] == [10]
        await eventually(lambda: valkey.execute("XLEN", "stanchion:{default}:stream") == 1)
        stats = bus.observers.stats()
        assert {one.dropped + one.failed for one in stats.values()} == {1}
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def test_a_permit_as_long_as_one_likes_is_not_decoded():
    text = "stp1." + "A" * (20 * MIB)
    with measured() as grown, pytest.raises(StanchionError, match="at most 16777216"):
        Permit.parse(text)
    assert grown.bytes < MIB
