"""Admissions against a rate: the fullest span of all, in exact arithmetic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Arrival = tuple[int, int]
_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Burst:
    """The span in which admissions came closest to what it allows, or furthest above it."""

    admitted: int = 0
    seconds: float = 0.0
    allowed: float = 0.0
    exceeded: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """What was admitted under one rate limit: in the fullest span, and in the fullest period.

    `period_allowed` is what the limit allows in one period, which is `per` seconds.
    """

    admitted: int
    burst: Burst
    per: float
    period: int
    period_allowed: int

    @property
    def exceeded(self) -> bool:
        """Whether more was admitted than the limit allows, in a span of any length."""
        return self.burst.exceeded or self.period > self.period_allowed


def measure(arrivals: Iterable[Arrival], *, limit: int, per_us: int, burst: int) -> Rate:
    """Get the fullest spans of admissions (microseconds, cost) under limit / per_us and a burst."""
    ordered = sorted(arrivals)
    return Rate(
        sum(cost for _, cost in ordered),
        fullest_burst(ordered, limit=limit, per_us=per_us, burst=burst),
        per_us / _MICROS,
        fullest_period(ordered, per_us),
        burst + limit,
    )


def fullest_burst(ordered: Iterable[Arrival], *, limit: int, per_us: int, burst: int) -> Burst:
    """Get, of all spans [s, t], the one with the most admitted above limit / per_us * (t - s).

    No span may have more than `burst` above it. Of equal ones it is the last. `ordered` by time.
    """
    # In units of 1/per_us of an admission, so that every number is whole.
    level = highest = amount = start = last = 0
    fullest = (0, 0, 0)
    for at, cost in ordered:
        level -= (at - last) * limit
        if level <= 0:
            # A span that began earlier would only be emptier than one that begins here.
            level, amount, start = 0, 0, at
        level += cost * per_us
        amount += cost
        last = at
        if level >= highest:
            highest, fullest = level, (amount, start, at)
    admitted, start, end = fullest
    if not admitted:
        return Burst()
    allowed = burst + Fraction((end - start) * limit, per_us)
    return Burst(admitted, (end - start) / _MICROS, float(allowed), exceeded=admitted > allowed)


def fullest_period(ordered: Iterable[Arrival], width_us: int) -> int:
    """Get the most that was admitted in any span shorter than `width_us`. `ordered` by time."""
    window: deque[Arrival] = deque()
    inside = most = 0
    for at, cost in ordered:
        window.append((at, cost))
        inside += cost
        while window[0][0] <= at - width_us:
            inside -= window.popleft()[1]
        most = max(most, inside)
    return most
