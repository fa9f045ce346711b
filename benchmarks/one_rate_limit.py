"""One rate limit, 64 concurrent callers, one process: how many decisions a second, at what cost?

Everybody asks for the same subject. The CPU is this process's, so it does not hold the server's.
"""

from __future__ import annotations

from contenders import rates
from harness import report
from harness.command import Run, main

CALLERS = 64


async def measure(run: Run) -> None:
    contenders = rates.contenders(run.url, CALLERS)
    results = await run.compare(contenders, callers=CALLERS, seconds=1.0)
    columns = [
        report.Column("decisions/s", "rate", ratio=True),
        report.Column("CPU us/decision", "cpu_us", ",.1f", ratio=True),
        report.Column("p50 us", "p50_us"),
        report.Column("p99 us", "p99_us"),
    ]
    table = report.tabulate(f"one rate limit, {CALLERS} callers", results, columns)
    fast = ("limits", "throttled-py")
    goals = [
        *report.beside_best(results, fast, "decisions a second", 10),
        *report.beside_best(results, fast, "less CPU a decision", 8, "cpu_us", lowest=True),
    ]
    run.add("callers_64", results, table, goals)


if __name__ == "__main__":
    main("one_rate_limit", __doc__, measure)
