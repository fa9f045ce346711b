"""How many intervals overlap at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def most_at_once(intervals: Iterable[tuple[int, int | None]]) -> int:
    """Get the most [start, end) intervals that overlap at one moment; an end of None is never."""
    steps: list[tuple[int, int]] = []
    for start, end in intervals:
        if end is None:
            steps.append((start, 1))
        elif end > start:
            steps += [(start, 1), (end, -1)]
    running = most = 0
    for _, step in sorted(steps):
        running += step
        most = max(most, running)
    return most
