"""Limits found from recorded traffic, so that they bite: each refuses some of what is asked."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.cli.demo.endpoint import latency
from stanchion.cli.demo.plan import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stanchion.cli.demo.plan import Call
    from stanchion.cli.demo.trace import Trace

    Filter = Callable[[Sequence[Call], int], list[Call]]

# The share of calls that each limit is to let through, of those that the ones before it do. The
# cap is the loosest: on a busy machine calls take longer, and then it is the first to be reached.
KEPT_BY_RATE = 0.8
KEPT_BY_QUOTA = 0.9
KEPT_BY_CAP = 0.97
_BURST = 0.25  # seconds' worth
_OVERHEAD = 0.05  # seconds that a call is in flight beside the answer itself
_BUSY = 20  # calls that a circuit must have seen


@dataclass(frozen=True, slots=True)
class Derived:
    """Limits for a trace, and a line on how each was found."""

    limits: Limits
    reasons: tuple[str, ...]


def derive(trace: Trace) -> Derived:
    """Get limits that bite: each is found from what those before it let through."""
    per = Limits().tokens_per
    everything = len(trace.calls)
    rate = _smallest(trace.calls, within_rate, everything, KEPT_BY_RATE)
    passed = within_rate(trace.calls, rate)
    # What is reserved for one call must fit at all.
    least = max(call.prompt for call in trace.calls) + trace.largest
    most = sum(call.prompt + call.generated for call in passed)
    tokens = max(
        least, _smallest(passed, lambda c, n: within_budget(c, n, per), most, KEPT_BY_QUOTA)
    )
    passed = within_budget(passed, tokens, per)
    in_flight = _smallest(passed, within_cap, len(passed), KEPT_BY_CAP)
    limits = Limits(
        calls=rate,
        calls_burst=burst_of(rate),
        tokens=tokens,
        in_flight=in_flight,
        minimum_calls=_BUSY,
    )
    burst, through = limits.calls_burst, "would let through"
    return Derived(
        limits,
        (
            f"calls      {rate:,} per 1 s, burst {burst:,}: {through} {KEPT_BY_RATE:.0%}",
            f"tokens     {tokens:,} per {per:g} s: {through} {KEPT_BY_QUOTA:.0%} of that",
            f"in-flight  {in_flight:,} at once: {through} {KEPT_BY_CAP:.0%} of that",
        ),
    )


def burst_of(rate: int) -> int:
    """Get the burst that goes with a rate per second."""
    return max(1, round(rate * _BURST))


def within_rate(calls: Sequence[Call], rate: int) -> list[Call]:
    """Get the calls that a limit of so many per second would admit."""
    burst, level, last = burst_of(rate), 0.0, 0.0
    passed: list[Call] = []
    for call in calls:
        level = max(0.0, level - (call.due - last) * rate)
        last = call.due
        if level + 1 <= burst:
            level += 1
            passed.append(call)
    return passed


def within_budget(calls: Sequence[Call], tokens: int, per: float) -> list[Call]:
    """Get the calls that a quota of so many tokens per `per` seconds would admit."""
    window, used = 0, 0
    passed: list[Call] = []
    for call in calls:
        if int(call.due // per) != window:
            window, used = int(call.due // per), 0
        if used + call.prompt + call.generated <= tokens:
            used += call.prompt + call.generated
            passed.append(call)
    return passed


def within_cap(calls: Sequence[Call], limit: int) -> list[Call]:
    """Get the calls that a cap on calls in flight would admit, each as long as its answer takes."""
    ends: list[float] = []
    passed: list[Call] = []
    for call in calls:
        while ends and ends[0] <= call.due:
            heapq.heappop(ends)
        if len(ends) < limit:
            heapq.heappush(ends, call.due + latency(call.generated) + _OVERHEAD)
            passed.append(call)
    return passed


def _smallest(calls: Sequence[Call], admit: Filter, most: int, kept: float) -> int:
    """Get the smallest limit, from 1 to `most`, that keeps enough of these calls."""
    enough = kept * len(calls)
    limits = range(1, most + 1)
    found = bisect_left(limits, enough, key=lambda limit: len(admit(calls, limit)))
    return limits[min(found, len(limits) - 1)]
