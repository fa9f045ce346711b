"""A process with a bus of its own, that does what lines on stdin say and answers each on stdout.

The first line brings the server's URL and the policies; each further one names a deed and its
arguments. The end of stdin ends the process.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from stanchion import Decision, EventBus, Outcome, Permit
from tests.contention.calls import CALLS, NAMESPACE, Call, micros
from tests.waiting import eventually

#: Seconds between one worker's attempts: short enough that nothing freed stays unused for long.
PAUSE = 0.004


def when(decision: Decision) -> int:
    """Get when it was decided: by the server's clock, or by ours where it was not asked."""
    return micros(decision.decided_at) if decision.decided_at else time.time_ns() // 1000


class Worker:
    """One worker's deeds. Every moment in its answers is the server's, in microseconds."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._guards = AsyncExitStack()
        self._permits: list[Permit] = []

    async def warm(self) -> int:
        """Open the connection and make the scripts known."""
        assert not (await self._bus.peek(Call())).vetoes
        return os.getpid()

    async def press(self, until_us: int, tasks: int, calls: list[str]) -> list[Any]:
        """Ask for calls of each type again and again until the server says that it is over."""
        return await asyncio.gather(*(self._press(until_us, tasks, CALLS[name]) for name in calls))

    async def _press(self, until_us: int, tasks: int, call: type[Call]) -> dict[str, Any]:
        checked: list[int] = []
        admitted: list[int] = []

        async def one_after_another() -> None:
            while not checked or checked[-1] < until_us:
                decision = await self._bus.check(call())
                checked.append(when(decision))
                if decision.permit is not None:
                    admitted.append(decision.permit.admitted_us)
                else:
                    assert decision.retry_after is not None, decision.reason
                    await asyncio.sleep(min(decision.retry_after, PAUSE))

        await asyncio.gather(*(one_after_another() for _ in range(tasks)))
        span = {"first": min(checked), "last": max(checked)}
        return {"admitted": admitted, "checks": len(checked), **span}

    async def peek(self) -> str:
        """Get what a check would say now."""
        return _said(await self._bus.peek(Call()))

    async def check(self, times: int) -> list[str]:
        """Check so many times, one after another."""
        return [_said(await self._bus.check(Call())) for _ in range(times)]

    async def check_together(self, times: int) -> list[str]:
        """Check so many times at once."""
        decisions = await asyncio.gather(*(self._bus.check(Call()) for _ in range(times)))
        return [_said(decision) for decision in decisions]

    async def fail(self, times: int) -> list[str]:
        """Have so many calls fail, one after another."""
        said: list[str] = []
        for _ in range(times):
            decision = await self._bus.check(Call())
            said.append(_said(decision))
            if decision.permit is not None:
                assert await self._bus.settle(decision.permit, Outcome.FAILURE)
        return said

    async def probe(self, until_us: int, hold: float, fail_every: int) -> list[Any]:
        """Check again and again; hold what is admitted for a while, one of so many to fail.

        Of each call: its breaker's generation, when it was admitted, and when it held on still.
        """
        calls: list[Any] = []
        while True:
            decision = await self._bus.check(Call())
            if decision.permit is not None:
                await asyncio.sleep(hold)
                still = micros((await self._bus.peek(Call())).decided_at)
                generation = decision.permit.holds[0].numbers[0]
                calls.append((generation, decision.permit.admitted_us, still))
                failed = fail_every and len(calls) % fail_every == 0
                outcome = Outcome.FAILURE if failed else Outcome.NEUTRAL
                await self._bus.settle(decision.permit, outcome)
            if when(decision) >= until_us:
                return calls
            await asyncio.sleep(PAUSE)

    async def wait_in_line(self, count: int, wait: float) -> list[Any]:
        """Have so many wait at once; of each, what names it and when it was admitted."""
        permits = await asyncio.gather(*(self._bus.admit(Call(), wait) for _ in range(count)))
        return [(permit.id, permit.admitted_us) for permit in permits]

    async def enter(self, tokens: int, wait: float) -> int:
        """Enter a guard and stay inside; get when it was admitted."""
        guard = self._bus.guard(Call(tokens=tokens), wait=wait)
        permit = await self._guards.enter_async_context(guard)
        self._permits.append(permit)
        return permit.admitted_us

    async def find_lost(self) -> dict[str, Any]:
        """Wait until the guard's permit is known to be lost; try to renew and to release it."""
        (permit,) = self._permits
        await eventually(lambda: permit.lost, what="the loss is noticed")
        renewed = await self._bus.renew(permit)
        settlement = await self._bus.settle(permit)
        return {"renewed": renewed, "statuses": dict(settlement.statuses)}

    async def leave(self) -> None:
        """Leave every guard."""
        await self._guards.aclose()


def _said(decision: Decision) -> str:
    return decision.reason or "ok"


async def serve(doer: Any) -> None:
    """Do what each line on stdin says, and answer it on stdout."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        deed, arguments = json.loads(line)
        answer = await getattr(doer, deed)(**arguments)
        print(json.dumps(answer), flush=True)
    await doer.leave()


def told() -> tuple[str, list[Any]]:
    """Get the server's URL and the policies from the first line on stdin."""
    return pickle.loads(base64.b64decode(sys.stdin.readline()))


async def work(url: str, policies: list[Any]) -> None:
    bus = EventBus.from_url(url, policies=policies, namespace=NAMESPACE, deadline=10)
    async with bus:
        await serve(Worker(bus))


if __name__ == "__main__":
    asyncio.run(work(*told()))
