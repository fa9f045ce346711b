"""A worker that asks without a pause, with units and a slot in hand, and writes when that changes.

    python switch_worker.py URL

Lines are `allowed` or `halted`, the moment of the first such answer, and the moment at which the
last event before it was asked about that was answered otherwise (CLOCK_MONOTONIC, in seconds).
"""

from __future__ import annotations

import asyncio
import sys
import time

from stanchion import Concurrency, EventBus, RateLimit, Verdict
from stanchion.policies.kill_switch import KillSwitch
from tests.busses import Call


class Remembering:
    """Answers from memory, as a policy does that keeps the answers of a service."""

    name = "remembering"
    on = Call
    priority = 50

    async def evaluate(self, event: Call) -> Verdict:
        return Verdict(self.name, allowed=True)


async def main(url: str) -> None:
    policies = [
        KillSwitch(name="switch"),
        RateLimit(name="calls", on=Call, limit=1_000_000, per="1s", prefetch=1000),
        Concurrency(name="slots", on="busses:special", limit=1000, lease="30s"),
        Remembering(),
    ]
    async with EventBus.from_url(url, policies=policies) as bus:
        from tests.busses import SpecialCall

        async with bus.guard(SpecialCall(tenant="acme")):
            event, before, last = Call(tenant="acme"), "", time.monotonic()
            while True:
                began = time.monotonic()
                decision = await bus.check(event)
                answer = "allowed" if decision else str(decision.reason)
                if answer != before:
                    print(answer, time.monotonic(), last, flush=True)
                    before = answer
                last = began
                await asyncio.sleep(0.002)


asyncio.run(main(sys.argv[1]))
