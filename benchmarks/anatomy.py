"""Where does the time of one decision go, on the client's side and on the server's?

The first table takes a lone check apart: what it takes alone to make an event, to spend a unit that
is at hand, to deny what is known to be denied, and to ask the server for nothing at all, through
redis-py and by hand. The second one counts what one check has the server do.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import redis.asyncio
from contenders import pipelined, rates
from five_policies import LIMITS, checked
from harness import report
from harness.command import Run, main
from harness.measure import WARM_UP, Contender, Results, drive, quantile, rotated

from stanchion import EventBus, RateLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from harness.measure import Figures

    Part = Callable[[], Awaitable[object]]

AT_ONCE = 20  # calls between two clocks


async def opened(stack: AsyncExitStack, run: Run) -> dict[str, Part]:
    """Get what is timed, by name."""
    plenty = RateLimit(name="r", on=rates.Call, by="subject", limit=rates.PLENTY, per=1)
    ahead = plenty.model_copy(update={"prefetch": 100_000})
    used_up = RateLimit(name="r", on=rates.Call, by="subject", limit=1, per=rates.HOUR)
    busses = [
        await stack.enter_async_context(
            EventBus.from_url(run.url, policies=[policy], namespace=name, deadline=10)
        )
        for name, policy in (("asks", plenty), ("spends", ahead), ("knows", used_up))
    ]
    asks, spends, knows = busses
    event = rates.Call(subject="hot")
    client = await stack.enter_async_context(redis.asyncio.Redis.from_url(run.url))
    pipeline = await stack.enter_async_context(pipelined.connected(run.url))

    async def check() -> object:
        return await asks.check(rates.Call(subject="hot"))

    async def make() -> object:
        return rates.Call(subject="hot")

    async def ping_by_hand() -> object:
        return await pipeline.ask("PING")

    return {
        "stanchion": check,
        "to make its event": make,
        "to ask with one made": partial(asks.check, event),
        "to spend what is at hand": partial(spends.check, event),
        "to deny what is known": partial(knows.check, event),
        "PING, redis-py": client.ping,
        "PING, by hand": ping_by_hand,
    }


async def timed(part: Part, seconds: float) -> Figures:
    spans: list[float] = []
    ends = time.perf_counter() + seconds
    cpu, calls = time.process_time(), 0
    while (began := time.perf_counter()) < ends:
        for _ in range(AT_ONCE):
            await part()
        spans.append((time.perf_counter() - began) / AT_ONCE * 1e6)
        calls += AT_ONCE
    cpu = time.process_time() - cpu
    spans.sort()
    return {"us": quantile(spans, 0.5), "least_us": spans[0], "cpu_us": cpu / calls * 1e6}


async def client_side(run: Run) -> None:
    results = Results()
    async with AsyncExitStack() as stack:
        parts = await opened(stack, run)
        chosen = {name: part for name, part in parts.items() if not run.only or name in run.only}
        for part in chosen.values():
            await timed(part, WARM_UP)
        for number in range(run.rounds):
            for name, part in rotated(list(chosen.items()), number):
                taken = await timed(part, run.seconds(0.5))
                results.rounds.setdefault(name, []).append(taken)
    columns = [
        report.Column("us", "us", ",.1f", ratio=True),
        report.Column("least us", "least_us", ",.1f"),
        report.Column("CPU us", "cpu_us", ",.1f"),
    ]
    names = [name for name in chosen if name in results.rounds]
    run.add("client", results, report.tabulate("a lone check, and parts", results, columns, names))


async def server_side(run: Run) -> None:
    results = Results()
    alone = rates.contenders(run.url, 1, ("stanchion", "bare EVALSHA"))
    contenders = [*alone, Contender(f"stanchion, {LIMITS}", partial(checked, run.url, LIMITS))]
    for who in run.chosen(contenders):
        run.server.flush()
        async with who.open() as call:
            await drive(who, call, 1, WARM_UP)
            run.server.forget_statistics()
            figures = await drive(who, call, 1, run.seconds(0.5))
            taken = {
                "script_us": run.server.command_time_us() / figures["calls"],
                "commands_us": run.server.command_time_us(in_scripts=True) / figures["calls"],
                "commands": run.server.commands_called() / figures["calls"],
            }
            results.rounds[who.name] = [taken]
    columns = [
        report.Column("us in the script", "script_us", ",.1f", ratio=True),
        report.Column("of it in commands", "commands_us", ",.1f"),
        report.Column("commands", "commands", ",.1f"),
    ]
    table = report.tabulate("what a lone check has the server do", results, columns)
    table.notes = table.notes[1:]
    run.add("server", results, table)


async def measure(run: Run) -> None:
    await client_side(run)
    await server_side(run)


if __name__ == "__main__":
    main("anatomy", __doc__, measure)
