"""One hot key, 4 processes, units taken ahead: how many decisions a second, and is the limit kept?

With `prefetch` a process takes units ahead in one call and spends them without asking. The first
table is of a limit far above what anybody asks for. The second one is of a limit far below that:
every admission's moment is written down in all processes, and over every span between two of them
no more than burst + rate * span may lie in it, or the run fails.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from contenders import rates
from harness import report
from harness.command import Run, main
from harness.fleet import fleet
from harness.machine import installed
from harness.measure import Results, rotated
from hot_key import opened

from stanchion import EventBus, RateLimit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.fleet import Fleet, Start
    from harness.measure import Figures

PROCESSES = 4
CALLERS = 64
#: About what one process spends in a tenth of a second.
AHEAD = 10_000
RIVALS = (
    rates.Rival("stanchion", partial(rates.stanchion, prefetch=AHEAD), note=f"prefetch={AHEAD:,}"),
    rates.Rival("stanchion, asking", rates.stanchion),
    *(rival for rival in rates.RIVALS if rival.name in {*rates.PEERS, "bare EVALSHA"}),
)

LIMIT = 5_000  # a second, and as many at once
LIMITED_AHEAD = 100
STEADY_AFTER = 1.0  # seconds in which the burst is long spent
POLICY = RateLimit(
    name="limited", on=rates.Call, by="subject", limit=LIMIT, per=1, prefetch=LIMITED_AHEAD
)


def most_over(moments: Sequence[float], burst: int, per_second: float) -> float:
    """Get how many more than burst + rate * span were admitted in the worst of all spans."""
    over = 0.0
    # Of the spans that end with one moment, the worst begins where admissions are furthest behind
    # the rate.
    least = float("inf")
    for number, moment in enumerate(sorted(moments)):
        ahead = number - moment * per_second
        least = min(least, ahead)
        over = max(over, ahead - least + 1 - burst)
    return over


async def admissions(
    url: str, seconds: float, number: int, callers: int, start: Start
) -> tuple[float, list[float]]:
    """Get when it began, and when what was admitted in this process."""
    del number
    moments: list[float] = []
    async with EventBus.from_url(url, policies=[POLICY], deadline=10) as bus:
        await bus.check(rates.Call(subject="warm"))
        await start()
        began = time.monotonic()
        ends = began + seconds

        async def one_after_another() -> None:
            while time.monotonic() < ends:
                decision = await bus.check(rates.Call(subject="hot"))
                if decision.allowed:
                    moments.append(time.monotonic())
                else:
                    # Twice as often as it says: demand is to be there when there is anything.
                    await asyncio.sleep((decision.retry_after or 0) / 2)

        await asyncio.gather(*(one_after_another() for _ in range(callers)))
    return began, moments


def limited(run: Run, processes: Fleet) -> Figures:
    run.server.flush()
    seconds = STEADY_AFTER + run.seconds(4.0)
    taken = processes.each(partial(admissions, run.url, seconds))
    moments = sorted(moment for _, its_moments in taken for moment in its_moments)
    # The processes do not stop in the same moment either.
    steady = min(began for began, _ in taken) + STEADY_AFTER
    ends = min(began for began, _ in taken) + seconds
    spent = sum(steady <= moment < ends for moment in moments)
    over = most_over(moments, LIMIT, LIMIT)
    if over > 0:
        raise AssertionError(f"in some span {over:.0f} more than the limit allows were admitted")
    return {
        "admitted": float(len(moments)),
        "used": spent / (LIMIT * (ends - steady)) * 100,
        "over": over,
        "gap_ms": max(later - earlier for earlier, later in pairwise(moments)) * 1e3,
    }


def measure(run: Run) -> None:
    plenty, scarce = Results(), Results()
    present: list[rates.Rival] = []
    for rival in RIVALS:
        if run.only and rival.name not in run.only:
            continue
        if not installed(rival.needs):
            plenty.left_out.append(f"{rival.name}: {rival.needs} is not installed")
            continue
        if rival.open in {known.open for known in rates.RIVALS}:
            run.server.flush()
            run.complete(rates.prove(rival.open, run.url))
        present.append(rival)
    plenty.rounds = {rival.name: [] for rival in present}
    plenty.how = {rival.name: rival.note for rival in present if rival.note}
    with fleet(PROCESSES, CALLERS, run.loop) as processes:
        for number in range(run.rounds):
            for rival in rotated(present, number):
                run.server.flush()
                taken = processes.call(partial(opened, rival, run.url, "hot"), run.seconds(1.0))
                plenty.rounds[rival.name].append(taken)
            if report.STANCHION in plenty.rounds:
                taken = limited(run, processes)
                scarce.rounds.setdefault(report.STANCHION, []).append(taken)
    columns = [
        report.Column("decisions/s", "rate", ratio=True),
        report.Column("CPU us/decision", "cpu_us", ",.1f", ratio=True),
        report.Column("p50 us", "p50_us", ",.1f"),
        report.Column("p99 us", "p99_us", ",.1f"),
    ]
    title = f"one hot key, {PROCESSES} processes x {CALLERS} callers"
    table = report.tabulate(title, plenty, columns)
    goals = report.beside_best(plenty, rates.PEERS, "decisions a second", 30)
    run.add("plenty", plenty, table, goals)

    if not scarce.rounds:
        return
    columns = [
        report.Column("admitted", "admitted"),
        report.Column("over the limit", "over"),
        report.Column("% of it used", "used", ".1f"),
        report.Column("longest gap ms", "gap_ms", ",.1f"),
    ]
    title = f"{LIMIT:,} a second, prefetch={LIMITED_AHEAD}, {PROCESSES} processes x {CALLERS}"
    table = report.tabulate(title, scarce, columns)
    over = max(taken["over"] for taken in scarce.rounds[report.STANCHION])
    used = scarce.median(report.STANCHION, "used")
    goals = [
        report.Goal("admitted over the limit", over, 0, at_least=False, form=".0f", unit=""),
        report.Goal("of the limit used", used, 95, form=".1f", unit="%"),
    ]
    run.add("scarce", scarce, table, goals)


if __name__ == "__main__":
    main("prefetch", __doc__, measure)
