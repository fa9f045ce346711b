"""1,000 callers in 4 processes: does one hot key cost more than a key for each caller?"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from contenders import rates
from harness import report
from harness.command import Run, main
from harness.fleet import fleet
from harness.machine import installed
from harness.measure import Results, rotated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PROCESSES = 4
CALLERS = 250
MEASURED = ("stanchion", "limits", "throttled-py", "bare EVALSHA")


@asynccontextmanager
async def opened(
    rival: rates.Rival, url: str, spread: str, number: int, callers: int
) -> AsyncIterator[list[Callable[[], Awaitable[bool]]]]:
    async with rival.open(url, callers, rates.PLENTY, 1) as ask:
        subjects = [f"{number}.{n}" if spread == "spread" else "hot" for n in range(callers)]
        yield [partial(ask, subject) for subject in subjects]


def measure(run: Run) -> None:
    results = Results()
    variants: list[tuple[str, rates.Rival, str]] = []
    for rival in rates.RIVALS:
        if rival.name not in MEASURED or (run.only and rival.name not in run.only):
            continue
        if not installed(rival.needs):
            results.left_out.append(f"{rival.name}: {rival.needs} is not installed")
            continue
        run.server.flush()
        run.complete(rates.prove(rival.open, run.url))
        variants += [(f"{rival.name}, {where}", rival, where) for where in ("spread", "hot")]
    results.rounds = {name: [] for name, _, _ in variants}
    with fleet(PROCESSES, CALLERS, run.loop) as processes:
        for number in range(run.rounds):
            for name, rival, where in rotated(variants, number):
                run.server.flush()
                opener = partial(opened, rival, run.url, where)
                taken = processes.call(opener, run.seconds(1.0))
                results.rounds[name].append(taken)
    for taken in [figures for rounds in results.rounds.values() for figures in rounds]:
        taken["p99_p50"] = taken["p99_us"] / taken["p50_us"]
    columns = [
        report.Column("decisions/s", "rate"),
        report.Column("p50 us", "p50_us"),
        report.Column("p99 us", "p99_us"),
        report.Column("p99/p50", "p99_p50", ".1f"),
        report.Column("CPU us/decision", "cpu_us", ",.1f"),
    ]
    table = report.tabulate(f"{PROCESSES} processes x {CALLERS} callers", results, columns)
    for rival in {rival.name: rival for _, rival, _ in variants}:
        hot = results.median(f"{rival}, hot", "rate")
        spread = results.median(f"{rival}, spread", "rate")
        table.notes.append(f"{rival}: hot is {hot / spread:.0%} of spread")
    goals: list[report.Goal] = []
    if "stanchion, hot" in results.rounds:
        pair = ("stanchion, hot", "stanchion, spread")
        what = "decisions a second on one hot key, of those on spread keys"
        goals = report.ratio_goal(results, pair, "rate", what, 80, percent=True)
        tail = results.median("stanchion, hot", "p99_p50")
        goals.append(report.Goal("p99 on one hot key, of its p50", tail, 3, at_least=False))
    run.add("processes_4", results, table, goals)


if __name__ == "__main__":
    main("hot_key", __doc__, measure)
