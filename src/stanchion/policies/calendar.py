"""Calendar windows: where hours, days, weeks, months and years begin in a time zone."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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
    """Get four adjacent windows as start, end, ... in microseconds: the last, this, and the next two.

    A day on which clocks change has 23 or 25 hours. Weeks begin on Monday. A month begins on
    `anchor_day`, or on its last day where it has no such day.
    """
    moment = _EPOCH + timedelta(microseconds=now_us)
    if unit is Unit.HOUR:
        starts = _hours(moment, zone)
    else:
        starts = _days(moment.astimezone(zone), unit, zone, anchor_day)
    bounds = [round((start - _EPOCH) / timedelta(microseconds=1)) for start in starts]
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    return tuple(bound for pair in pairs for bound in pair)


def _hours(moment: datetime, zone: ZoneInfo) -> list[datetime]:
    local = moment.astimezone(zone)
    since = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    start = moment - since
    return [start + timedelta(hours=hours) for hours in range(-1, 4)]


def _days(local: datetime, unit: Unit, zone: ZoneInfo, anchor_day: int) -> list[datetime]:
    def month(index: int) -> tuple[int, int, int]:
        year, zero_month = divmod(index, 12)
        last = calendar.monthrange(year, zero_month + 1)[1]
        return year, zero_month + 1, min(anchor_day, last)

    midnight: Callable[[int], datetime]
    if unit is Unit.YEAR:
        midnight = lambda step: _utc(local.year + step, 1, 1, zone)  # noqa: E731
    elif unit is Unit.MONTH:
        index = local.year * 12 + local.month - 1
        if local.day < month(index)[2]:
            index -= 1
        midnight = lambda step: _utc(*month(index + step), zone)  # noqa: E731
    else:
        first = local.date()
        length = 1
        if unit is Unit.WEEK:
            first, length = first - timedelta(days=first.weekday()), 7

        def midnight(step: int) -> datetime:
            day = first + timedelta(days=step * length)
            return _utc(day.year, day.month, day.day, zone)

    return [midnight(step) for step in range(-1, 4)]


def _utc(year: int, month: int, day: int, zone: ZoneInfo) -> datetime:
    return datetime(year, month, day, tzinfo=zone).astimezone(UTC)
