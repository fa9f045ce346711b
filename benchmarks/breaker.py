"""A circuit breaker around a call that succeeds: how many calls a second, 64 callers?

stanchion and purgatory ask Redis on every call, and so does pybreaker, which has no asyncio and
is called from 64 threads. interlock-cb counts in the process itself while the circuit is closed and
shares only that a circuit has opened: of four processes, each has to see the failures by itself.
"""

from __future__ import annotations

from contenders import breakers
from harness import report
from harness.command import Run, main

CALLERS = 64


async def measure(run: Run) -> None:
    contenders = breakers.contenders(run.url, CALLERS)
    results = await run.compare(contenders, callers=CALLERS, seconds=1.0)
    columns = [
        report.Column("calls/s", "rate", ratio=True),
        report.Column("CPU us/call", "cpu_us", ",.1f", ratio=True),
        report.Column("p50 us", "p50_us"),
        report.Column("p99 us", "p99_us"),
    ]
    table = report.tabulate(f"breaker, admitted and recorded, {CALLERS} callers", results, columns)
    goals = report.beside_best(results, ("purgatory", "pybreaker"), "calls a second", 10)
    if {"stanchion", "interlock-cb"} <= results.rounds.keys():
        times = results.median("interlock-cb", "rate") / results.median("stanchion", "rate")
        table.notes.append(
            f"interlock-cb makes {times:.1f} times as many calls: its window is one process's own"
        )
    run.add("callers_64", results, table, goals)


if __name__ == "__main__":
    main("breaker", __doc__, measure)
