"""What admission stamps say of a rate; in whole microseconds, without rounding."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from fractions import Fraction

SECOND = 1_000_000


def fullest_excess(stamps: Iterable[int], per_us: Fraction) -> Fraction:
    """Get the most that any span of time holds beyond what it earns at `per_us` a microsecond."""
    worst = lowest = -per_us * 0
    for count, stamp in enumerate(sorted(stamps)):
        # What a span holds beyond its earnings: from before its first stamp to after its last.
        before = count - per_us * stamp
        lowest = before if count == 0 else min(lowest, before)
        worst = max(worst, before + 1 - lowest)
    return worst


def fullest_span(stamps: Iterable[int], width: int) -> int:
    """Get the most that any span shorter than `width` holds."""
    ordered: Sequence[int] = sorted(stamps)
    first = most = 0
    for last, stamp in enumerate(ordered):
        while stamp - ordered[first] >= width:
            first += 1
        most = max(most, last + 1 - first)
    return most


def by_window(stamps: Iterable[int], width: int) -> Counter[int]:
    """Count what each window holds; windows begin at the multiples of their width."""
    return Counter(stamp // width for stamp in stamps)


def most_at_once(intervals: Iterable[tuple[int, int]]) -> int:
    """Get how many intervals overlap where most do; one that ends as another begins does not."""
    turns = sorted(
        turn for begin, end in intervals for turn in ((begin, 1), (max(begin + 1, end), -1))
    )
    at_once = most = 0
    for _, change in turns:
        at_once += change
        most = max(most, at_once)
    return most
