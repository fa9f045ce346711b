"""Eight processes on one limit: never above it, and next to nothing of it left unused.

Everything is counted from the workers' own logs, by the stamps that the server gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from stanchion import Algorithm, RateLimit
from tests.contention.calls import Call, FixedCall, LogCall, SlidingCall
from tests.contention.fleet import Fleet, fleet, now_us
from tests.contention.spans import SECOND, by_window, fullest_excess, fullest_span

if TYPE_CHECKING:
    from tests.servers import RealServer

WORKERS = 8
TASKS = 3
LIMIT = 200
BURST = 50
SLICES = 20
#: Of what a limit allows, the least that is to be admitted while so many press; percent.
USED = 95


@dataclass
class Pressed:
    """What was admitted, and a span through which every worker pressed."""

    stamps: list[int]
    begin: int
    end: int

    @property
    def used(self) -> int:
        return sum(stamp <= self.end for stamp in self.stamps)


async def press(workers: Fleet, until_us: int, *calls: type[Call]) -> list[Pressed]:
    """Have every worker press for each type of call; get what became of each."""
    names = [call.event_type for call in calls]
    answers = await workers.ask("press", until_us=until_us, tasks=TASKS, calls=names)
    return [together(logs) for logs in zip(*answers, strict=True)]


def together(logs: tuple[Any, ...]) -> Pressed:
    assert all(log["admitted"] for log in logs), "every worker gets something"
    assert all(log["checks"] > 2 * len(log["admitted"]) for log in logs), "every worker presses"
    stamps = sorted(stamp for log in logs for stamp in log["admitted"])
    begin, end = min(log["first"] for log in logs), min(log["last"] for log in logs)
    assert begin <= stamps[0]
    return Pressed(stamps, begin, end)


def assert_used(used: int, allowed: Fraction | int, algorithm: str) -> None:
    percent = float(100 * Fraction(used) / allowed)
    print(f"{algorithm}: {percent:.2f} % of what the limit allows was admitted")
    assert USED <= percent <= 100, f"{algorithm}: {percent:.2f} % of what the limit allows"


async def test_gcra_admits_never_more_than_its_curve_and_nearly_all_of_it(valkey: RealServer):
    policy = RateLimit(name="calls", on=Call, limit=LIMIT, per="1s", burst=BURST)
    async with fleet(valkey.url, policy, workers=WORKERS) as workers:
        (pressed,) = await press(workers, now_us(valkey) + 5 * SECOND, Call)
    # In any span of t seconds at most burst + limit * t.
    per_us = Fraction(LIMIT, SECOND)
    excess = fullest_excess(pressed.stamps, per_us)
    print(f"gcra: fullest span holds {float(excess):.2f} beyond limit * t, of {BURST}")
    # And all but one of the burst was had: more cannot be, once somebody has been refused.
    assert BURST - 1 < excess <= BURST
    allowed = BURST + per_us * (pressed.end - pressed.begin)
    assert allowed > BURST + LIMIT * Fraction("4.9"), "they pressed for 5 seconds"
    assert_used(pressed.used, allowed, "gcra")


async def test_the_other_algorithms_keep_to_their_bounds_and_admit_nearly_all_of_them(
    valkey: RealServer,
):
    policies = [
        RateLimit(name=name, on=call, limit=LIMIT, per="1s", algorithm=name)
        for call, name in (
            (LogCall, Algorithm.SLIDING_LOG),
            (FixedCall, Algorithm.FIXED_WINDOW),
            (SlidingCall, Algorithm.SLIDING_WINDOW),
        )
    ]
    async with fleet(valkey.url, *policies, workers=WORKERS) as workers:
        until = now_us(valkey) + 2 * SECOND
        # Amid a window, so that the last one is pressed as well.
        until += SECOND // 2 - until % SECOND
        log, fixed, sliding = await press(workers, until, LogCall, FixedCall, SlidingCall)

    assert fullest_span(log.stamps, SECOND) == LIMIT
    # As much again each time that the first of it falls out.
    rounds = (log.end - log.stamps[0]) // SECOND + 1
    assert rounds >= 2
    assert_used(log.used, rounds * LIMIT, "sliding_log")

    windows = by_window(fixed.stamps, SECOND)
    assert max(windows.values()) == LIMIT
    # Nobody knows how late in the first window they began.
    whole = range(fixed.begin // SECOND + 1, fixed.end // SECOND + 1)
    assert len(whole) >= 2
    used = sum(windows[window] for window in whole)
    assert_used(used, len(whole) * LIMIT, "fixed_window")

    # Counted in slices: exact to one of them.
    assert fullest_span(sliding.stamps, SECOND - SECOND // SLICES) == LIMIT
