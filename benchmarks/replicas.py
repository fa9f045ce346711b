"""What does it cost to wait for a replica with every admission? 64 callers, then one.

Each call takes one unit of a quota, on a primary with one replica on the same machine. `stanchion`
is `Quota(replicas=1)`, `not waiting` the same quota without, and `bare WAIT` one minimal script
with `WAIT` behind it, each caller with a connection of its own.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import redis
import redis.asyncio
from contenders import floor
from harness import report, server
from harness.command import Run, main
from harness.measure import Contender

from stanchion import Event, EventBus, Quota

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

PATIENCE = 20.0
PLENTY = 10**9


class Paid(Event, type="benchmarks:paid"):
    """What the quota is about."""


@asynccontextmanager
async def quota(url: str, replicas: int) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    policy = Quota(name="money", on=Paid, limit=PLENTY, per="day", warn_at=(), replicas=replicas)
    async with EventBus.from_url(url, policies=[policy]) as bus:

        async def ask() -> bool:
            return bool(await bus.check(Paid()))

        yield ask


@asynccontextmanager
async def bare(url: str, callers: int) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    async with redis.asyncio.Redis.from_url(url, max_connections=2 * callers) as client:
        digest = cast("str", await client.script_load(floor.GCRA))

        async def ask() -> bool:
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.evalsha(digest, 1, "floor", "1", str(PLENTY))
                pipeline.execute_command("WAIT", 1, 850)
                (admitted, _), acknowledged = await pipeline.execute()
            return admitted == 1 and acknowledged == 1

        yield ask


def follow(replica: server.Server, primary: server.Server) -> None:
    """Have the one copy the other, and wait until it does."""
    primary.control.config_set("repl-diskless-sync-delay", 0)
    replica.control.replicaof("127.0.0.1", primary.port)
    ends = time.monotonic() + PATIENCE
    while True:
        told = cast("Mapping[str, object]", replica.control.info("replication"))
        if told["master_link_status"] == "up":
            return
        if time.monotonic() > ends:
            raise TimeoutError("the replica does not follow")
        time.sleep(0.01)


async def measure(run: Run) -> None:
    columns = [
        report.Column("calls/s", "rate", ratio=True),
        report.Column("CPU us/call", "cpu_us", ",.1f", ratio=True),
        report.Column("p50 us", "p50_us"),
        report.Column("p99 us", "p99_us"),
    ]
    with server.running() as replica:
        follow(replica, run.server)
        for callers in (64, 1):
            contenders = [
                Contender("stanchion", partial(quota, run.url, 1), note="replicas=1"),
                Contender("not waiting", partial(quota, run.url, 0), note="replicas=0"),
                Contender("bare WAIT", partial(bare, run.url, callers), needs="redis"),
            ]
            results = await run.compare(contenders, callers=callers, seconds=1.0)
            table = report.tabulate(f"replicas=1, callers={callers}", results, columns)
            run.add(f"callers_{callers}", results, table)


if __name__ == "__main__":
    main("replicas", __doc__, measure)
