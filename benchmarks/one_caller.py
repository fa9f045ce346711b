"""One rate limit, one caller: how long does a decision take when nobody else asks?"""

from __future__ import annotations

from contenders import rates
from harness import report
from harness.command import Run, main

#: A lone caller is faster or slower for a while by which cores the scheduler puts it and the
#: server on.
FINER = 5


async def measure(run: Run) -> None:
    contenders = rates.contenders(run.url, 1)
    results = await run.compare(contenders, callers=1, seconds=0.9, finer=FINER)
    columns = [
        report.Column("p50 us", "p50_us", ratio=True),
        report.Column("p99 us", "p99_us"),
        report.Column("CPU us/decision", "cpu_us", ",.1f"),
    ]
    table = report.tabulate("one rate limit, one caller", results, columns)
    pair = ("stanchion", "bare EVALSHA")
    goals = report.ratio_goal(
        results, pair, "p50_us", "p50, of bare EVALSHA's", 1.1, at_least=False
    )
    run.add("callers_1", results, table, goals)


if __name__ == "__main__":
    main("one_caller", __doc__, measure)
