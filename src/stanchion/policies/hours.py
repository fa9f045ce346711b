"""Opening hours and freezes on the clock of a time zone, as spans of real time."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zoneinfo import ZoneInfo

Span = tuple[datetime, datetime]
Minutes = tuple[int, int]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)\s*-\s*([01]\d|2[0-4]):([0-5]\d)")
_ACCEPTED_HOURS: Final = 'expected "09:00-17:00", or "22:00-06:00" into the next day'
_ACCEPTED_DAYS: Final = 'expected "mon", "mon-fri", "mon,wed" or "daily"'
_DAY: Final = 24 * 60
_SECOND: Final = timedelta(seconds=1)


def weekdays(owner: str, text: str) -> tuple[int, ...]:
    """Get the days, Monday being 0, that text such as "mon-fri" or "sat,sun" names.

    Raises:
        ConfigError: it names none.
    """
    if text.strip().lower() == "daily":
        return tuple(range(7))
    found: dict[int, None] = {}
    for part in text.lower().split(","):
        first, _, last = (word.strip() for word in part.partition("-"))
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ConfigError.of(owner, text, _ACCEPTED_DAYS)
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= dict.fromkeys(day % 7 for day in range(start, start + (end - start) % 7 + 1))
    return tuple(found)


def opening(owner: str, text: str) -> Minutes:
    """Get hours as minutes after midnight; those that end the next day end after 24:00.

    Raises:
        ConfigError: it is not of the form "09:00-17:00".
    """
    found = _HOURS.fullmatch(text.strip())
    if found is None:
        raise ConfigError.of(owner, text, _ACCEPTED_HOURS)
    numbers = [int(number) for number in found.groups()]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if start >= _DAY or end > _DAY or start == end:
        raise ConfigError.of(owner, text, _ACCEPTED_HOURS)
    return start, end if end > start else end + _DAY


def moment(day: date, minutes: int, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """Get when the clocks of a zone show a time, as UTC.

    A time that comes twice, where clocks go back, is the first one, or with `last` the second. One
    that never comes, where clocks go forward, is the moment at which they do.
    """
    day += timedelta(days=minutes // _DAY)
    hour, minute = divmod(minutes % _DAY, 60)
    local = datetime.combine(day, time(hour, minute), zone)
    first, second = local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)
    if first <= second:
        return second if last else first
    return _jump(second, first, zone)


def _jump(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Get the moment between two at which a zone's clocks go forward."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def open_spans(
    hours: dict[int, tuple[Minutes, ...]], zone: ZoneInfo, first: date, days: int
) -> Iterator[Span]:
    """Get the spans in which it is open, in order, for so many days; adjacent ones are one."""
    spans = sorted(
        (moment(day, start, zone), moment(day, end, zone, last=True))
        for day in (first + timedelta(days=number) for number in range(days))
        for start, end in hours.get(day.weekday(), ())
    )
    joined: Span | None = None
    for start, end in spans:
        if joined is None:
            joined = start, end
        elif start <= joined[1]:
            joined = joined[0], max(joined[1], end)
        else:
            yield joined
            joined = start, end
    if joined is not None and joined[0] < joined[1]:
        yield joined


def without(spans: Iterable[Span], freezes: Iterable[Span]) -> Iterator[Span]:
    """Get what is left of spans in order when the freezes are cut out of them."""
    cuts = sorted(freezes)
    for span in spans:
        start, end = span
        for cut_start, cut_end in cuts:
            if cut_end <= start or cut_start >= end:
                continue
            if cut_start > start:
                yield start, cut_start
            start = max(start, cut_end)
            if start >= end:
                break
        if start < end:
            yield start, end
