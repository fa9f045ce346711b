"""Amounts in a window that slides, counted by slices of time.

A slice is `width` long and begins at a multiple of that. The window is the slice that is filling
and as many before it as were asked for, the oldest only by the share of it that is less than
`count` slices old. What is in one slice is taken to be spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import carried, ceil, ceil_div


@dataclass(frozen=True)
class Slices:
    width: int
    count: int
    cut_at: int
    amounts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def cut(cls, per: int, count: int, now: int, inside: int = 0) -> Slices:
        """Cut a window; what was in another counts as of now."""
        width = ceil_div(per, count)
        return cls(width, count, now, {now // width: inside} if inside else {})

    def filling(self, now: int) -> int:
        return now // self.width

    def share(self, index: int, now: int) -> Fraction:
        """Get how much of a slice is in the window."""
        age = self.filling(now) - index
        if age < self.count:
            return Fraction(1)
        if age == self.count:
            return Fraction(self.width - now % self.width, self.width)
        return Fraction(0)

    def inside(self, now: int) -> Fraction:
        """Get the amount in the window."""
        parts = (amount * self.share(index, now) for index, amount in self.amounts.items())
        return sum(parts, Fraction(0))

    def covers(self, index: int, now: int) -> bool:
        """Whether a slice is one of the window's, at least in part."""
        return 0 <= self.filling(now) - index <= self.count

    def plus(self, index: int, amount: int) -> Slices:
        """Get one with more in a slice, or less, down to nothing."""
        changed = {**self.amounts, index: max(0, self.amounts.get(index, 0) + amount)}
        return Slices(self.width, self.count, self.cut_at, changed)

    def rescaled(self, now: int, on_change: str, was: int, limit: int) -> Slices:
        """Get one that counts what a changed limit is to find used, each slice by one factor."""
        inside = self.inside(now)
        if not inside:
            return self
        factor = carried(on_change, inside, was, limit) / inside
        amounts = {index: ceil(amount * factor) for index, amount in self.amounts.items()}
        return Slices(self.width, self.count, self.cut_at, amounts)

    def gone_at(self, index: int) -> int:
        """Get when the last of a slice leaves."""
        return (index + self.count + 1) * self.width

    def drained_at(self, now: int) -> int:
        """Get when nothing is left, `now` if nothing is in."""
        ends = [self.gone_at(index) for index, amount in self.amounts.items() if amount]
        return max([now, *ends])
