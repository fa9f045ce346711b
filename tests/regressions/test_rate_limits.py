"""Defects of other rate limiters that users have met; none of them may be ours.

Covered elsewhere in full:
- a clock that steps back on failover, and a worker's own that is wrong: tests/faults/test_clocks.py

Cannot apply:
- gubernator's and envoy's "token bucket" that is a fixed window, and their months of 30 days: what
  is called GCRA here is one (below), and calendar windows are the calendar's (test_quotas.py)
- redis-cell's `max_burst` of one less than asked for: `burst` is what passes at once
"""

from __future__ import annotations

import pytest

from stanchion.testing import START_US, memory_bus
from tests.busses import Call, command, every_kind, quota, rate, snapshot
from tests.regressions.looking import ALGORITHMS, fields, lifetimes, micros, only

SECOND = 1_000_000


async def test_a_bucket_that_refills_within_half_a_second_still_limits(store_url: str):
    """throttled-py: a lifetime rounded down to EXPIRE 0 deleted the key: no limit at all."""
    policy = rate(limit=10, per="1s", burst=4, cost=4)
    async with memory_bus(policy, url=store_url) as bus:
        assert [bool(await bus.check(Call())) for _ in range(3)] == [True, False, False]
        await bus.clock.advance(0.399)
        assert not await bus.check(Call())
        await bus.clock.advance(0.001)
        assert await bus.check(Call())


async def test_a_window_of_less_than_a_millisecond_is_kept_long_enough(store_url: str):
    """throttled-py: the same rounding, at the shortest windows that can be declared."""
    policies = [rate(name, algorithm=name, limit=1, per="0.5ms") for name in ALGORITHMS]
    async with memory_bus(*policies, url=store_url) as bus:
        assert await bus.check(Call())
        refused = await bus.check(Call())
        assert {verdict.reason for verdict in refused.verdicts} == {"limit_reached"}


async def test_one_hit_leaves_no_key_that_lives_for_ever(store_url: str):
    """throttled-py: EXPIRE before the first write; upstash: a number compared with a string."""
    async with memory_bus(*every_kind(), url=store_url) as bus:
        permit = await bus.admit(Call())
        first = await lifetimes(bus)
        assert len(first) >= len(every_kind())
        assert all(ttl > 0 for ttl in first.values()), first
        # Nor do a second hit, a refusal, or what settling leaves.
        assert await bus.check(Call())
        assert not await bus.check(Call())
        await bus.settle(permit, tokens=2)
        assert all(ttl > 0 for ttl in (await lifetimes(bus)).values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_peek_tells_the_exact_time_at_which_one_passes(store_url: str, algorithm: str):
    """throttled-py: the wait that peek told was |elapsed| instead of what was left of it."""
    async with memory_bus(rate(limit=3, per="10s", algorithm=algorithm), url=store_url) as bus:
        await bus.clock.advance(1.7)
        for _ in range(3):
            assert await bus.check(Call())
            await bus.clock.advance(0.3)
        wait = micros((await bus.peek(Call())).retry_after)
        assert wait == micros((await bus.check(Call())).retry_after)
        await bus.clock.set_us(bus.clock.now_us + wait - 1)
        assert not await bus.peek(Call())
        assert micros((await bus.check(Call())).retry_after) == 1
        await bus.clock.set_us(bus.clock.now_us + 1)
        assert await bus.peek(Call())
        assert await bus.check(Call())


async def test_retry_after_is_what_is_left_and_not_the_whole_window():
    """LiteLLM: `retry-after` was always the length of the window."""
    policies = [
        rate("fixed", algorithm="fixed_window", limit=1),
        rate("log", algorithm="sliding_log", limit=1),
        rate("gcra", limit=1),
        quota("minute", limit=1, per="1m"),
    ]
    async with memory_bus(*policies) as bus:
        assert await bus.check(Call())
        await bus.clock.advance(45)
        verdicts = (await bus.check(Call())).verdicts
        assert [verdict.retry_after for verdict in verdicts] == [15.0] * 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_refused_cost_is_not_charged(store_url: str, algorithm: str):
    """upstash: the limit was looked at before n was added, so that a refused n > 1 was charged."""
    policy = rate(limit=5, cost="tokens", algorithm=algorithm)
    async with memory_bus(policy, url=store_url) as bus:
        assert await bus.check(Call(tokens=3))
        before = await snapshot(bus)
        for _ in range(3):
            assert only(await bus.check(Call(tokens=3))).remaining == 2
        assert await snapshot(bus) == before
        assert await bus.check(Call(tokens=2))


async def test_refusals_leave_a_limit_that_is_raised_exactly_the_difference():
    """Fixed windows that count first and compare afterwards count refusals too."""
    async with memory_bus(rate(limit=5, algorithm="fixed_window")) as bus:
        for _ in range(50):
            await bus.check(Call())
        await bus.override("calls", 6)
        assert [bool(await bus.check(Call())) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "policy", [rate(algorithm="fixed_window"), quota("calls", limit=5, per="1m", cost=1)]
)
async def test_steady_calls_do_not_keep_a_window_from_ending(store_url: str, policy):
    """litellm#14204, apache/shenyu#6649: each increment renewed the TTL; no window ever ended."""
    async with memory_bus(policy, url=store_url) as bus:
        for _ in range(4):
            asked = []
            for _ in range(12):
                asked.append(bool(await bus.check(Call())))
                await bus.clock.advance(5)
            assert asked == [True] * 5 + [False] * 7


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_state_lives_until_nothing_of_it_counts(store_url: str, algorithm: str):
    """PostHog#89726: a TTL below two windows forgot the last: a free pass each third minute."""
    async with memory_bus(rate(limit=9, algorithm=algorithm), url=store_url) as bus:
        for _ in range(9):
            counted = only(await bus.check(Call())).reset_after
            (lives,) = [
                ttl for key, ttl in (await lifetimes(bus)).items() if key.endswith("rate:calls:-")
            ]
            assert counted is not None
            assert lives >= counted * 1000
            await bus.clock.advance(6.1)


async def test_a_sliding_window_still_counts_what_came_before_its_end():
    """PostHog#89726: calls in every window, seen from each second of the next one."""
    async with memory_bus(rate(limit=60, algorithm="sliding_window")) as bus:
        for _ in range(6):
            assert sum([bool(await bus.check(Call())) for _ in range(61)]) == 60
            await bus.clock.advance(59)
            # The calls were made a moment ago, whichever minute it is by now.
            assert not any([await bus.check(Call()) for _ in range(3)])
            await bus.clock.advance(1)
            assert not any([await bus.check(Call()) for _ in range(3)])
            await bus.clock.advance(60 + 3)


async def test_a_cost_above_the_limit_leaves_nothing_behind(store_url: str):
    """upstash#156: a refused call stored -3, and a huge cost locked its key for 115 days."""
    policies = [rate(name, algorithm=name, limit=100, cost="tokens") for name in ALGORITHMS]
    async with memory_bus(*policies, url=store_url) as bus:
        refused = await bus.check(Call(tokens=2**53 - 1))
        assert {verdict.reason for verdict in refused.verdicts} == {"cost_above_limit"}
        assert refused.retry_after is None
        assert await lifetimes(bus) == {}
        assert await bus.check(Call(tokens=100))


HUGE = 2**53 - 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_huge_real_cost_is_a_debt_that_can_be_read_and_forgiven(
    store_url: str, algorithm: str
):
    """upstash#156: no cost that somebody reports may make a state that nobody can use again."""
    policy = rate(limit=2, per="1d", cost="tokens", algorithm=algorithm)
    async with memory_bus(policy, url=store_url) as bus:
        permits = [await bus.admit(Call()) for _ in range(2)]
        for permit in permits:
            assert await bus.settle(permit, tokens=HUGE)
        refused = only(await bus.check(Call()))
        assert refused.reason == "limit_reached"
        assert refused.retry_after is not None
        assert all(ttl > 0 for ttl in (await lifetimes(bus)).values())
        if algorithm != "gcra":
            # What was counted leaves with its window, and takes no more away than it had added.
            await bus.clock.advance("2d")
            await bus.clock.advance("2d")
            assert [bool(await bus.check(Call())) for _ in range(3)] == [True, True, False]
        await bus.reset("calls")
        assert [bool(await bus.check(Call())) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("per", ["0.1s", "1s", "7s", "1m", "1h", "1d", "3650d"])
async def test_a_limit_of_one_admits_exactly_one(per: str):
    """upstash#39: rounding made a limit of 1 refuse always."""
    for algorithm in ALGORITHMS:
        async with memory_bus(rate(limit=1, per=per, algorithm=algorithm)) as bus:
            await bus.clock.set_us(START_US + 12_345_678_901)
            for _ in range(3):
                first, second = await bus.check(Call()), await bus.check(Call())
                assert (bool(first), second.reason) == (True, "limit_reached"), algorithm
                await bus.clock.set_us(bus.clock.now_us + micros(second.retry_after))


async def test_a_fraction_of_a_unit_is_never_lost_by_asking():
    """throttled-py: it floored the refill and then set the clock to now, losing the rest."""
    async with memory_bus(rate(limit=3, per="1s", burst=2)) as bus:
        admitted, began = 0, bus.clock.now_us
        for _ in range(400):
            admitted += bool(await bus.check(Call()))
            await bus.clock.set_us(bus.clock.now_us + 70_001)
        last = bus.clock.now_us - 70_001 - began
        assert admitted == 2 + last * 3 // SECOND


async def test_a_cost_of_the_whole_burst_passes_a_full_bucket():
    """redis#14826: `<` where `n == burst` needs `<=`."""
    async with memory_bus(rate(limit=7, per="1s", burst=5, cost="tokens")) as bus:
        for _ in range(3):
            assert await bus.check(Call(tokens=5))
            wait = micros((await bus.check(Call(tokens=5))).retry_after)
            assert wait == 714_286  # 5/7 s, rounded up to where it is true
            await bus.clock.set_us(bus.clock.now_us + wait)


async def test_a_cost_above_the_burst_is_told_with_fields_that_agree():
    """redis#15113: what can never pass has no time to try again, and has used nothing."""
    async with memory_bus(rate(limit=60, burst=10, cost="tokens")) as bus:
        refused = only(await bus.check(Call(tokens=11)))
        assert refused.reason == "cost_above_limit"
        assert (refused.retry_after, refused.remaining, refused.reset_after) == (None, 10, 0.0)
        assert await bus.check(Call(tokens=4))
        refused = only(await bus.check(Call(tokens=11)))
        assert (refused.retry_after, refused.remaining, refused.reset_after) == (None, 6, 4.0)


async def test_a_late_refund_gives_no_second_burst():
    """Buckets that refund what time has given back already: 1900 of 1000 at one moment."""
    async with memory_bus(rate(limit=1000, cost="tokens")) as bus:
        late = await bus.admit(Call(tokens=1000))
        await bus.clock.advance(60)
        assert await bus.check(Call(tokens=1000))
        assert await bus.settle(late, tokens=100)
        assert only(await bus.check(Call(tokens=1))).remaining == 0


async def test_a_share_of_the_last_window_is_not_rounded_in_favour_of_more():
    """Sliding counters that round the estimate down admit more than the limit."""
    async with memory_bus(rate(limit=10, algorithm="sliding_window", cost="tokens")) as bus:
        assert await bus.check(Call(tokens=10))
        # A moment into the slice in which the first one leaves: 9.99... are still in the window.
        await bus.clock.set_us(START_US + 60 * SECOND + 1)
        assert not await bus.check(Call())
        await bus.clock.set_us(START_US + 60 * SECOND + 299_999)
        assert not await bus.check(Call())
        await bus.clock.set_us(START_US + 60 * SECOND + 300_000)
        assert [bool(await bus.check(Call())) for _ in range(2)] == [True, False]


async def test_a_log_has_one_entry_a_request_whatever_it_costs(store_url: str):
    """PyrateLimiter: one sorted-set member for each unit of weight."""
    policy = rate(limit=10**6, algorithm="sliding_log", cost="tokens")
    async with memory_bus(policy, url=store_url) as bus:
        for _ in range(3):
            assert await bus.check(Call(tokens=300_000))
        (log,) = [key for key in await lifetimes(bus) if "rate.log" in key]
        assert await command(bus, "ZCARD", log) == 3
        assert (await fields(bus, "rate:calls:-"))["used"] == "900000"
