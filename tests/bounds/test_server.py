"""What a flood can make a server hold: how much a subject takes, for how long, and the indexes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitBreaker, Concurrency, EventBus, Outcome, Quota, RateLimit
from tests.bounds.flooding import Flood, used_memory
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import RealServer

HOUR = 3600
# (policy, calls for each subject settled or not, most bytes for each, most seconds that it stays)
SORTS: dict[str, tuple[Callable[..., Any], int, int, float]] = {
    "rate": (lambda **f: RateLimit(limit=5, per="1m", **f), 10_000, 400, 1.1 * HOUR),
    "quota": (lambda **f: Quota(limit=9, per="1h", lease="1m", **f), 2_000, 1300, 5 * HOUR),
    "slots": (lambda **f: Concurrency(limit=9, lease="30s", **f), 2_000, 600, 120),
    "circuit": (lambda **f: CircuitBreaker(consecutive_failures=2, **f), 2_000, 1500, 2.1 * HOUR),
}
END_ALL = """
for _, key in ipairs(redis.call('KEYS', '*:p:*')) do redis.call('PEXPIRE', key, 1) end
"""
FILL = """
for i = 1, 20000 do redis.call('ZADD', KEYS[1], ARGV[1] - 20000 + i, 'u' .. i) end
"""
NOTED = """
for i = 1, 20000 do redis.call('ZADD', KEYS[1], ARGV[1], 'u' .. (ARGV[2] + i)) end
redis.call('PEXPIRE', KEYS[1], 60000)
"""
LONGEST_TTL = """
local most = 0
for _, key in ipairs(redis.call('KEYS', '*:p:*')) do
  local left = redis.call('PTTL', key)
  if left < 0 then return -1 end
  most = math.max(most, left)
end
return most
"""


async def flood(bus: EventBus, count: int) -> None:
    for start in range(0, count, 500):
        users = range(start, min(count, start + 500))
        decisions = await asyncio.gather(*[bus.check(Flood(user=f"u{u:09}")) for u in users])
        assert all(decision.allowed for decision in decisions)


@pytest.mark.parametrize("sort", SORTS)
async def test_fresh_subjects_take_so_much_each_and_their_memory_comes_back(
    valkey: RealServer, sort: str
):
    """Somebody who calls himself something else each time."""
    make, count, most_bytes, most_seconds = SORTS[sort]
    policy = make(name="p", on=Flood, by="user")
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        await flood(bus, 500)
        valkey.execute("FLUSHALL")
        before = used_memory(valkey)
        await flood(bus, count)
        grown = used_memory(valkey) - before
        assert grown < count * most_bytes
        longest = valkey.execute("EVAL", LONGEST_TTL, 0)
        assert 0 < longest <= most_seconds * 1000
        # Their time is up: it need not be looked at for the server to let go of it.
        valkey.execute("EVAL", END_ALL, 0)
        await eventually(lambda: not valkey.execute("KEYS", "*:p:*"), timeout=30)
        await eventually(lambda: used_memory(valkey) - before < grown / 2, timeout=30)


async def test_denials_that_somebody_keeps_are_noted_for_seconds(valkey: RealServer):
    policy = RateLimit(name="p", on=Flood, by="user", limit=1, per="1h")
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        await flood(bus, 3_000)
        before = used_memory(valkey)
        for start in range(0, 3_000, 500):
            users = range(start, start + 500)
            await asyncio.gather(*[bus.check(Flood(user=f"u{user:09}")) for user in users])
        noted = valkey.execute("ZCARD", "stanchion:{default}:denied")
        assert 0 < noted <= 3_000
        assert used_memory(valkey) - before < 3_000 * 250
        assert 0 < valkey.execute("PTTL", "stanchion:{default}:denied") <= 10_000


async def test_denials_that_somebody_keeps_are_noted_up_to_a_number(valkey: RealServer):
    policy = RateLimit(name="p", on=Flood, by="user", limit=1, per="1h")
    noted = "stanchion:{default}:denied"
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        assert await bus.check(Flood(user="last"))
        later_us = time.time_ns() // 1000 + 3_000_000
        for start in range(0, 120_000, 20_000):
            valkey.execute("EVAL", NOTED, 1, noted, later_us, start)
        assert valkey.execute("ZCARD", noted) == 120_000
        assert not await bus.check(Flood(user="last"))
        assert valkey.execute("ZCARD", noted) == 100_000
        # What ends last has the most left for which somebody could be told.
        assert valkey.execute("ZSCORE", noted, "stanchion:{default}:rate:p:last")


async def test_fresh_subjects_make_no_more_state_than_a_policy_allows(valkey: RealServer):
    policies = [
        RateLimit(name="p", on=Flood, by="user", limit=5, per="1m", max_subjects=100),
        Quota(name="all", on=Flood, limit=1_000_000, per="1h", rolling=True),
    ]
    async with EventBus.from_url(valkey.url, policies=policies, deadline=30) as bus:
        for start in range(0, 10_000, 500):
            users = range(start, start + 500)
            decisions = await asyncio.gather(*[bus.check(Flood(user=f"u{n}")) for n in users])
            assert {decision.reason for decision in decisions if not decision} <= {
                "too_many_subjects"
            }
            assert sum(map(bool, decisions)) == (0 if start else 100)
        keys = valkey.execute("KEYS", "*:p*")
        assert len(keys) == 101
        index = "stanchion:{default}:subjects:p"
        assert valkey.execute("ZCARD", index) == 100
        assert 0 < valkey.execute("PTTL", index) <= 1.1 * HOUR * 1000
        # Who was there before goes on, and nothing was charged elsewhere for those who were not.
        known = [await bus.check(Flood(user=f"u{n}")) for n in range(100)]
        assert all(known)
        assert known[-1].verdicts[1].remaining == 1_000_000 - 200


async def test_an_index_of_subjects_is_swept_as_it_is_written(valkey: RealServer):
    policy = RateLimit(name="p", on=Flood, by="user", limit=999, per="1m", max_subjects=100)
    index = "stanchion:{default}:subjects:p"
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        await bus.check(Flood(user="first"))
        # Twenty thousand, whose state has ended: they count no more, and go bit by bit.
        valkey.execute("EVAL", FILL, 1, index, time.time_ns() // 1000 - 60_000_000)
        await bus.check(Flood(user="second"))
        assert valkey.execute("ZCARD", index) == 19_902
        await asyncio.gather(*[bus.check(Flood(user=f"u{n}")) for n in range(97)])
        for _ in range(200):
            await bus.check(Flood(user="second"))
        assert valkey.execute("ZCARD", index) == 99


async def test_circuits_that_have_changed_are_listed_up_to_a_number(valkey: RealServer):
    policy = CircuitBreaker(name="p", on=Flood, by="user", consecutive_failures=1)
    changed = "stanchion:{default}:circuits"
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:

        async def fail(user: str) -> None:
            permit = await bus.admit(Flood(user=user))
            assert await bus.settle(permit, Outcome.FAILURE)

        await fail("first")
        at = int(valkey.execute("ZSCORE", changed, "stanchion:{default}:circuit:p:first"))
        valkey.execute("EVAL", FILL, 1, changed, at)
        assert valkey.execute("ZCARD", changed) == 20_001
        await fail("last")
        assert valkey.execute("ZCARD", changed) == 10_000
        # Those that changed longest ago have given way.
        assert valkey.execute("ZSCORE", changed, "stanchion:{default}:circuit:p:last")
        assert not valkey.execute("ZSCORE", changed, "u1")


async def test_reservations_that_nobody_settles_end_with_their_lease(valkey: RealServer):
    """Also those of nothing, which no limit holds back."""
    policy = Quota(name="p", on=Flood, limit=9, per="1h", cost="tokens", lease="1s")
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        for _ in range(4):
            await asyncio.gather(*[bus.check(Flood(tokens=0)) for _ in range(500)])
        held = "stanchion:{default}:quota.holds:p:-"

        async def gone() -> bool:
            await bus.check(Flood(tokens=0))
            return valkey.execute("ZCARD", held) < 300

        await eventually(gone, timeout=20, interval=0.2)


async def test_a_log_holds_no_more_entries_than_its_limit(valkey: RealServer):
    policy = RateLimit(name="p", on=Flood, limit=50, per="1h", algorithm="sliding_log")
    async with EventBus.from_url(valkey.url, policies=[policy], cache_denials=False) as bus:
        for _ in range(4):
            await asyncio.gather(*[bus.check(Flood()) for _ in range(250)])
    assert valkey.execute("ZCARD", "stanchion:{default}:rate.log:p:-") == 50


async def test_a_line_is_as_long_as_those_who_wait_and_goes_with_them(valkey: RealServer):
    policy = Concurrency(name="p", on=Flood, limit=1, lease="30s")
    async with EventBus.from_url(valkey.url, policies=[policy], deadline=30) as bus:
        permit = await bus.admit(Flood())
        waiting = [asyncio.create_task(bus.admit(Flood(), wait=60)) for _ in range(300)]
        order = "stanchion:{default}:slots.order:p:-"
        await eventually(lambda: valkey.execute("ZCARD", order) == 300, timeout=20)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await eventually(lambda: valkey.execute("ZCARD", order) == 0, timeout=20)
        await bus.settle(permit)
