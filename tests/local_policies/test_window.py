"""`WindowPolicy`: open and closed by the clock of a place, also when that clock is changed."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from stanchion import ConfigError, EventBus
from stanchion.policies.window import Freeze, WindowPolicy
from tests.busses import Call

CALL = Call(tenant="acme")
WORK = {"mon-fri": "09:00-17:00", "sat": ("10:00-12:00", "13:00-14:30")}


class Clock:
    def __init__(self, text: str = "2026-06-01T00:00:00+00:00") -> None:
        self.set(text)

    def set(self, moment: str | datetime) -> None:
        self.now = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        assert self.now.tzinfo is not None

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock():
    return Clock()


def window(clock, /, **fields):
    return WindowPolicy(**{"name": "hours", "on": Call, "clock": clock, **fields})


async def asked(policy, clock, moment):
    clock.set(moment)
    return await policy.evaluate(CALL)


# ---- hours


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-06-01T06:59:59.999999+00:00", False),
        ("2026-06-01T07:00:00+00:00", True),
        ("2026-06-01T14:59:59.999999+00:00", True),
        ("2026-06-01T15:00:00+00:00", False),
        ("2026-06-06T09:59:00+00:00", True),
        ("2026-06-06T10:00:00+00:00", False),
        ("2026-06-06T11:00:00+00:00", True),
        ("2026-06-07T09:00:00+00:00", False),
    ],
)
async def test_it_is_open_from_the_first_to_before_the_last_moment(clock, moment, is_open):
    policy = window(clock, hours=WORK, timezone="Europe/Berlin")
    verdict = await asked(policy, clock, moment)
    assert verdict.allowed is is_open
    assert verdict.reason == ("ok" if is_open else "outside_hours")


async def test_it_says_to_the_microsecond_when_it_opens(clock):
    policy = window(clock, hours=WORK, timezone="Europe/Berlin")
    verdict = await asked(policy, clock, "2026-06-05T15:00:00.250000+00:00")
    assert verdict.retry_after == pytest.approx(17 * 3600 - 0.25, abs=1e-6)
    assert verdict.detail == "opens 2026-06-06 10:00:00 Europe/Berlin"
    verdict = await asked(policy, clock, "2026-06-06T12:30:00+00:00")
    assert verdict.retry_after == 18.5 * 3600 + 24 * 3600, "over the Sunday"


async def test_hours_over_midnight_belong_to_the_day_on_which_they_begin(clock):
    policy = window(clock, hours={"fri": "22:00-02:00"})
    answers = {
        text: (await asked(policy, clock, f"2026-06-{text}:00+00:00")).allowed
        for text in ("05T21:59", "05T22:00", "06T01:59", "06T02:00", "05T01:00", "06T22:30")
    }
    assert [text for text, is_open in answers.items() if is_open] == ["05T22:00", "06T01:59"]


async def test_hours_that_touch_are_one_opening(clock):
    policy = window(clock, hours={"daily": "00:00-24:00"})
    for hour in range(0, 24 * 40, 7):
        moment = datetime(2026, 3, 20, tzinfo=UTC) + timedelta(hours=hour)
        assert (await asked(policy, clock, moment)).allowed


@pytest.mark.parametrize(
    ("zone", "hours", "opens", "lasts"),
    [
        # Clocks go forward from 02:00 to 03:00 on 29 March: 09:00 is at 07:00 UTC, not 08:00.
        ("Europe/Berlin", "09:00-17:00", "2026-03-29T07:00:00+00:00", 8.0),
        # 02:30 never comes: it opens when the clock jumps over it.
        ("Europe/Berlin", "02:30-04:00", "2026-03-29T01:00:00+00:00", 1.0),
        # 01:00 to 03:00 has one hour less.
        ("Europe/Berlin", "01:00-03:00", "2026-03-29T00:00:00+00:00", 1.0),
        # Clocks go back from 03:00 on 25 October: from the first 02:15 to the second 02:45.
        ("Europe/Berlin", "02:15-02:45", "2026-10-25T00:15:00+00:00", 1.5),
        ("Europe/Berlin", "01:00-04:00", "2026-10-24T23:00:00+00:00", 4.0),
        # Half an hour forward, on 4 October.
        ("Australia/Lord_Howe", "02:10-03:00", "2026-10-03T15:30:00+00:00", 0.5),
        ("America/New_York", "09:00-17:00", "2026-03-08T13:00:00+00:00", 8.0),
    ],
)
async def test_the_day_on_which_clocks_are_changed_is_right(clock, zone, hours, opens, lasts):
    policy = window(clock, hours={"sun": hours}, timezone=zone)
    start = datetime.fromisoformat(opens)
    end = start + timedelta(hours=lasts)
    instant = timedelta(microseconds=1)
    before = await asked(policy, clock, start - timedelta(hours=20))
    assert before.retry_after == 20 * 3600
    assert not (await asked(policy, clock, start - instant)).allowed
    assert (await asked(policy, clock, start)).allowed
    assert (await asked(policy, clock, end - instant)).allowed
    assert not (await asked(policy, clock, end)).allowed


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"])
async def test_over_two_years_it_agrees_with_the_clock_on_the_wall(clock, zone):
    policy = window(clock, hours=WORK, timezone=zone)
    spans = {day: [(9 * 60, 17 * 60)] for day in range(5)}
    spans[5] = [(600, 720), (780, 870)]
    drawn = random.Random(7)
    for _ in range(1000):
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=drawn.randrange(2 * 31_557_600))
        wall = now.astimezone(ZoneInfo(zone))
        minute = wall.hour * 60 + wall.minute
        is_open = any(start <= minute < end for start, end in spans.get(wall.weekday(), ()))
        verdict = await asked(policy, clock, now)
        assert verdict.allowed is is_open, wall
        if not is_open:
            opens = (now + timedelta(seconds=verdict.retry_after)).astimezone(ZoneInfo(zone))
            minute = opens.hour * 60 + opens.minute
            begins = [start for start, _ in spans.get(opens.weekday(), ())]
            assert (minute in begins, opens.second, opens.microsecond) == (True, 0, 0), opens
            assert timedelta() < opens - wall < timedelta(days=3)


async def test_a_clock_that_is_set_back_is_believed(clock):
    policy = window(clock, hours=WORK)
    assert (await asked(policy, clock, "2026-06-01T10:00:00+00:00")).allowed
    assert not (await asked(policy, clock, "2026-06-01T08:00:00+00:00")).allowed


# ---- freezes


async def test_a_freeze_lasts_to_the_end_of_its_last_day(clock):
    freeze = Freeze(start=date(2026, 12, 24), end=date(2026, 12, 26), reason="holidays")
    policy = window(clock, freezes=[freeze], timezone="Europe/Berlin")
    assert (await asked(policy, clock, "2026-12-23T22:59:59+00:00")).allowed
    verdict = await asked(policy, clock, "2026-12-23T23:00:00+00:00")
    assert (verdict.allowed, verdict.reason) == (False, "freeze")
    assert verdict.detail == "holidays; opens 2026-12-27 00:00:00 Europe/Berlin"
    assert verdict.retry_after == 3 * 86400
    assert not (await asked(policy, clock, "2026-12-26T22:59:59+00:00")).allowed
    assert (await asked(policy, clock, "2026-12-26T23:00:00+00:00")).allowed


async def test_what_opens_after_a_freeze_is_the_next_opening(clock):
    freezes = [
        {"start": "2026-12-24", "end": "2027-01-01", "reason": "year end"},
        {"start": "2027-01-04T08:00", "end": "2027-01-04T12:30", "reason": "deploy"},
    ]
    policy = window(clock, hours=WORK, freezes=freezes)
    verdict = await asked(policy, clock, "2026-12-24T10:00:00+00:00")
    assert verdict.detail == "year end; opens 2027-01-02 10:00:00 UTC", "a Saturday"
    verdict = await asked(policy, clock, "2027-01-03T10:00:00+00:00")
    assert verdict.reason == "outside_hours"
    assert verdict.detail == "opens 2027-01-04 12:30:00 UTC", "its morning is frozen"
    assert (await asked(policy, clock, "2027-01-04T12:30:00+00:00")).allowed


async def test_a_freeze_with_a_zone_of_its_own_and_one_without_an_end(clock):
    freezes = [
        {"start": "2026-06-02T10:00:00+02:00", "end": "2026-06-02T11:00:00+02:00"},
        {"start": "2026-07-04"},
    ]
    policy = window(clock, freezes=freezes, timezone="America/New_York")
    assert not (await asked(policy, clock, "2026-06-02T08:30:00+00:00")).allowed
    assert (await asked(policy, clock, "2026-06-02T09:00:00+00:00")).allowed
    verdict = await asked(policy, clock, "2026-07-04T04:00:00+00:00")
    assert (verdict.allowed, verdict.retry_after) == (False, 86400)


async def test_a_freeze_of_centuries_is_answered_at_once_and_one_for_ever_says_never(clock):
    policy = window(clock, hours=WORK, freezes=[{"start": "2026-01-01", "end": "2999-12-31"}])
    verdict = await asked(policy, clock, "2026-06-01T10:00:00+00:00")
    assert verdict.detail == "freeze; opens 3000-01-01 09:00:00 UTC"
    policy = window(clock, freezes=[{"start": "2026-01-01", "end": "9998-12-31"}])
    verdict = await asked(policy, clock, "2026-06-01T10:00:00+00:00")
    assert (verdict.retry_after, verdict.detail) == (None, "freeze; does not open again")


# ---- on a bus, and declared


async def test_a_veto_carries_what_to_do_until_it_opens(clock):
    policy = window(clock, hours=WORK, on_veto="retry", advice={"queue": "night"})
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        clock.set("2026-06-01T08:59:00+00:00")
        decision = await bus.check(CALL)
        assert (decision.policy, decision.reason) == ("hours", "outside_hours")
        assert (decision.signal, decision.retry_after) == ("retry", 60.0)
        assert decision.advice == {"queue": "night"}
        clock.set("2026-06-01T09:00:00+00:00")
        assert await bus.check(CALL)


async def test_in_shadow_it_reports_and_lets_pass(clock):
    policy = window(clock, hours={"sun": "10:00-11:00"}, mode="shadow")
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        decision = await bus.check(CALL)
        assert decision
        assert (decision.verdicts[0].allowed, decision.verdicts[0].enforced) == (False, False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give hours, freezes or both"),
        ({"hours": {"mon-frey": "09:00-17:00"}}, "'mon-frey'"),
        ({"hours": {"mon": "9-17"}}, "'9-17'"),
        ({"hours": {"mon": "24:00-25:00"}}, "'24:00-25:00'"),
        ({"hours": {"mon": "09:00-09:00"}}, "'09:00-09:00'"),
        ({"hours": WORK, "timezone": "Europe/Atlantis"}, "timezone='Europe/Atlantis'"),
        ({"freezes": [{"start": "2026-13-01"}]}, "freezes[0]: start='2026-13-01'"),
        ({"freezes": [{"start": "2026-06-02", "end": "2026-06-01"}]}, "expected after its start"),
        ({"freezes": [{"start": "2026-06-02", "ends": "2026-06-01"}]}, "freezes"),
        ({"hours": WORK, "on_outage": "local"}, "on_outage"),
        ({"hours": WORK, "on_veto": "proceed"}, "on_veto"),
        ({"hours": WORK, "hour": 1}, "hour: no such field"),
        ({"hours": WORK, "name": "a b"}, "'a b'"),
        ({"hours": WORK, "on": "nonsense"}, "on='nonsense'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(clock, fields, told):
    with pytest.raises(ConfigError) as caught:
        window(clock, **fields)
    assert told in str(caught.value)
