"""What a rate limit says of itself is exact, for each algorithm: by arithmetic made here.

The arithmetic knows nothing of closed formulas: it keeps every admission, sums up what counts at a
moment, and finds waits by trying moments.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from stanchion import RateLimit, Reason, durations
from stanchion.testing import memory_bus
from tests.busses import Call
from tests.policies.limits import (
    SECOND,
    admitted,
    is_admitted_at,
    left,
    micros,
    retry_is_exact,
    vetoed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion import Verdict


class Arithmetic:
    """Every admission of one subject, and how much of them counts at a moment."""

    def __init__(self, policy: RateLimit) -> None:
        self.policy = policy
        self.limit = policy.limit_of("*")
        self.per = durations.micros(policy.per, field="per")
        self.capacity = policy.burst or self.limit
        self.admitted: list[tuple[int, int]] = []
        self.used_at: Callable[[int], Fraction] = getattr(self, f"_{policy.algorithm}")

    def _gcra(self, now: int) -> Fraction:
        level, at = Fraction(0), 0
        for moment, cost in self.admitted:
            level = max(Fraction(0), level - Fraction((moment - at) * self.limit, self.per)) + cost
            at = moment
        return max(Fraction(0), level - Fraction((now - at) * self.limit, self.per))

    def _sliding_log(self, now: int) -> Fraction:
        return Fraction(sum(cost for at, cost in self.admitted if now - at < self.per))

    def _fixed_window(self, now: int) -> Fraction:
        same = [cost for at, cost in self.admitted if at // self.per == now // self.per]
        return Fraction(sum(same))

    def _sliding_window(self, now: int) -> Fraction:
        # Slices of whole microseconds; of the one that is leaving, the share that has not yet.
        width = -(-self.per // self.policy.slices)
        used = Fraction(0)
        for at, cost in self.admitted:
            age = now // width - at // width
            if age < self.policy.slices:
                used += cost
            elif age == self.policy.slices:
                used += Fraction(cost * (width - now % width), width)
        return used

    def fits(self, now: int, cost: int) -> bool:
        return self.used_at(now) + cost <= self.capacity

    def first(self, now: int, cost: int) -> int:
        """Get how many microseconds it takes until `cost` fits."""
        low, high = 0, 1
        while not self.fits(now + high, cost):
            high *= 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(now + middle, cost) else (middle + 1, high)
        return low

    def says(self, now: int) -> tuple[int, int]:
        """Get what is left at a moment, and how long until all of it is."""
        return int(self.capacity - self.used_at(now)), self.first(now, self.capacity)


def told(verdict: Verdict) -> tuple[bool, int | None, int | None, int]:
    wait = None if verdict.retry_after is None else micros(verdict.retry_after)
    return verdict.allowed, verdict.remaining, wait, micros(verdict.reset_after)


def limit(algorithm: str, **fields: object) -> RateLimit:
    given = {"name": "calls", "on": Call, "limit": 10, "per": "1s", "cost": "tokens"}
    return RateLimit.model_validate({**given, "algorithm": algorithm, **fields})


LIMITS = [
    limit("gcra"),
    limit("gcra", limit=7, per="1m", burst=3),
    limit("gcra", limit=3, per="1s", burst=40),
    limit("gcra", limit=999, per=0.25),
    limit("sliding_window", slices=10),
    limit("sliding_window", slices=20, per="1m"),
    limit("sliding_window", slices=60, per="1h", limit=100),
    limit("sliding_window", slices=13, limit=5),
    limit("sliding_log"),
    limit("sliding_log", limit=40, per="250ms"),
    limit("fixed_window"),
    limit("fixed_window", limit=25, per="90s"),
]


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: f"{policy.algorithm} {policy.limit}")
async def test_every_figure_is_what_the_admissions_make_it(policy):
    chance = random.Random(f"{policy.algorithm} {policy.limit}")
    sums = Arithmetic(policy)
    vetoes = 0
    async with memory_bus(policy) as bus:
        now = bus.clock.now_us + chance.randrange(SECOND)
        for _ in range(30):
            now += chance.choice([0, 1, chance.randrange(sums.per // 2), sums.per // sums.limit])
            await bus.clock.set_us(now)
            cost = chance.randint(0, sums.capacity)
            verdict = (await bus.check(Call(tokens=cost))).verdicts[0]
            assert verdict.limit == policy.limit
            if sums.fits(now, cost):
                sums.admitted.append((now, cost))
                rest, reset = sums.says(now)
                assert told(verdict) == (True, rest, 0, reset)
                continue
            vetoes += 1
            wait = sums.first(now, cost)
            rest, reset = sums.says(now)
            assert verdict.reason == Reason.LIMIT_REACHED
            assert told(verdict) == (False, rest, wait, reset)
            assert await is_admitted_at(bus, now + wait, Call(tokens=cost))
            assert not await is_admitted_at(bus, now + wait - 1, Call(tokens=cost))
    assert vetoes >= 4


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: f"{policy.algorithm} {policy.limit}")
async def test_what_is_above_the_whole_limit_is_never_admitted_and_told_so(policy):
    most = policy.burst or policy.limit
    async with memory_bus(policy) as bus:
        decision = await bus.check(Call(tokens=most + 1))
        assert (decision.allowed, decision.reason) == (False, Reason.COST_ABOVE_LIMIT)
        assert decision.retry_after is None
        assert told(decision.verdicts[0]) == (False, most, None, 0)
        assert await bus.check(Call(tokens=most)), "nothing was charged for what was refused"
        assert (await bus.peek(Call(tokens=1))).verdicts[0].remaining == 0
        assert (await bus.check(Call(tokens=most + 1))).retry_after is None


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: f"{policy.algorithm} {policy.limit}")
async def test_a_veto_charges_nothing_however_often_it_is_repeated(policy):
    most = policy.burst or policy.limit
    async with memory_bus(policy) as bus:
        assert await bus.check(Call(tokens=most))
        first = await bus.check(Call(tokens=most))
        for _ in range(20):
            again = await bus.check(Call(tokens=most))
            assert again.verdicts == first.verdicts
        await bus.clock.set_us(bus.clock.now_us + micros(first.retry_after))
        assert await bus.check(Call(tokens=most))


async def test_a_bucket_never_loses_a_fraction_of_a_microsecond():
    # One unit takes 333333 1/3 us: after three, the third of each is a whole one.
    async with memory_bus(limit("gcra", limit=3, burst=2)) as bus:
        start = bus.clock.now_us
        assert await bus.check(Call())
        for turn in range(1, 31):
            assert await bus.check(Call())
            retry = (await vetoed(bus)).retry_after
            ready = -(-turn * SECOND // 3)
            assert start + ready == bus.clock.now_us + micros(retry)
            await bus.clock.set_us(start + ready)


async def test_at_the_boundary_of_a_fixed_window_twice_the_limit_passes_and_no_more():
    async with memory_bus(limit("fixed_window")) as bus:
        await bus.clock.set_us(bus.clock.now_us + SECOND - 1)
        allowed = [bool(await bus.check(Call())) for _ in range(11)]
        await bus.clock.advance(0.000001)
        allowed += [bool(await bus.check(Call())) for _ in range(11)]
        assert allowed == ([True] * 10 + [False]) * 2


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: f"{policy.algorithm} {policy.limit}")
async def test_what_it_really_cost_replaces_what_was_charged_once(policy):
    most = policy.burst or policy.limit
    async with memory_bus(policy) as bus:
        permit = await admitted(bus, tokens=most)
        assert await bus.settle(permit, tokens=1)
        assert await left(bus) == most - 1
        assert (await bus.settle(permit, tokens=0)).stale == ("calls",)
        assert await left(bus) == most - 1


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: f"{policy.algorithm} {policy.limit}")
async def test_what_it_cost_beyond_the_charge_is_owed(policy):
    most = policy.burst or policy.limit
    async with memory_bus(policy) as bus:
        permit = await admitted(bus, tokens=1)
        assert await bus.settle(permit, tokens=most + 1)
        assert await left(bus) == 0
        assert await retry_is_exact(bus, Call(tokens=1)) > 0


async def test_a_late_refund_gives_nothing_on_top_of_a_full_burst():
    async with memory_bus(limit("gcra", limit=1000, per="60s")) as bus:
        first = await admitted(bus, tokens=1000)
        await bus.clock.advance("60s")
        await admitted(bus, tokens=1000)
        assert await bus.settle(first, tokens=100)
        assert await left(bus) == 0
