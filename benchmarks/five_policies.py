"""Five policies in one check: what do they cost beside one?

stanchion decides on all five in one call, all or nothing. The peers are asked five times, one
after another, and what the first four took stays taken when the fifth refuses. `mixed` is two
rate limits, a quota, a concurrency cap and a breaker around a guarded call, settled.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from contenders import rates
from harness import report
from harness.command import Run, main
from harness.measure import Contender
from one_caller import FINER

from stanchion import CircuitBreaker, Concurrency, Event, EventBus, Quota, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CALLERS = 64
LIMITS = 5
FAST_PEERS = ("limits", "throttled-py")


class Work(Event, type="bench:work"):
    subject: str
    tokens: int = 1


MIXED = [
    RateLimit(name="burst", on=Work, by="subject", limit=rates.PLENTY, per="1s"),
    RateLimit(name="steady", on=Work, by="subject", limit=rates.PLENTY * 60, per="1m"),
    Quota(name="tokens", on=Work, by="subject", limit=10**15, per="day", cost="tokens"),
    Concurrency(name="in-flight", on=Work, by="subject", limit=10 * CALLERS),
    CircuitBreaker(name="provider", on=Work, by="subject", failure_rate=0.5),
]


@asynccontextmanager
async def checked(url: str, limits: int) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    async with rates.stanchion(url, CALLERS, rates.PLENTY, 1, limits) as ask:
        yield partial(ask, "hot")


@asynccontextmanager
async def guarded(url: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    async with EventBus.from_url(url, policies=MIXED, namespace="mixed", deadline=10) as bus:

        async def call() -> bool:
            async with bus.guard(Work(subject="hot", tokens=900)) as permit:
                await asyncio.sleep(0)
                permit.charge(tokens=640)
            return True

        yield call


async def measure(run: Run) -> None:
    proof = partial(rates.prove, rates.stanchion, run.url)
    ours = [
        Contender("stanchion", partial(checked, run.url, 1), prove=proof),
        Contender(f"stanchion, {LIMITS}", partial(checked, run.url, LIMITS)),
        Contender("stanchion, mixed", partial(guarded, run.url)),
    ]
    theirs = [
        Contender(f"{who.name}, {LIMITS} calls", who.open, who.needs, prove=who.prove)
        for who in rates.contenders(run.url, CALLERS, FAST_PEERS, calls=LIMITS)
    ]
    contenders = [*ours, *theirs]
    results = await run.compare(contenders, callers=CALLERS, seconds=1.0)
    columns = [
        report.Column("events/s", "rate", ratio=True),
        report.Column("p50 us", "p50_us", ratio=True),
        report.Column("CPU us/event", "cpu_us", ",.1f"),
    ]
    table = report.tabulate(f"five policies, {CALLERS} callers", results, columns)
    pair = (f"stanchion, {LIMITS}", "stanchion")
    what = "events a second, of one policy's"
    goals = report.ratio_goal(results, pair, "rate", what, 40, percent=True)
    run.add("callers_64", results, table, goals)
    alone = await run.compare(contenders, callers=1, seconds=0.6, finer=FINER)
    columns = [report.Column("p50 us", "p50_us", ratio=True), report.Column("p99 us", "p99_us")]
    table = report.tabulate("five policies, one caller", alone, columns)
    what = "p50, of one policy's"
    goals = report.ratio_goal(alone, pair, "p50_us", what, 1.5, at_least=False)
    run.add("callers_1", alone, table, goals)


if __name__ == "__main__":
    main("five_policies", __doc__, measure)
