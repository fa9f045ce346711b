"""Whether what was admitted under one policy stays within what that policy states.

Each takes (moment in microseconds, weight) pairs in order of time, all of one subject, and gets how
much of the limit was reached at most, as (amount, limit): above the limit, it was exceeded.
"""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Admission = tuple[int, int]
Reached = tuple[float, int]


def gcra(admitted: Iterable[Admission], limit: int, per: int, burst: int) -> Reached:
    """In any span of t: burst + limit * t / per."""
    level, last, most = Fraction(0), 0, Fraction(0)
    for at, weight in admitted:
        level = max(Fraction(0), level - Fraction((at - last) * limit, per)) + weight
        last, most = at, max(most, level)
    return float(most), burst


def fixed_window(admitted: Iterable[Admission], limit: int, per: int) -> Reached:
    """Between two multiples of `per`: the limit."""
    windows = Counter[int]()
    for at, weight in admitted:
        windows[at // per] += weight
    return max(windows.values(), default=0), limit


def sliding_log(admitted: Iterable[Admission], limit: int, per: int) -> Reached:
    """In any `per`: the limit, exactly."""
    window: deque[Admission] = deque()
    used = most = 0
    for at, weight in admitted:
        while window and window[0][0] <= at - per:
            used -= window.popleft()[1]
        window.append((at, weight))
        used += weight
        most = max(most, used)
    return most, limit


def sliced(admitted: Sequence[Admission], limit: int, per: int, slices: int) -> Reached:
    """In any `slices` whole slices next to each other: the limit."""
    width = per // slices
    buckets = Counter[int]()
    for at, weight in admitted:
        buckets[at // width] += weight
    most = 0
    for last in buckets:
        most = max(most, sum(buckets[last - back] for back in range(slices)))
    return most, limit


def overlap(spans: Iterable[tuple[int, int, int]], limit: int) -> Reached:
    """Held at one moment: the limit. Spans are (from, to, weight)."""
    turns: list[tuple[int, int]] = []
    for begins, ends, weight in spans:
        if ends > begins:
            turns += [(begins, weight), (ends, -weight)]
    held = most = 0
    # What ends at a moment has made room for what begins at it.
    for _, weight in sorted(turns):
        held += weight
        most = max(most, held)
    return most, limit
