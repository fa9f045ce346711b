"""Calendar windows: where hours, days, weeks, months and years begin in a time zone."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_MICROS = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unit(StrEnum):
    """The calendar's own units of time."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


def windows_around(now_us: int, unit: Unit, zone: ZoneInfo, anchor_day: int) -> tuple[int, ...]:
    """Get four adjacent windows as start, end, ... in microseconds: last, this, and the next two.

    A day on which clocks change has 23 or 25 hours. Weeks begin on Monday. A month begins on
    `anchor_day`, or on its last day where it has no such day.
    """
    moment = _EPOCH + timedelta(microseconds=now_us)
    if unit is Unit.HOUR:
        starts = _hours(moment, zone)
    else:
        starts = _days(moment.astimezone(zone), unit, zone, anchor_day)
    bounds = [round((start - _EPOCH) / timedelta(microseconds=1)) for start in starts]
    return tuple(bound for pair in pairwise(bounds) for bound in pair)


def _hours(moment: datetime, zone: ZoneInfo) -> list[datetime]:
    local = moment.astimezone(zone)
    since = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    start = moment - since
    return [start + timedelta(hours=hours) for hours in range(-1, 4)]


def _days(local: datetime, unit: Unit, zone: ZoneInfo, anchor_day: int) -> list[datetime]:
    starts = [_start(local, unit, anchor_day, step) for step in range(-1, 4)]
    return [datetime(*start, tzinfo=zone).astimezone(UTC) for start in starts]


def _start(local: datetime, unit: Unit, anchor_day: int, step: int) -> tuple[int, int, int]:
    """Get the date on which the window begins that is `step` after the one of `local`."""
    if unit is Unit.YEAR:
        return local.year + step, 1, 1
    if unit is Unit.MONTH:
        index = local.year * 12 + local.month - 1
        if local.day < _month(index, anchor_day)[2]:
            index -= 1
        return _month(index + step, anchor_day)
    day = local.date()
    if unit is Unit.WEEK:
        day += timedelta(days=7 * step - day.weekday())
    else:
        day += timedelta(days=step)
    return day.year, day.month, day.day


def _month(index: int, anchor_day: int) -> tuple[int, int, int]:
    year, month = divmod(index, 12)
    return year, month + 1, min(anchor_day, calendar.monthrange(year, month + 1)[1])
