"""Another limit while work is going on: what becomes of what was used is the policy's choice."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stanchion import ConfigError, RateLimit
from stanchion.testing import memory_bus
from tests.busses import Call, quota, rate
from tests.policies.limits import (
    SECOND,
    admitted,
    left,
    micros,
    redeclare,
    retry_is_exact,
    seen,
    two_busses,
    vetoed,
)

#: Each counts what came at one moment until an hour later, whatever the algorithm.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gcra": (rate, {"per": "1h", "cost": "tokens"}),
    "sliding_window": (rate, {"per": "1h", "cost": "tokens", "algorithm": "sliding_window"}),
    "sliding_log": (rate, {"per": "1h", "cost": "tokens", "algorithm": "sliding_log"}),
    "fixed_window": (rate, {"per": "1h", "cost": "tokens", "algorithm": "fixed_window"}),
    "quota": (quota, {"per": "1h"}),
    "calendar": (quota, {"per": "hour", "timezone": "Asia/Kolkata", "overage": "clip"}),
    "rolling": (quota, {"per": "1h", "rolling": True}),
}
CHOICES = {
    "keep": lambda used, was, now: used,
    "scale": lambda used, was, now: math.ceil(used * now / was),
    "remaining": lambda used, was, now: max(0, now - (was - used)),
    "reset": lambda used, was, now: 0,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def declared(kind: str, limit: int, **fields: Any) -> Any:
    make, given = KINDS[kind]
    return make("p", limit=limit, **{**given, **fields})


each_choice = pytest.mark.parametrize(
    ("kind", "choice"),
    [
        (kind, choice)
        for kind in KINDS
        for choice in CHOICES
        if kind != "sliding_log" or choice in {"keep", "reset"}
    ],
)


@each_choice
async def test_what_was_used_is_carried_over_as_chosen(kind, choice):
    async with memory_bus(declared(kind, 100)) as bus:
        for now in (10, 70, 130):
            redeclare(bus, declared(kind, 100))
            await bus.reset("p")
            await bus.settle(await admitted(bus, tokens=40))
            redeclare(bus, declared(kind, now, on_change=choice))
            used = CHOICES[choice](40, 100, now)
            assert (await seen(bus)).limit == now
            assert await left(bus) == max(0, now - used)
            if used <= now:
                assert (await bus.peek(Call(tokens=now - used))).allowed
            # Wherever it stands now, the time to wait is as exact as ever.
            if used > 0:
                await vetoed(bus, tokens=max(1, now - used + 1))
                assert await retry_is_exact(bus, Call(tokens=now)) > 0


@each_kind
async def test_by_default_what_was_used_stays_used_and_turns_into_no_other_amount(kind):
    async with memory_bus(declared(kind, 100)) as bus:
        await admitted(bus, tokens=40)
        for limit in (200, 50, 41, 100):
            redeclare(bus, declared(kind, limit))
            await vetoed(bus, tokens=limit - 39)
            assert await left(bus) == limit - 40


@each_choice
async def test_nothing_used_stays_nothing_used(kind, choice):
    async with memory_bus(declared(kind, 100, on_change=choice)) as bus:
        await bus.settle(await admitted(bus, tokens=40), tokens=0)
        redeclare(bus, declared(kind, 30, on_change=choice))
        assert await left(bus) == 30


@each_kind
async def test_the_change_holds_from_then_on_though_the_first_call_under_it_is_refused(kind):
    async with memory_bus(declared(kind, 100)) as bus:
        await admitted(bus, tokens=80)
        redeclare(bus, declared(kind, 50))
        await vetoed(bus, tokens=1)
        # As if declared by a process that never saw the first limit.
        assert (await seen(bus)).limit == 50
        redeclare(bus, declared(kind, 100))
        assert await left(bus) == 20


@each_kind
async def test_what_was_admitted_before_the_change_is_settled_after_it(kind):
    async with memory_bus(declared(kind, 100)) as bus:
        permit = await admitted(bus, tokens=40)
        redeclare(bus, declared(kind, 200))
        assert await left(bus) == 160
        assert await bus.settle(permit, tokens=60)
        assert await left(bus) == 140
        assert not await bus.settle(permit, tokens=0)


@each_kind
async def test_two_processes_with_two_declarations_never_lose_what_was_used(kind, valkey):
    async with two_busses(valkey.url, declared(kind, 100)) as (old, new):
        redeclare(new, declared(kind, 60))
        for used in range(0, 50, 10):
            assert await left(old) == 100 - used
            assert await left(new) == 60 - used
            await admitted(old, tokens=5)
            await admitted(new, tokens=5)
        await vetoed(new, tokens=11)
        await admitted(old, tokens=11)
        await vetoed(new, tokens=1)


@pytest.mark.parametrize("choice", CHOICES)
async def test_a_gcra_change_is_of_the_burst_and_what_drains_drains_at_the_new_rate(choice):
    def bucket(limit: int, burst: int) -> RateLimit:
        return declared("gcra", limit, per="100s", burst=burst, on_change=choice)

    async with memory_bus(bucket(100, 50)) as bus:
        await admitted(bus, tokens=20)
        redeclare(bus, bucket(10, 80))
        used = CHOICES[choice](20, 50, 80)
        assert await left(bus) == 80 - used
        # A unit comes back every ten seconds now.
        assert micros((await seen(bus)).reset_after) == used * 10 * SECOND
        if used:
            await vetoed(bus, tokens=80)
            await bus.clock.advance(10)
            assert await left(bus) == 80 - used + 1


@pytest.mark.parametrize("kind", ["gcra", "sliding_window", "rolling", "fixed_window", "quota"])
async def test_another_length_of_the_window_keeps_what_was_used_too(kind):
    async with memory_bus(declared(kind, 100)) as bus:
        await admitted(bus, tokens=40)
        redeclare(bus, declared(kind, 100, per="2h"))
        assert await left(bus) == 60
        redeclare(bus, declared(kind, 100, per="30m"))
        assert await left(bus) == 60


@pytest.mark.parametrize("kind", ["sliding_window", "rolling"])
async def test_finer_slices_keep_what_was_used(kind):
    async with memory_bus(declared(kind, 100, slices=10)) as bus:
        await admitted(bus, tokens=40)
        redeclare(bus, declared(kind, 100, slices=60))
        assert await left(bus) == 60


@pytest.mark.parametrize(
    "kinds",
    [
        ("gcra", "sliding_window", "sliding_log", "fixed_window"),
        ("gcra", "sliding_log", "gcra", "fixed_window", "sliding_window", "gcra"),
        ("quota", "rolling", "calendar", "rolling"),
    ],
    ids=" ".join,
)
async def test_another_algorithm_begins_anew_and_reads_no_state_of_the_one_before(kinds):
    async with memory_bus(declared(kinds[0], 100)) as bus:
        for kind in kinds:
            redeclare(bus, declared(kind, 100))
            permit = await admitted(bus, tokens=70)
            assert await left(bus) == 30
            assert await bus.settle(permit, tokens=60)
            assert await left(bus) == 40


async def test_a_policy_that_comes_back_finds_what_was_used_before_it_left():
    async with memory_bus(declared("gcra", 100)) as bus:
        await admitted(bus, tokens=40)
        bus.unregister("p")
        assert (await bus.check(Call(tokens=1000))).verdicts == ()
        bus.register(declared("gcra", 100))
        assert await left(bus) == 60


@pytest.mark.parametrize("choice", ["scale", "remaining"])
def test_a_log_of_single_requests_cannot_be_scaled_and_says_so(choice):
    with pytest.raises(ConfigError, match=rf"on_change='{choice}': .*\"keep\" or \"reset\""):
        rate(algorithm="sliding_log", on_change=choice)


@pytest.mark.parametrize("real", [90, 130], ids=["within", "beyond"])
async def test_a_lowered_quota_makes_debt_only_of_what_was_beyond_the_limit_of_its_time(real):
    async with memory_bus(quota("p", limit=100, per="1d")) as bus:
        permit = await admitted(bus, tokens=90)
        assert await bus.settle(permit, tokens=real)
        redeclare(bus, quota("p", limit=20, per="1d"))
        await vetoed(bus, tokens=1)
        await retry_is_exact(bus, Call(tokens=1))
        # 30 beyond the limit of 100 take the whole of the next window, and half of the one after.
        await bus.clock.set_us(micros(1_767_225_600 + 2 * 86_400))
        assert await left(bus) == (20 if real == 90 else 10)


async def test_raised_again_a_quota_knows_the_most_that_it_was():
    async with memory_bus(quota("p", limit=100, per="1d")) as bus:
        assert await bus.settle(await admitted(bus, tokens=90))
        redeclare(bus, quota("p", limit=10, per="1d"))
        await vetoed(bus, tokens=1)
        redeclare(bus, quota("p", limit=50, per="1d"))
        await vetoed(bus, tokens=1)
        await bus.clock.advance("1d")
        assert await left(bus) == 50
