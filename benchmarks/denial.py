"""A subject that has used up its limit asks again: what does it cost to be denied?

A denial that says until when it lasts is kept in the process and answered from there; whatever may
end it sooner is published by the scripts. `asked` is stanchion without that. The peers ask Redis
each time. Everybody's limit is one an hour, and it is used up before.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from contenders import rates
from harness import report
from harness.command import Run, main
from harness.measure import Contender, admitted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CALLERS = 64
RIVALS = (
    rates.RIVALS[0],
    rates.Rival("stanchion, asked", partial(rates.stanchion, cache_denials=False)),
    *rates.RIVALS[1:],
)


@asynccontextmanager
async def denied(
    rival: rates.Rival, url: str, callers: int
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    subject = f"{rival.name}-{callers}"
    async with rival.open(url, callers, 1, rates.HOUR) as ask:
        admitted(await ask(subject))

        async def call() -> bool:
            """Get whether it was denied."""
            return not await ask(subject)

        yield call


async def measure(run: Run) -> None:
    for callers in (CALLERS, 1):
        contenders = [
            Contender(
                rival.name,
                partial(denied, rival, run.url, callers),
                rival.needs,
                note=rival.note,
            )
            for rival in RIVALS
        ]
        results = await run.compare(contenders, callers=callers, seconds=0.8)
        columns = [
            report.Column("denials/s", "rate", ratio=callers > 1),
            report.Column("p50 us", "p50_us", ",.1f", ratio=callers == 1),
            report.Column("p99 us", "p99_us", ",.1f"),
            report.Column("CPU us/denial", "cpu_us", ",.1f", ratio=callers > 1),
        ]
        who = f"{callers} callers" if callers > 1 else "one caller"
        table = report.tabulate(f"a denial, {who}", results, columns)
        goals = report.beside_best(results, rates.PEERS, f"denials a second, {who}", 30)
        run.add(f"callers_{callers}", results, table, goals)


if __name__ == "__main__":
    main("denial", __doc__, measure)
