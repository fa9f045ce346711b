"""Reserve requests and tokens, then settle: how many calls a second, 64 callers, one process?

Each call takes one request and an estimate of tokens, and is settled with fewer. token-throttle
runs on Python 3.12 or newer only. `bare EVALSHA` is two minimal scripts, one to reserve and one to
settle, that know nothing of windows, leases or settling twice.
"""

from __future__ import annotations

import sys

from contenders import reserving
from harness import report
from harness.command import Run, main

CALLERS = 64


async def measure(run: Run) -> None:
    contenders = reserving.contenders(run.url, CALLERS)
    results = await run.compare(contenders, callers=CALLERS, seconds=1.0)
    columns = [
        report.Column("calls/s", "rate", ratio=True),
        report.Column("CPU us/call", "cpu_us", ",.1f", ratio=True),
        report.Column("p50 us", "p50_us"),
        report.Column("p99 us", "p99_us"),
    ]
    table = report.tabulate(f"reserve and settle, {CALLERS} callers", results, columns)
    goals = report.beside_best(results, ("token-throttle",), "calls a second", 100)
    if results.left_out and sys.version_info < (3, 12):
        table.notes.append("token-throttle needs Python 3.12")
    run.add("callers_64", results, table, goals)


if __name__ == "__main__":
    main("reserve_and_settle", __doc__, measure)
