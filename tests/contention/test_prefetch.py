"""Processes that take ahead of one limit: never above it, killed and stopped ones included."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from stanchion import Quota, RateLimit
from tests.busses import calls_of_scripts
from tests.contention.calls import PREFIX, Call, FixedCall, LogCall, SlidingCall
from tests.contention.fleet import fleet
from tests.contention.spans import SECOND
from tests.contention.spender import RECORD
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.contention.fleet import Fleet
    from tests.servers import RealServer

MODULE = "tests.contention.spender"
RATE = 1000
BURST = 500
PREFETCH = 25
WINDOW_US = SECOND // 2
IN_WINDOW = 500
#: Of what a limit allows, the least that is to be admitted while all press.
USED = 0.95

Record = tuple[int, int, int, int]


def policies() -> list[Any]:
    return [
        # The burst fills in half a second, so that units die after an eighth of one.
        RateLimit(
            name="gcra", on=SlidingCall, limit=RATE, per="1s", burst=BURST, prefetch=PREFETCH
        ),
        RateLimit(
            name="fixed",
            on=FixedCall,
            limit=IN_WINDOW,
            per=WINDOW_US / SECOND,
            algorithm="fixed_window",
            prefetch=PREFETCH,
        ),
        Quota(name="quota", on=LogCall, limit=IN_WINDOW, per="1s", prefetch=PREFETCH),
    ]


def records(directory: Path, call: type[Call]) -> list[Record]:
    found: list[Record] = []
    for path in directory.glob(f"*.{call.event_type}"):
        data = path.read_bytes()
        # Of one that was killed, the last may be cut.
        whole = data[: len(data) // RECORD.size * RECORD.size]
        found += cast("Iterable[Record]", RECORD.iter_unpack(whole))
    return found


def most_beyond_the_rate(found: Sequence[Record], per_us: float) -> float:
    """Get the most that any span is certain to hold beyond what it earns.

    A span from a to b is certain to hold an admission that began at a or later and was over by b.
    In order of their ends, each adds one to all spans that begin at its beginning or before; the
    best beginning is at the top of a tree of sums.
    """
    begins = sorted({before for before, *_ in found})
    place = {begin: number for number, begin in enumerate(begins)}
    size = 1 << max(1, len(begins) - 1).bit_length()
    # The best of the leaves below a node, and what all of these have been given there.
    best, added = [float("-inf")] * (2 * size), [0] * (2 * size)
    worst = 0.0
    for before, after, *_ in sorted(found, key=lambda record: record[1]):
        node = size + place[before]
        added[node] += 1
        # A beginning counts from when something that began there is over.
        best[node] = per_us * (before - begins[0]) + added[node]
        while node > 1:
            if node % 2:
                best[node - 1], added[node - 1] = best[node - 1] + 1, added[node - 1] + 1
            node //= 2
            best[node] = max(best[2 * node], best[2 * node + 1]) + added[node]
        worst = max(worst, best[1] - per_us * (after - begins[0]))
    return worst


def test_what_a_span_is_certain_to_hold_is_counted_as_by_trying_all():
    found = [(0, 5, 0, 0), (3, 4, 0, 0), (3, 9, 0, 0), (8, 9, 0, 0), (20, 21, 0, 0), (20, 30, 0, 0)]

    def beyond(begin: int, end: int) -> float:
        inside = sum(begin <= before and after <= end for before, after, *_ in found)
        return inside - 0.25 * (end - begin)

    tried = max(itertools.starmap(beyond, itertools.combinations(range(31), 2)))
    assert most_beyond_the_rate(found, 0.25) == tried == 1.75


def in_windows(found: Sequence[Record], width: int) -> tuple[Counter[int], Counter[int]]:
    """Count what each window is certain to hold, and what it may."""
    certain, possible = Counter[int](), Counter[int]()
    for *_, before, after in found:
        first, last = before // width, after // width
        certain[first] += first == last
        possible.update(range(first, last + 1))
    return certain, possible


async def press(workers: Fleet, server: RealServer, directory: Path, seconds: float) -> float:
    """Have all press on every limit; get how many script calls a decision took."""
    until_us = time.monotonic_ns() // 1000 + round(seconds * SECOND)
    names = [call.event_type for call in (SlidingCall, FixedCall, LogCall)]
    with server.counting() as counted:
        asked = await asyncio.gather(
            *(
                worker.ask(
                    "press", until_us=until_us, tasks=2, calls=names, path=str(directory / str(n))
                )
                for n, worker in enumerate(workers)
            ),
            return_exceptions=True,
        )
    return calls_of_scripts(counted) / sum(count for count in asked if isinstance(count, int))


def assert_never_above(directory: Path) -> None:
    beyond = most_beyond_the_rate(records(directory, SlidingCall), RATE / SECOND)
    print(f"gcra: the fullest span holds {beyond:.1f} beyond its earnings, of {BURST}")
    assert BURST / 2 < beyond <= BURST
    for call, width in ((FixedCall, WINDOW_US), (LogCall, SECOND)):
        certain, _ = in_windows(records(directory, call), width)
        print(f"{call.event_type}: {dict(certain)}")
        assert IN_WINDOW / 2 < max(certain.values()) <= IN_WINDOW


def assert_used(directory: Path) -> None:
    found = sorted(after for _, after, *_ in records(directory, SlidingCall))
    # From when the burst has been had, the rate alone.
    begin, end = found[0] + SECOND // 2, found[-1]
    share = sum(begin <= after <= end for after in found) / (RATE / SECOND * (end - begin))
    print(f"gcra: {100 * share:.1f} % of the rate was admitted")
    assert share >= USED
    for call, width in ((FixedCall, WINDOW_US), (LogCall, SECOND)):
        _, possible = in_windows(records(directory, call), width)
        whole = sorted(possible)[1:-1]
        assert whole
        share = sum(possible[window] for window in whole) / (len(whole) * IN_WINDOW)
        print(f"{call.event_type}: {100 * share:.1f} % of {len(whole)} windows was admitted")
        assert share >= USED


@pytest.mark.parametrize("count", [1, 4])
async def test_processes_that_take_ahead_use_all_of_a_limit_and_never_more(
    valkey: RealServer, tmp_path: Path, count: int
):
    async with fleet(valkey.url, *policies(), workers=count, module=MODULE) as workers:
        calls = await press(workers, valkey, tmp_path, 2.6)
    print(f"{calls:.3f} script calls a decision")
    assert calls < 0.5
    assert_never_above(tmp_path)
    assert_used(tmp_path)


async def test_a_process_that_is_killed_or_stopped_for_a_while_makes_it_no_more(
    valkey: RealServer, tmp_path: Path
):
    async with fleet(valkey.url, *policies(), workers=5, module=MODULE) as workers:
        pressing = asyncio.create_task(press(workers, valkey, tmp_path, 2.6))
        await asyncio.sleep(0.7)
        await workers[0].kill()
        workers[1].stop()
        await asyncio.sleep(0.2)
        workers[2].stop()
        # Longer than units live, and into another window.
        await asyncio.sleep(0.6)
        workers[1].go_on()
        workers[2].go_on()
        await pressing
        workers[:] = workers[1:]
    assert_never_above(tmp_path)


async def test_what_a_killed_process_had_taken_stays_charged_and_what_others_had_comes_back(
    valkey: RealServer,
):
    policy = Quota(name="quota", on=Call, limit=10**6, per="3650d", prefetch=PREFETCH)

    def state() -> tuple[int, int]:
        fields = cast("dict[str, str]", valkey.control.hgetall(f"{PREFIX}quota:quota:-"))
        return int(fields["used"]), int(fields["held"])

    async with fleet(valkey.url, policy, workers=3, module=MODULE) as workers:
        await workers.ask("spend", count=7)
        assert state() == (0, 3 * PREFETCH)
        await workers[0].kill()
        workers[:] = workers[1:]
        await workers[0].end()
        assert state() == (7, 2 * PREFETCH)
        await eventually(lambda: state() == (14, PREFETCH), 2.5)
