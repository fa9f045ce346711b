"""Defects of budgets, reservations and calendars that users have met elsewhere.

Covered elsewhere in full:
- many kinds of calendar windows against a model: tests/properties
- a settlement whose reply was lost and that is sent again (stella#1210: who was refunded had been
  forgotten): tests/faults/test_bad_network.py
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from stanchion import ConfigError, Event, Outcome
from stanchion.testing import memory_bus
from tests.busses import Call, quota, rate, snapshot
from tests.faults.proxy import Proxy
from tests.regressions.looking import fields, lifetimes, only, scripts_sent
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion.testing import TestBus
    from tests.busses import Buses
    from tests.faults.proxy import Link
    from tests.servers import RealServer


class Prompt(Event, type="regressions:prompt"):
    """An event whose cost is guessed where nobody says it, and whose caller may say too little."""

    max_tokens: int = 1024
    spent: int = 0


async def used(bus: TestBus, key: str = "quota:tokens:-") -> tuple[int, int]:
    """Get what is settled and what is held in the window that is stored."""
    state = await fields(bus, key)
    return int(state["used"]), int(state["held"])


async def at(bus: TestBus, *moment: int, zone: str = "UTC") -> None:
    when = datetime(*moment, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    await bus.clock.set_us(round(when.timestamp()) * 1_000_000)


# ---- estimates


async def test_a_default_estimate_above_the_limit_does_not_refuse_every_call(store_url: str):
    """litellm#28805: the default estimate was above the limit: every request got a 429."""
    policies = [
        quota(on=Prompt, limit=300, cost="max_tokens"),
        rate("minute", on=Prompt, limit=500, cost="max_tokens"),
    ]
    async with memory_bus(*policies, url=store_url) as bus:
        admitted = await bus.check(Prompt())
        assert [verdict.remaining for verdict in admitted.verdicts] == [0, 200]
        assert admitted.permit is not None
        assert await bus.settle(admitted.permit, max_tokens=100)
        # What a caller has said is never made less, be it the default.
        assert (await bus.check(Prompt(max_tokens=1024))).reason == "cost_above_limit"
        assert await bus.check(Prompt(max_tokens=200))


async def test_a_cost_declared_too_low_is_made_good_by_the_next_call(store_url: str):
    """litellm#34223: max_tokens=1 was reserved, and what was really used went past the limit."""
    policy = quota(on=Prompt, limit=1000, per="1h", cost="max_tokens")
    async with memory_bus(policy, url=store_url) as bus:
        permit = await bus.admit(Prompt(max_tokens=1))
        assert await bus.settle(permit, max_tokens=2500)
        refused = only(await bus.check(Prompt(max_tokens=1)))
        assert (refused.reason, refused.remaining) == ("quota_exhausted", 0)
        assert refused.retry_after == 2 * 3600  # 2500 is two windows and a half
        await bus.clock.advance("1h")
        assert not await bus.check(Prompt(max_tokens=1))
        await bus.clock.advance("1h")
        assert only(await bus.check(Prompt(max_tokens=1))).remaining == 499


# ---- refunds


@pytest.mark.parametrize(
    "policy",
    [quota(per="1m"), quota(per="hour"), quota(per="1m", rolling=True)],
    ids=["fixed", "calendar", "rolling"],
)
async def test_a_refund_in_the_next_window_makes_nothing_negative(store_url: str, policy):
    """agentclash#1217, Instawork/llm-proxy#40: a late refund made the new counter negative."""
    async with memory_bus(policy, url=store_url) as bus:
        late = [await bus.admit(Call(tokens=400)) for _ in range(2)]
        await bus.clock.advance("62m")
        fresh = await bus.check(Call(tokens=300))
        assert only(fresh).remaining == 700
        for permit in late:
            assert not await bus.settle(permit, tokens=0)
            assert not await bus.settle(permit, Outcome.FAILURE)
        assert only(await bus.peek(Call(tokens=0))).remaining == 700


async def test_a_refund_after_the_key_has_gone_makes_no_key(store_url: str):
    """hono-rate-limiter#67: DECR on an expired key made one of -1 that never ends."""
    policies = [quota(), rate(cost="tokens"), quota("rolling", per="1h", rolling=True)]
    async with memory_bus(*policies, url=store_url) as bus:
        permit = await bus.admit(Call(tokens=3))
        for policy in policies:
            await bus.reset(policy.name)
        assert await lifetimes(bus) == {}
        assert set((await bus.settle(permit, tokens=1)).stale) == {"tokens", "calls", "rolling"}
        assert await lifetimes(bus) == {}


async def test_a_refund_is_made_once(store_url: str):
    """stella#1210: by whom a refund had been asked for was forgotten, and it was made again."""
    async with memory_bus(quota(), rate(cost="tokens", limit=1000), url=store_url) as bus:
        await bus.admit(Call(tokens=500))
        permit = await bus.admit(Call(tokens=500))
        answers = await asyncio.gather(*(bus.settle(permit, tokens=0) for _ in range(5)))
        assert sum(map(bool, answers)) == 1
        left = [verdict.remaining for verdict in (await bus.peek(Call(tokens=0))).verdicts]
        assert left == [500, 500]


# ---- reservations that nobody settles


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("unsettled", ["refund", "charge"])
async def test_a_reservation_that_nobody_settles_ends_by_the_declared_rule(
    store_url: str, unsettled: str, rolling: bool
):
    """litellm#27639: leaked reservations filled the budget: BudgetExceeded, with nothing spent."""
    policy = quota(per="1d", lease="60s", unsettled=unsettled, rolling=rolling)
    async with memory_bus(policy, url=store_url) as bus:
        for _ in range(10):
            assert await bus.check(Call(tokens=100))
        assert (await bus.check(Call())).reason == "quota_exhausted"
        await bus.clock.advance(60)
        again = await bus.check(Call(tokens=1000))
        assert bool(again) == (unsettled == "refund")


async def test_what_a_lost_reply_reserved_comes_back(valkey: RealServer):
    """litellm#30460: spend counters grew by each call that Redis answered too late."""
    policy = quota(lease="300ms", unsettled="refund", per="1h")

    def lose(link: Link, data: bytes) -> bytes:
        nonlocal sent
        sent += scripts_sent(data)
        link.mute = True
        return data

    sent = 0
    async with Proxy(valkey.port) as proxy, memory_bus(policy, url=proxy.url) as bus:
        permit = await bus.admit(Call(tokens=100))
        await bus.settle(permit, tokens=100)
        proxy.on_request = lose
        assert (await bus.check(Call(tokens=900))).reason == "store_unavailable"
        assert sent == 1
        proxy.heal()
        await eventually(lambda: bus.peek(Call(tokens=0)))
        # It was charged, and nobody holds it.
        assert await used(bus) == (100, 900)
        await bus.clock.advance(0.3)
        assert only(await bus.check(Call(tokens=900))).remaining == 0


async def test_spend_at_the_turn_of_a_window_is_counted_exactly(open_shared: Buses):
    """litellm#34733: two resets of one window at once lost what was spent between them."""
    policy = quota(limit=10**6, per="200ms", overage="debt")
    buses = [await open_shared(policy, deadline=5) for _ in range(3)]
    windows: dict[int, list[int]] = {}
    for _ in range(15):
        decisions = await asyncio.gather(
            *(bus.check(Call(tokens=7)) for _ in range(10) for bus in buses)
        )
        for decision in decisions:
            remaining = only(decision).remaining
            assert decision.permit is not None
            assert remaining is not None
            window = decision.permit.admitted_us // 200_000
            windows.setdefault(window, []).append(10**6 - remaining)
    assert sum(map(len, windows.values())) == 15 * 30
    for counted in windows.values():
        assert sorted(counted) == [7 * number for number in range(1, len(counted) + 1)]


# ---- money


async def test_money_is_counted_to_the_millionth():
    """INCRBYFLOAT drifts: ten times 0.1 is not 1."""
    policy = quota("money", on=Prompt, limit=1_000_000, cost="spent")
    async with memory_bus(policy) as bus:
        for _ in range(10):
            permit = await bus.admit(Prompt(spent=99_999))
            await bus.settle(permit, spent=100_000)
        assert await used(bus, "quota:money:-") == (1_000_000, 0)
        assert not await bus.check(Prompt(spent=1))
        with pytest.raises(ConfigError, match="whole number"):
            await bus.settle(permit, spent=0.1)  # type: ignore[arg-type]


# ---- calendars


async def test_a_day_ends_at_local_midnight_also_when_clocks_change():
    """TokenHub#335: budgets of a day were reset at midnight UTC, or after 24 hours."""
    policy = quota(limit=1, per="day", timezone="Europe/Berlin")
    async with memory_bus(policy) as bus:
        for day, hours in ((28, 24), (29, 23), (30, 24)):  # 29 March 2026 has no hour from 2 to 3
            await at(bus, 2026, 3, day, zone="Europe/Berlin")
            assert await bus.check(Call()), day
            assert (await bus.check(Call())).retry_after == hours * 3600
        await at(bus, 2026, 10, 25, zone="Europe/Berlin")
        assert await bus.check(Call())
        assert (await bus.check(Call())).retry_after == 25 * 3600


async def test_months_are_the_calendars_and_a_late_anchor_is_clamped():
    """ansvisor#500, epam/ai-dial-core#1951: months of 30 days, and what is anchored to the 31st."""
    policies = [
        quota("calendar", limit=1, per="month"),
        quota("billing", limit=1, per="month", anchor_day=31),
    ]
    begins = [(2026, 1, 31), (2026, 2, 28), (2026, 3, 31), (2026, 4, 30), (2026, 5, 31)]
    async with memory_bus(*policies) as bus:
        for number, (begin, then) in enumerate(pairwise(begins)):
            await at(bus, *begin)
            first, second = (await bus.check(Call())), (await bus.check(Call()))
            days = (date(*then) - date(*begin)).days
            calendar, billing = second.verdicts
            assert (bool(first), billing.retry_after) == (True, days * 86400), number
            turn = date(begin[0], begin[1] + 1, 1) - date(*begin)
            assert calendar.retry_after == turn.total_seconds()


async def test_a_week_can_be_declared_and_begins_on_monday():
    """Gubernator's calendars know no weeks."""
    async with memory_bus(quota(limit=1, per="week", timezone="Asia/Tokyo")) as bus:
        await at(bus, 2026, 1, 4, 23, zone="Asia/Tokyo")  # a Sunday
        assert await bus.check(Call())
        assert (await bus.check(Call())).retry_after == 3600
        await bus.clock.advance("1h")
        assert await bus.check(Call())
        assert (await bus.check(Call())).retry_after == 7 * 86400


@pytest.mark.parametrize("kind", ["fixed", "rolling"])
async def test_a_huge_real_cost_is_a_debt_that_can_be_read_and_forgiven(store_url: str, kind: str):
    """upstash#156: no cost that somebody reports may make a state that nobody can use again."""
    policy = quota(limit=10, per="1h", rolling=kind == "rolling")
    async with memory_bus(policy, url=store_url) as bus:
        permits = [await bus.admit(Call()) for _ in range(3)]
        for permit in permits:
            assert await bus.settle(permit, tokens=2**53 - 1)
        refused = only(await bus.check(Call()))
        assert refused.reason == "quota_exhausted"
        assert refused.retry_after is not None
        assert all(ttl > 0 for ttl in (await lifetimes(bus)).values())
        before = await snapshot(bus, "stanchion:{test}:*")
        assert before
        await bus.reset("tokens")
        assert only(await bus.check(Call())).remaining == 9
