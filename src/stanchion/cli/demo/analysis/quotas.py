"""Real costs against a quota, window by window."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Spent:
    """One admitted call: reserved at `at_us`, settled to `real` between two moments.

    That was after `ended_us`, and by `settled_us` it had been done. `real` is None where nobody
    reported it: then what was reserved counts.
    """

    at_us: int
    reserved: int
    ended_us: int | None = None
    real: int | None = None
    settled_us: int | None = None

    @property
    def counted(self) -> int:
        """What the call cost the quota in the end."""
        return self.reserved if self.real is None else self.real

    def charged(self, end_us: int) -> tuple[int, int]:
        """Get the least and the most that a window which ends at `end_us` was charged for it.

        What is settled after the window changes nothing in it: it keeps what was reserved. Around
        the end nobody but the store knows which it was.
        """
        if self.ended_us is None or self.ended_us >= end_us:
            return self.reserved, self.reserved
        if self.settled_us is not None and self.settled_us < end_us:
            return self.counted, self.counted
        return min(self.reserved, self.counted), max(self.reserved, self.counted)


@dataclass(frozen=True, slots=True)
class Window:
    """What one window was charged: `settled` in the end, `peak` at its fullest moment.

    At the peak some of it was reserved and not settled yet. `least` and `most` are the bounds of
    what the store has counted in the end.
    """

    start_us: int
    calls: int
    settled: int
    peak: int
    least: int
    most: int


def windows(calls: Iterable[Spent], *, per_us: int) -> list[Window]:
    """Get what each window of `per_us` microseconds (from the epoch on) was charged, in order."""
    grouped: defaultdict[int, list[Spent]] = defaultdict(list)
    for call in calls:
        grouped[call.at_us - call.at_us % per_us].append(call)
    return [_window(start, start + per_us, inside) for start, inside in sorted(grouped.items())]


def _window(start_us: int, end_us: int, inside: list[Spent]) -> Window:
    charged = [call.charged(end_us) for call in inside]
    return Window(
        start_us,
        len(inside),
        sum(call.counted for call in inside),
        _peak(inside),
        sum(least for least, _ in charged),
        sum(most for _, most in charged),
    )


def _peak(calls: list[Spent]) -> int:
    # Of what happens in one microsecond, what is given back comes first.
    steps = [(call.at_us, 1, call.reserved) for call in calls]
    steps += [
        (call.ended_us, 0, call.real - call.reserved)
        for call in calls
        if call.ended_us is not None and call.real is not None
    ]
    charged = peak = 0
    for _, _, amount in sorted(steps):
        charged += amount
        peak = max(peak, charged)
    return peak
