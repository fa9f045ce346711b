"""When a quota's window begins and ends: on the calendar of its time zone, or as a duration."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from stanchion.testing import memory_bus
from tests.busses import Call, quota
from tests.policies.limits import EPOCH, admitted, left, micros, retry_is_exact, seen, us

CALENDAR = {
    # Clocks go forward at 02:00 on the 29th of March, and back at 03:00 on the 25th of October.
    "days of 23 h in Berlin": (
        {"per": "day", "timezone": "Europe/Berlin"},
        "2026-03-28T00:00+01:00 2026-03-29T00:00+01:00 2026-03-30T00:00+02:00",
    ),
    "days of 25 h in Berlin": (
        {"per": "day", "timezone": "Europe/Berlin"},
        "2026-10-24T00:00+02:00 2026-10-25T00:00+02:00 2026-10-26T00:00+01:00",
    ),
    "days of 23 h in New York": (
        {"per": "day", "timezone": "America/New_York"},
        "2026-03-07T00:00-05:00 2026-03-08T00:00-05:00 2026-03-09T00:00-04:00",
    ),
    "days of 25 h in New York": (
        {"per": "day", "timezone": "America/New_York"},
        "2026-11-01T00:00-04:00 2026-11-02T00:00-05:00 2026-11-03T00:00-05:00",
    ),
    "days of 24.5 h on Lord Howe": (
        {"per": "day", "timezone": "Australia/Lord_Howe"},
        "2026-04-04T00:00+11:00 2026-04-05T00:00+11:00 2026-04-06T00:00+10:30",
    ),
    "days of 23.5 h on Lord Howe": (
        {"per": "day", "timezone": "Australia/Lord_Howe"},
        "2026-10-04T00:00+10:30 2026-10-05T00:00+11:00 2026-10-06T00:00+11:00",
    ),
    "days of 22 h at Troll": (
        {"per": "day", "timezone": "Antarctica/Troll"},
        "2026-03-29T00:00+00:00 2026-03-30T00:00+02:00 2026-03-31T00:00+02:00",
    ),
    "a day without a midnight in Santiago": (
        {"per": "day", "timezone": "America/Santiago"},
        "2026-09-05T00:00-04:00 2026-09-06T01:00-03:00 2026-09-07T00:00-03:00",
    ),
    "a day with two midnights in Havana": (
        {"per": "day", "timezone": "America/Havana"},
        "2026-10-31T00:00-04:00 2026-11-01T00:00-04:00 2026-11-02T00:00-05:00",
    ),
    "hours in Berlin, one of them twice": (
        {"per": "hour", "timezone": "Europe/Berlin"},
        (
            "2026-10-25T01:00+02:00 2026-10-25T02:00+02:00 2026-10-25T02:00+01:00"
            " 2026-10-25T03:00+01:00"
        ),
    ),
    "hours in Berlin, one of them missing": (
        {"per": "hour", "timezone": "Europe/Berlin"},
        "2026-03-29T01:00+01:00 2026-03-29T03:00+02:00 2026-03-29T04:00+02:00",
    ),
    "hours in Kolkata, off by half of one": (
        {"per": "hour", "timezone": "Asia/Kolkata"},
        "2026-01-01T10:00+05:30 2026-01-01T11:00+05:30 2026-01-01T12:00+05:30",
    ),
    "weeks in Berlin, from Monday": (
        {"per": "week", "timezone": "Europe/Berlin"},
        "2026-03-23T00:00+01:00 2026-03-30T00:00+02:00 2026-04-06T00:00+02:00",
    ),
    "weeks over the end of a year": (
        {"per": "week"},
        "2026-12-21T00:00Z 2026-12-28T00:00Z 2027-01-04T00:00Z",
    ),
    "months in Berlin": (
        {"per": "month", "timezone": "Europe/Berlin"},
        (
            "2026-02-01T00:00+01:00 2026-03-01T00:00+01:00 2026-04-01T00:00+02:00"
            " 2026-05-01T00:00+02:00"
        ),
    ),
    "months from the 31st": (
        {"per": "month", "anchor_day": 31},
        (
            "2025-12-31T00:00Z 2026-01-31T00:00Z 2026-02-28T00:00Z 2026-03-31T00:00Z"
            " 2026-04-30T00:00Z 2026-05-31T00:00Z 2026-06-30T00:00Z 2026-07-31T00:00Z"
        ),
    ),
    "months from the 31st in a leap year": (
        {"per": "month", "anchor_day": 31},
        "2028-01-31T00:00Z 2028-02-29T00:00Z 2028-03-31T00:00Z 2028-04-30T00:00Z",
    ),
    "months from the 29th and 30th": (
        {"per": "month", "anchor_day": 30},
        "2028-01-30T00:00Z 2028-02-29T00:00Z 2028-03-30T00:00Z 2028-04-30T00:00Z",
    ),
    "months from the 15th in New York": (
        {"per": "month", "anchor_day": 15, "timezone": "America/New_York"},
        "2026-02-15T00:00-05:00 2026-03-15T00:00-04:00 2026-04-15T00:00-04:00",
    ),
    "years in Sydney": (
        {"per": "year", "timezone": "Australia/Sydney"},
        "2027-01-01T00:00+11:00 2028-01-01T00:00+11:00 2029-01-01T00:00+11:00",
    ),
    "an hour and a half, since 1970": (
        {"per": "90m"},
        "2026-01-01T00:00Z 2026-01-01T01:30Z 2026-01-01T03:00Z",
    ),
    "ten days, since 1970": (
        {"per": timedelta(days=10)},
        "2026-01-07T00:00Z 2026-01-17T00:00Z 2026-01-27T00:00Z",
    ),
}


@pytest.mark.parametrize(("fields", "bounds"), CALENDAR.values(), ids=CALENDAR)
async def test_a_window_lasts_from_one_bound_to_the_next_and_not_a_microsecond_longer(
    fields, bounds
):
    moments = [us(datetime.fromisoformat(bound)) for bound in bounds.split()]
    async with memory_bus(quota(limit=10, **fields)) as bus:
        for start, end in pairwise(moments):
            await bus.clock.set_us(start)
            assert await left(bus) == 10
            verdict = (await bus.check(Call(tokens=10))).verdicts[0]
            assert (verdict.allowed, verdict.remaining) == (True, 0)
            assert micros(verdict.reset_after) == end - start
            middle = start + (end - start) // 3
            await bus.clock.set_us(middle)
            assert await retry_is_exact(bus, Call(tokens=10)) == end - middle
            await bus.clock.set_us(end - 1)
            assert (await bus.check(Call())).retry_after == 0.000001


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]


def period(unit: str, anchor: int, now: int, zone: ZoneInfo) -> tuple[int, ...]:
    """Get what the calendar on the wall says, down to the unit."""
    local = (EPOCH + timedelta(microseconds=now)).astimezone(zone)
    if unit == "week":
        return tuple(local.isocalendar())[:2]
    if unit == "month":
        tomorrow = local.date() + timedelta(days=1)
        begun = local.day >= anchor or tomorrow.day == 1
        return (local.year * 12 + local.month - (not begun),)
    return {"day": (local.year, local.month, local.day), "year": (local.year,)}[unit]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("unit", "anchor"), [("day", 1), ("week", 1), ("month", 1), ("month", 31), ("year", 1)]
)
async def test_a_window_ends_when_the_calendar_on_the_wall_changes(unit, anchor, zone):
    chance = random.Random(f"{unit} {anchor} {zone}")
    minute = 60 * 1_000_000
    async with memory_bus(quota(per=unit, anchor_day=anchor, timezone=zone)) as bus:
        for _ in range(4):
            now = us(EPOCH) + chance.randrange(56 * 365 * 1440, 70 * 365 * 1440) * minute
            of = period(unit, anchor, now, ZoneInfo(zone))
            low, high = now, now + 367 * 1440 * minute
            while high - low > minute:
                middle = low + (high - low) // minute // 2 * minute
                same = period(unit, anchor, middle, ZoneInfo(zone)) == of
                low, high = (middle, high) if same else (low, middle)
            await bus.clock.set_us(now)
            assert micros((await seen(bus)).reset_after) == high - now


@pytest.mark.parametrize("day", ["2026-04-04T13:00Z", "2026-10-03T13:00Z"])
async def test_hours_hold_where_the_clock_moves_by_half_of_one(day):
    # No window is longer than an hour, and each ends exactly when it says.
    async with memory_bus(quota(limit=1, per="hour", timezone="Australia/Lord_Howe")) as bus:
        now = us(datetime.fromisoformat(day))
        for _ in range(5):
            await bus.clock.set_us(now)
            await admitted(bus)
            wait = await retry_is_exact(bus, Call())
            assert wait in (1_800_000_000, 3_600_000_000)
            now += wait


async def test_a_declaration_may_move_the_window_and_what_was_used_in_it_stays_used():
    async with memory_bus(quota(limit=100, per="hour")) as bus:
        await admitted(bus, tokens=60)
        bus.unregister("tokens")
        bus.register(quota(limit=100, per="day"))
        assert await left(bus) == 40
        assert micros((await seen(bus)).reset_after) == 24 * 3600 * 1_000_000


# ---- windows that slide

PER, SLICES = 3_600_000_000, 12


def rolling_use(charges: list[tuple[int, int]], now: int) -> int:
    """Get 300 millionths of what counts at a moment: all of the window, a share of what leaves."""
    width, used = PER // SLICES, 0
    for at, amount in charges:
        age = now // width - at // width
        share = width if age < SLICES else width - now % width if age == SLICES else 0
        used += amount * share
    return used


@pytest.mark.parametrize("seed", range(2))
async def test_a_rolling_quota_counts_over_the_last_stretch_of_time_exact_to_a_slice(seed):
    chance = random.Random(seed)
    charges: list[tuple[int, int]] = []
    width, limit, vetoes = PER // SLICES, 1000, 0
    policy = quota(limit=limit, per="1h", rolling=True, slices=SLICES, lease="3h")
    async with memory_bus(policy) as bus:
        now = bus.clock.now_us
        for _ in range(25):
            now += chance.randrange(PER // 4)
            await bus.clock.set_us(now)
            cost = chance.randint(1, 600)
            verdict = (await bus.check(Call(tokens=cost))).verdicts[0]
            room = limit * width - rolling_use(charges, now)
            assert verdict.allowed == (cost * width <= room)
            if verdict.allowed:
                charges.append((now, cost))
            else:
                vetoes += 1
                wait = await retry_is_exact(bus, Call(tokens=cost))
                assert wait == micros(verdict.retry_after)
                assert rolling_use(charges, now + wait) <= (limit - cost) * width
                assert rolling_use(charges, now + wait - 1) > (limit - cost) * width
            assert verdict.remaining == limit - -(-rolling_use(charges, now) // width)
            reset = micros(verdict.reset_after)
            assert rolling_use(charges, now + reset) == 0 < rolling_use(charges, now + reset - 1)
    assert vetoes >= 3
