"""How many bytes does Redis keep for one subject, and do they grow with its requests?

`MEMORY USAGE` of every key that a contender has, every element counted, over the subjects.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from contenders import rates
from harness import report
from harness.command import Run, main
from harness.machine import installed
from harness.measure import Results, admitted

from stanchion import CircuitBreaker, Concurrency, Event, EventBus, Quota, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stanchion.chain import AnyPolicy

SUBJECTS = 100
LIMIT = 1000  # small enough that what one request used is not soon forgotten
PLENTY = 10**9


class Work(Event, type="bench:work"):
    subject: str


POLICIES: dict[str, AnyPolicy] = {
    "quota": Quota(name="p", on=Work, by="subject", limit=PLENTY, per="day"),
    "quota, rolling": Quota(
        name="p", on=Work, by="subject", limit=PLENTY, per="1h", rolling=True, slices=30
    ),
    "sliding window": RateLimit(
        name="p", on=Work, by="subject", limit=PLENTY, per="1h", algorithm="sliding_window"
    ),
    "fixed window": RateLimit(
        name="p", on=Work, by="subject", limit=PLENTY, per="1h", algorithm="fixed_window"
    ),
    "breaker": CircuitBreaker(name="p", on=Work, by="subject", failure_rate=0.5),
    "slots": Concurrency(name="p", on=Work, by="subject", limit=PLENTY),
}


@asynccontextmanager
async def settled(policy: AnyPolicy, url: str) -> AsyncIterator[rates.Ask]:
    async with EventBus.from_url(url, policies=[policy], deadline=10) as bus:

        async def ask(subject: str) -> bool:
            async with bus.guard(Work(subject=subject)):
                return True

        yield ask


async def bytes_after(run: Run, opener: rates.Opener, requests: int) -> float:
    """Get the bytes for each subject when each has asked so often. Limits are an hour's."""
    run.server.flush()
    async with opener(run.url, 64, LIMIT, rates.HOUR) as ask:

        async def one(subject: str) -> None:
            for _ in range(requests):
                admitted(await ask(subject))

        for first in range(0, SUBJECTS, 50):
            await asyncio.gather(*(one(f"subject-{n:04}") for n in range(first, first + 50)))
        return run.server.memory() / SUBJECTS


async def measure(run: Run) -> None:
    openers: dict[str, rates.Opener] = {}
    results = Results()
    for rival in rates.RIVALS:
        if not installed(rival.needs):
            results.left_out.append(f"{rival.name}: {rival.needs} is not installed")
            continue
        openers[rival.name] = rival.open
    for name, policy in POLICIES.items():

        def opener(
            url: str, _callers: int, _limit: int, _seconds: int, policy: AnyPolicy = policy
        ) -> object:
            return settled(policy, url)

        openers[f"stanchion, {name}"] = opener  # pyright: ignore[reportArgumentType]
    many = 10 if run.quick else 100
    for name, opening in openers.items():
        if run.only and name not in run.only:
            continue
        few = await bytes_after(run, opening, 1)
        grown = await bytes_after(run, opening, many)
        results.rounds[name] = [{"bytes": few, "grown": grown}]
    columns = [
        report.Column("bytes, 1 request", "bytes", ratio=True),
        report.Column(f"{many} requests", "grown"),
    ]
    table = report.tabulate("memory for one subject", results, columns)
    table.notes = table.notes[1:]  # it is counted, not timed: no rounds
    run.add("memory", results, table)


if __name__ == "__main__":
    main("memory", __doc__, measure)
