"""Four policies in one check, over several shards: what does a change of shard cost?

`stanchion` is a namespace that is not spread. `one shard` is spread by tenant, and all four count
by tenant: one call. `two shards` counts two by tenant, two by model: two calls, one after another.
All on one server, so that what a cluster gains by having more of them is not in it.
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from harness import report
from harness.command import Run, main
from harness.measure import Contender
from one_caller import FINER

from stanchion import Event, EventBus, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CALLERS = 64
TENANTS = 32
PLENTY = 10**9


class Work(Event, type="bench:spread"):
    tenant: str
    model: str = "m1"


def limits(*fields: str) -> list[RateLimit]:
    return [
        RateLimit(name=f"limit-{place}", on=Work, by=by, limit=PLENTY, per="1m")
        for place, by in enumerate(fields)
    ]


@asynccontextmanager
async def checked(
    url: str, namespace: str, policies: list[RateLimit], shard_by: tuple[str, ...]
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    turns = itertools.cycle([f"tenant-{number}" for number in range(TENANTS)])
    async with EventBus.from_url(
        url, policies=policies, namespace=namespace, deadline=10, shard_by=shard_by
    ) as bus:

        async def ask() -> bool:
            return bool(await bus.check(Work(tenant=next(turns))))

        yield ask


async def measure(run: Run) -> None:
    by = ("tenant", "model")
    same, mixed = limits(*["tenant"] * 4), limits("tenant", "tenant", "model", "model")
    contenders = [
        Contender("stanchion", partial(checked, run.url, "whole", mixed, ())),
        Contender("one shard", partial(checked, run.url, "one", same, by)),
        Contender("two shards", partial(checked, run.url, "two", mixed, by)),
    ]
    for callers, options in ((CALLERS, {}), (1, {"finer": FINER})):
        results = await run.compare(contenders, callers=callers, seconds=0.8, **options)
        columns = [
            report.Column("events/s", "rate", ratio=True),
            report.Column("p50 us", "p50_us", ratio=True),
            report.Column("CPU us/event", "cpu_us", ",.1f"),
        ]
        table = report.tabulate(f"four policies over shards, {callers} callers", results, columns)
        run.add(f"callers_{callers}", results, table)


if __name__ == "__main__":
    main("shards", __doc__, measure)
