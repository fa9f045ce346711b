"""A provider's own figures tighten the shared state, and never loosen it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from stanchion import ConfigError, Event
from stanchion.testing import memory_bus
from tests.busses import Call, breaker, quota, rate, slots
from tests.policies.limits import (
    SECOND,
    admitted,
    is_admitted_at,
    left,
    micros,
    redeclare,
    seen,
    two_busses,
    vetoed,
)


def tokens(kind: str, **fields: Any) -> Any:
    """Make a limit of 100 tokens an hour."""
    given: dict[str, Any] = {"limit": 100, "per": "1h", "cost": "tokens", **fields}
    match kind:
        case "quota":
            return quota("p", **given)
        case "calendar":
            return quota("p", **{**given, "per": "month", "timezone": "Asia/Kolkata"})
        case "rolling":
            return quota("p", rolling=True, **given)
        case _:
            return rate("p", algorithm=kind, **given)


RATES = ["gcra", "sliding_window", "sliding_log", "fixed_window"]
KINDS = [*RATES, "quota", "calendar", "rolling"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_at_most_what_the_provider_has_left_is_left(kind):
    told = [(0, 30, 30), (0, 0, 0), (50, 30, 30), (80, 30, 20), (0, 100, 100), (20, 10**9, 80)]
    async with memory_bus(tokens(kind)) as bus:
        for used, remaining, rest in told:
            await bus.reset("p")
            if used:
                await bus.settle(await admitted(bus, tokens=used))
            assert await bus.sync("p", remaining=remaining) is (rest < 100 - used)
            assert await left(bus) == rest
            await vetoed(bus, tokens=rest + 1)
            await admitted(bus, tokens=rest)


@each_kind
async def test_nothing_that_a_provider_may_say_loosens_anything(kind):
    figures = [
        {},
        {"remaining": 100},
        {"reset_after": 0},
        {"retry_after": 0},
        {"remaining": 50, "reset_after": 0.000001, "retry_after": 0},
        {"remaining": 2**53 - 1},
    ]
    async with memory_bus(tokens(kind)) as bus:
        permit = await admitted(bus, tokens=100)
        before = (await vetoed(bus, tokens=1)).verdicts
        for figure in figures:
            assert await bus.sync("p", **figure) is False
        assert (await vetoed(bus, tokens=1)).verdicts == before
        assert await bus.settle(permit, tokens=100)


@each_kind
async def test_what_a_provider_took_away_is_gone_when_its_window_is(kind):
    async with memory_bus(tokens(kind)) as bus:
        assert await bus.sync("p", remaining=0)
        assert await left(bus) == 0
        reset = (await seen(bus)).reset_after
        assert reset is not None
        await bus.clock.advance(reset)
        assert await left(bus) == 100


@each_kind
async def test_what_was_admitted_is_settled_on_top_of_it(kind):
    async with memory_bus(tokens(kind)) as bus:
        permit = await admitted(bus, tokens=20)
        assert await bus.sync("p", remaining=50)
        assert await bus.settle(permit, tokens=30)
        assert await left(bus) == 40


# ---- what only a bucket can hold


async def test_a_bucket_is_full_again_no_sooner_than_the_provider():
    async with memory_bus(tokens("gcra")) as bus:
        # Of 100 an hour, 90 left are full again after six minutes; the provider says a quarter.
        assert await bus.sync("p", remaining=90, reset_after=900)
        assert micros((await seen(bus)).reset_after) == 900 * SECOND
        assert await left(bus) == 75
        assert not await bus.sync("p", remaining=90, reset_after=899)
        assert not await bus.sync("p", reset_after=timedelta(minutes=15).total_seconds())
        assert await bus.sync("p", reset_after=7200)
        assert micros((await seen(bus)).reset_after) == 3600 * SECOND, "from nothing to full"
        assert await left(bus) == 0


async def test_a_bucket_admits_nothing_before_the_provider_does():
    async with memory_bus(tokens("gcra")) as bus:
        now = bus.clock.now_us
        assert await bus.sync("p", remaining=50, retry_after=120)
        assert (await vetoed(bus, tokens=1)).retry_after == 120
        assert not await is_admitted_at(bus, now + 120 * SECOND - 1, Call())
        assert await is_admitted_at(bus, now + 120 * SECOND, Call())


@pytest.mark.parametrize("kind", ["sliding_window", "sliding_log", "fixed_window"])
async def test_other_rates_have_no_room_left_where_a_provider_refuses(kind):
    async with memory_bus(tokens(kind)) as bus:
        assert await bus.sync("p", remaining=50, retry_after=1)
        assert await left(bus) == 0


@pytest.mark.parametrize("kind", ["quota", "calendar", "rolling"])
async def test_a_budget_is_not_used_up_because_a_provider_asks_for_a_pause(kind):
    async with memory_bus(tokens(kind)) as bus:
        assert not await bus.sync("p", retry_after=1)
        assert await left(bus) == 100


# ---- whose state it is


@each_kind
async def test_it_is_one_subjects_state_and_every_process_sees_it(kind, valkey):
    async with two_busses(valkey.url, tokens(kind, by="tenant")) as (one, two):
        assert await one.sync("p", remaining=5, tenant="a")
        assert await left(two, Call(tenant="a", tokens=0)) == 5
        assert await left(two, Call(tenant="b", tokens=0)) == 100
        assert not await two.sync("p", remaining=5, tenant="a")


class Planned(Event, type="limits_sync:planned"):
    """A call of somebody who has a plan."""

    tenant: str
    plan: str
    tokens: int = 1


def planned(kind: str, by: tuple[str, ...] = ("tenant",), **fields: Any) -> Any:
    limit = {"pro": 600, "free": 60, "*": 30}
    return tokens(kind, on=Planned, by=by, limit=limit, limit_by="plan", **fields)


@each_kind
async def test_a_subject_is_tightened_under_the_limit_that_it_has(kind):
    event = Planned(tenant="a", plan="pro", tokens=0)
    async with memory_bus(planned(kind, on_change="reset")) as bus:
        await admitted(bus, Planned(tenant="a", plan="pro", tokens=200))
        assert not await bus.sync("p", remaining=400, tenant="a")
        assert await left(bus, event) == 400
        assert await bus.sync("p", remaining=100, tenant="a")
        assert await left(bus, event) == 100


async def test_a_subject_that_tells_its_plan_needs_no_state_for_that():
    async with memory_bus(planned("quota", by=("plan", "tenant"))) as bus:
        assert await bus.sync("p", remaining=100, tenant="a", plan="pro")
        assert await left(bus, Planned(tenant="a", plan="pro", tokens=0)) == 100
        assert not await bus.sync("p", remaining=100, tenant="b", plan="other")


async def test_a_limit_of_ones_own_is_the_one_that_is_tightened():
    async with memory_bus(tokens("quota", by="tenant")) as bus:
        await bus.override("p", 1000, tenant="a")
        assert await bus.sync("p", remaining=700, tenant="a")
        assert await left(bus, Call(tenant="a", tokens=0)) == 700


async def test_a_limit_just_declared_anew_is_the_one_that_is_tightened():
    async with memory_bus(tokens("gcra")) as bus:
        await admitted(bus, tokens=10)
        redeclare(bus, tokens("gcra", limit=50))
        assert await bus.sync("p", remaining=30)
        assert await left(bus) == 30


# ---- what it refuses

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (rate("p"), {"remaining": -1}, r"'remaining' is -1; expected a whole number from 0"),
    (rate("p"), {"remaining": 1.5}, r"'remaining' is 1.5; expected a whole number"),
    (rate("p"), {"remaining": True}, r"'remaining' is True; expected a whole number"),
    (rate("p"), {"reset_after": -1}, r"reset_after=-1: expected between 1 microsecond and 3660"),
    (rate("p"), {"reset_after": float("nan")}, r"reset_after=nan"),
    (rate("p"), {"retry_after": "soon"}, r"retry_after='soon': expected a timedelta, seconds"),
    (rate("p"), {"tenant": "a"}, r"RateLimit 'p': by=.*'tenant'"),
    (rate("p", by="tenant"), {}, r"counts by \('tenant',\): give \['tenant'\] too"),
    (rate("other"), {}, r"policy name='p': expected one of \['other'\]"),
    (slots("p"), {}, r"policy name='p': expected a RateLimit or a Quota"),
    (breaker("p"), {}, r"policy name='p': expected a policy with a limit"),
]


@pytest.mark.parametrize(("policy", "figures", "text"), REFUSED, ids=[text for *_, text in REFUSED])
async def test_what_cannot_be_meant_is_refused_and_changes_nothing(policy, figures, text):
    async with memory_bus(policy) as bus:
        with pytest.raises(ConfigError, match=text):
            await bus.sync("p", **figures)
        assert [state async for state in bus.inspect()] == []
