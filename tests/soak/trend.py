"""Whether something grows: a straight line through the last two thirds of its samples."""

from __future__ import annotations

from statistics import StatisticsError, linear_regression
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds of samples below which a line says nothing.
SHORTEST = 40.0


class Trend(NamedTuple):
    """By how much the line rises from its first sample to its last, and over how many seconds."""

    growth: float
    span: float
    least: float
    most: float

    @property
    def tells(self) -> bool:
        return self.span >= SHORTEST


def of(samples: Sequence[tuple[float, float]]) -> Trend:
    """Get the trend of (seconds, amount) pairs; least squares, over the last two thirds."""
    last = samples[len(samples) // 3 :]
    if not last:
        return Trend(0, 0, 0, 0)
    times, amounts = zip(*last, strict=True)
    span = times[-1] - times[0]
    try:
        growth = linear_regression(times, amounts).slope * span
    except StatisticsError:
        growth = 0.0
    return Trend(growth, span, min(amounts), max(amounts))
