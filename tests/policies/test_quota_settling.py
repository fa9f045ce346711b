"""A quota holds an estimate and is settled to the real cost, once, in the window it was held in."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from stanchion import Outcome, Permit
from stanchion.testing import memory_bus
from tests.busses import Call, quota
from tests.policies.limits import (
    admitted,
    left,
    micros,
    retry_is_exact,
    seen,
    two_busses,
    us,
    vetoed,
)

if TYPE_CHECKING:
    from tests.servers import RealServer

#: A fixed window, a calendar window, and one that slides; all of a day, and each with room for 100.
WINDOWS = {
    "fixed": {"limit": 100, "per": "1d"},
    "calendar": {"limit": 100, "per": "day", "timezone": "Europe/Berlin"},
    "rolling": {"limit": 100, "per": "1d", "rolling": True, "slices": 10},
}
each_window = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)


@each_window
async def test_the_estimate_is_held_and_the_real_cost_takes_its_place(window):
    async with memory_bus(quota(**window)) as bus:
        permit = await admitted(bus, tokens=60)
        assert await left(bus) == 40
        await vetoed(bus, tokens=41)
        assert await bus.settle(permit, tokens=25)
        assert await left(bus) == 75


@each_window
async def test_work_that_reports_no_cost_cost_what_was_estimated(window):
    async with memory_bus(quota(**window, unsettled="refund")) as bus:
        assert await bus.settle(await admitted(bus, tokens=60))
        assert await left(bus) == 40
        await bus.clock.advance("20m")
        assert await left(bus) == 40, "and no lease gives it back"


@each_window
@pytest.mark.parametrize("later", [None, "failure", 7])
async def test_a_permit_is_settled_once(window, later):
    async with memory_bus(quota(**window)) as bus:
        permit = await admitted(bus, tokens=60)
        other = await admitted(bus, tokens=10)
        assert await bus.settle(permit, tokens=20)
        costs = {"tokens": later} if isinstance(later, int) else {}
        outcome = Outcome.FAILURE if later == "failure" else Outcome.SUCCESS
        again = await bus.settle(Permit.parse(str(permit)), outcome, **costs)
        assert not again
        assert again.stale == ("tokens",)
        assert await left(bus) == 70
        assert await bus.settle(other, tokens=0)
        assert await left(bus) == 80


async def test_another_process_settles_what_one_was_admitted(server: RealServer):
    async with two_busses(server.url, quota(limit=100)) as (one, two):
        text = str(await admitted(one, tokens=60))
        assert await two.settle(Permit.parse(text), tokens=10)
        assert not await one.settle(Permit.parse(text), tokens=50)
        assert await left(one) == await left(two) == 90


# ---- bound to the window


@pytest.mark.parametrize("window", [WINDOWS["fixed"], WINDOWS["calendar"]], ids=["fixed", "berlin"])
@pytest.mark.parametrize("cost", [0, 90])
async def test_what_is_settled_after_its_window_changes_neither_that_nor_the_next(window, cost):
    async with memory_bus(quota(**window, lease="2d")) as bus:
        late = await admitted(bus, tokens=60)
        await bus.clock.set_us(bus.clock.now_us + micros((await seen(bus)).reset_after))
        await admitted(bus, tokens=30)
        settled = await bus.settle(late, tokens=cost)
        assert settled.stale == ("tokens",)
        assert await left(bus) == 70


async def test_a_refund_in_a_sliding_window_belongs_to_the_slice_that_was_charged():
    async with memory_bus(quota(**WINDOWS["rolling"], lease="2d")) as bus:
        early = await admitted(bus, tokens=60)
        await bus.clock.advance("12h")
        await admitted(bus, tokens=40)
        assert await bus.settle(early, tokens=10)
        # 50 are left now; when the first slice has left, 60: the second admission stays whole.
        assert await left(bus) == 50
        await bus.clock.advance("15h")
        assert await left(bus) == 60
        assert not await bus.settle(early, tokens=0)


async def test_a_settlement_after_its_slice_has_left_the_window_changes_nothing():
    async with memory_bus(quota(**WINDOWS["rolling"], lease="5d")) as bus:
        late = await admitted(bus, tokens=60)
        await bus.clock.advance("27h")
        await admitted(bus, tokens=30)
        assert (await bus.settle(late, tokens=90)).stale == ("tokens",)
        assert await left(bus) == 70


# ---- what nobody settles


@each_window
async def test_what_nobody_settles_stays_charged(window):
    async with memory_bus(quota(**window, lease="10m", unsettled="charge")) as bus:
        permit = await admitted(bus, tokens=60)
        await bus.clock.advance("10m")
        assert await left(bus) == 40
        assert (await bus.settle(permit, tokens=0)).stale == ("tokens",)
        assert await left(bus) == 40


@each_window
async def test_what_nobody_settles_comes_back_when_its_lease_ends_and_not_before(window):
    async with memory_bus(quota(**window, lease="10m", unsettled="refund")) as bus:
        permit = await admitted(bus, tokens=60)
        assert await retry_is_exact(bus, Call(tokens=50)) == 600_000_000
        await bus.clock.advance("10m")
        assert await left(bus) == 100
        assert (await bus.settle(permit, tokens=60)).stale == ("tokens",)
        assert await left(bus) == 100


@each_window
@pytest.mark.parametrize(("unsettled", "rest"), [("charge", 40), ("refund", 100)])
async def test_work_that_fails_without_a_figure_goes_by_the_same_rule(window, unsettled, rest):
    async with memory_bus(quota(**window, unsettled=unsettled)) as bus:
        assert await bus.settle(await admitted(bus, tokens=60), Outcome.FAILURE)
        assert await left(bus) == rest


@each_window
async def test_work_that_fails_with_a_figure_cost_that_figure(window):
    async with memory_bus(quota(**window, unsettled="refund")) as bus:

        async def work() -> None:
            async with bus.guard(Call(tokens=60)) as permit:
                permit.charge(tokens=5)
                permit.charge(tokens=2)
                raise LookupError

        with pytest.raises(LookupError):
            await work()
        assert await left(bus) == 93


async def test_a_lease_that_is_renewed_is_still_settled():
    async with memory_bus(quota(limit=100, lease="10m", unsettled="refund")) as bus:
        permit = await admitted(bus, tokens=60)
        for _ in range(3):
            await bus.clock.advance("9m")
            assert await bus.renew(permit)
        assert await left(bus) == 40
        assert await bus.settle(permit, tokens=1)
        assert await left(bus) == 99


# ---- real cost beyond the limit


@each_window
async def test_cost_beyond_the_limit_is_debt(window):
    async with memory_bus(quota(**window, overage="debt")) as bus:
        first = await admitted(bus, tokens=60)
        second = await admitted(bus, tokens=30)
        assert await bus.settle(first, tokens=120)
        assert await left(bus) == 0
        assert await bus.settle(second, tokens=0)
        assert await left(bus) == 0, "what comes back pays the debt first"
        await vetoed(bus, tokens=1)


async def test_the_next_windows_work_off_the_debt():
    async with memory_bus(quota(limit=100, overage="debt")) as bus:
        assert await bus.settle(await admitted(bus, tokens=60), tokens=250)
        assert await retry_is_exact(bus, Call(tokens=50)) == 2 * 86_400_000_000
        await bus.clock.advance("1d")
        assert await left(bus) == 0, "150 are owed"
        await bus.clock.advance("1d")
        assert await left(bus) == 50, "50 are owed"
        await bus.clock.advance("1d")
        assert await left(bus) == 100


async def test_a_debt_is_worked_off_by_windows_in_which_nobody_asked():
    async with memory_bus(quota(limit=100, overage="debt")) as bus:
        assert await bus.settle(await admitted(bus, tokens=60), tokens=1130)
        await bus.clock.advance("11d")
        assert await left(bus) == 70


@each_window
async def test_or_it_is_clipped_to_what_was_left(window):
    async with memory_bus(quota(**window, overage="clip")) as bus:
        first = await admitted(bus, tokens=60)
        second = await admitted(bus, tokens=30)
        assert await bus.settle(first, tokens=500)
        assert await left(bus) == 0
        assert await bus.settle(second, tokens=10)
        assert await left(bus) == 20, "60 and the 10 that were left, and 10"


async def test_what_was_clipped_does_not_burden_the_next_window():
    async with memory_bus(quota(limit=100, overage="clip")) as bus:
        assert await bus.settle(await admitted(bus, tokens=60), tokens=500)
        await bus.clock.advance("1d")
        assert await left(bus) == 100


# ---- what a window did not use

ROLLING_OVER = quota(limit=100, rollover=150)


async def test_what_is_not_used_is_added_to_the_next_window_up_to_a_cap():
    async with memory_bus(ROLLING_OVER) as bus:
        await vetoed(bus, tokens=101)
        for use, limit in [(30, 100), (10, 170), (250, 250), (0, 100), (100, 200), (200, 200)]:
            verdict = await seen(bus)
            assert (verdict.limit, verdict.remaining) == (limit, limit)
            permit = await admitted(bus, tokens=limit)
            assert await bus.settle(permit, tokens=use)
            await bus.clock.advance("1d")
        assert await left(bus) == 100


async def test_what_is_held_when_the_window_ends_counts_as_used():
    async with memory_bus(quota(limit=100, rollover=150, lease="2d", unsettled="refund")) as bus:
        await admitted(bus, tokens=60)
        await bus.clock.advance("1d")
        assert await left(bus) == 140


BERLIN = ZoneInfo("Europe/Berlin")


def day(number: int) -> datetime:
    """Get the midnight so many days after New Year; in Berlin days have 23 to 25 hours."""
    return datetime(2026, 1, 1, tzinfo=BERLIN) + timedelta(days=number)


def month(number: int) -> datetime:
    return datetime(2026 + number // 12, number % 12 + 1, 1, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("unit", "begins", "idle"),
    [
        # The 87th day is the one of 23 hours, the 297th that of 25.
        ("day", day, [1, 2, 11, 12, 13, 30, 86, 87, 88, 296, 297, 298, 360]),
        ("month", month, [1, 2, 10, 11, 12, 13, 14, 22, 23, 25, 26, 38]),
    ],
    ids=["days", "months"],
)
async def test_every_idle_window_of_the_calendar_adds_its_own_and_no_other(unit, begins, idle):
    policy = quota(limit=100, per=unit, timezone="Europe/Berlin", rollover=1_000_000)
    async with memory_bus(policy) as bus:
        await admitted(bus, tokens=100)
        for windows in idle:
            await bus.clock.set_us(us(begins(windows)))
            assert await left(bus) == 100 * windows
            await bus.clock.set_us(us(begins(windows + 1)) - 1)
            assert await left(bus) == 100 * windows


async def test_what_needs_to_be_saved_up_first_is_told_when_it_will_be():
    async with memory_bus(ROLLING_OVER) as bus:
        assert (await vetoed(bus, tokens=101)).retry_after is None, "nothing was begun to save"
        await bus.settle(await admitted(bus, tokens=100))
        await bus.clock.advance("6h")
        day = 86_400_000_000
        for tokens, days in ((100, 1), (200, 2), (201, 3), (250, 3)):
            assert await retry_is_exact(bus, Call(tokens=tokens)) == days * day - day // 4
        assert (await vetoed(bus, tokens=251)).retry_after is None
