"""How many bytes does Redis keep for one subject, and do they grow with its requests?

`MEMORY USAGE` of every key that a contender has, every element counted, over the subjects. The
second table is of a million requests by the same subjects: what the keys, the server (`INFO
memory`) and this process (RSS) occupy after the first tenth of them, and after the last.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from contenders import rates
from five_policies import MIXED, Work
from harness import report
from harness.command import Run, main
from harness.machine import installed, resident
from harness.measure import Results, admitted

from stanchion import CircuitBreaker, Concurrency, EventBus, Quota, RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.measure import Figures

    from stanchion.chain import AnyPolicy

SUBJECTS = 100
LIMIT = 1000  # small enough that what one request used is not soon forgotten
PLENTY = 10**9

MANY = 1_000_000
OFTEN = 1000  # subjects, each with a thousandth of these
CALLERS = 64


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


@asynccontextmanager
async def mixed(url: str, callers: int, limit: int, seconds: int) -> AsyncIterator[rates.Ask]:
    del callers, limit, seconds
    async with EventBus.from_url(url, policies=MIXED, deadline=10) as bus:

        async def ask(subject: str) -> bool:
            async with bus.guard(Work(subject=subject, tokens=900)) as permit:
                permit.charge(tokens=640)
            return True

        yield ask


async def occupied(run: Run, opener: rates.Opener, requests: int) -> Figures:
    """Get what is occupied after a tenth of so many requests, and after all of them."""
    run.server.flush()
    taken: Figures = {"requests": float(requests)}
    async with opener(run.url, CALLERS, PLENTY, rates.HOUR) as ask:

        async def several(count: int, first: int) -> None:
            for number in range(count):
                admitted(await ask(f"subject-{(first + number * CALLERS) % OFTEN:04}"))

        for part, share in (("early", 1), ("late", 9)):
            count = requests * share // 10 // CALLERS
            await asyncio.gather(*(several(count, first) for first in range(CALLERS)))
            gc.collect()
            taken[f"{part}_keys"] = run.server.memory() / OFTEN
            taken[f"{part}_server"] = run.server.used_memory() / 1e6
            taken[f"{part}_client"] = resident() / 1e6
    return taken


async def measure(run: Run) -> None:
    await one_subject(run)
    await many_requests(run)


async def many_requests(run: Run) -> None:
    requests = MANY // 50 if run.quick else MANY
    measured: dict[str, tuple[rates.Opener, int]] = {
        "stanchion": (rates.stanchion, requests),
        # Five policies around a call that is settled: two scripts each.
        "stanchion, mixed": (mixed, requests // 10),
    }
    results = Results()
    for name, (opener, count) in measured.items():
        if not run.only or name in run.only:
            results.rounds[name] = [await occupied(run, opener, count)]
    columns = [
        report.Column("requests", "requests"),
        report.Column("bytes/subject", "early_keys"),
        report.Column("at the end", "late_keys"),
        report.Column("server MB", "early_server", ".2f"),
        report.Column("at the end", "late_server", ".2f"),
        report.Column("client MB", "early_client", ".1f"),
        report.Column("at the end", "late_client", ".1f"),
    ]
    table = report.tabulate(f"after a tenth and at the end, {OFTEN:,} subjects", results, columns)
    table.notes = table.notes[1:]
    goals: list[report.Goal] = []
    if "stanchion" in results.rounds:
        (ours,) = results.rounds["stanchion"]
        goals = [
            report.Goal(
                f"{who}, after {requests:,} requests of what it was after a tenth",
                ours[f"late_{figure}"] / ours[f"early_{figure}"],
                1.05,
                at_least=False,
                form=".2f",
            )
            for who, figure in (("keys", "keys"), ("server", "server"), ("client", "client"))
        ]
    run.add("many_requests", results, table, goals)


async def one_subject(run: Run) -> None:
    openers: dict[str, rates.Opener] = {}
    results = Results()
    for rival in rates.RIVALS:
        if rival.name == rates.BY_HAND:
            continue  # its keys are the other floor's
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
