"""A policy that is asked later refuses, fails or hangs: what was charged before comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome, Verdict
from tests.faults.calls import (
    Call,
    ask,
    breaker,
    bus_on,
    charged,
    in_use,
    quota,
    rate,
    slots,
    state,
    within,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion import Event
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

PATIENCE = 1.0


class Later:
    """Asked after the built-in policies, and does what it is told to."""

    name = "later"
    on = Call
    priority = 200

    def __init__(self) -> None:
        self.does = "admits"
        self.asked = asyncio.Event()
        self.settled: list[Outcome] = []

    async def evaluate(self, event: Event) -> Verdict:
        self.asked.set()
        match self.does:
            case "raises":
                raise RuntimeError("no")
            case "hangs":
                await asyncio.Event().wait()
            case _:
                pass
        return Verdict(self.name, self.does == "admits", "ok" if self.does == "admits" else "no")

    async def settle(self, event: Event, outcome: Outcome, costs: Mapping[str, int]) -> None:
        self.settled.append(outcome)


HOW = {
    "vetoes": ("no", "a custom policy vetoes last"),
    "raises": ("policy_failed", "a custom policy raises"),
    "hangs": ("policy_failed", "a custom policy hangs"),
    "full": ("limit_reached", "a limit after a custom policy is reached"),
    "cancelled": ("", "the caller is cancelled while a custom policy is asked"),
}


@pytest.mark.parametrize("how", HOW)
async def test_a_veto_after_charges_has_cost_nothing(
    server: RealServer, how: str, fault_record: FaultRecords
):
    """Rate, quota, slot and the only probe of a half-open circuit, as if never asked."""
    reason, what = HOW[how]
    record = fault_record(29, what, server, deadline=PATIENCE)
    later = Later()
    last = rate(name="last", limit=1, per="365d", priority=300)
    policies = [
        rate(limit=2, per="365d"),
        quota(limit=2),
        slots(limit=1),
        breaker(consecutive_failures=1, half_open_calls=1),
        later,
        last,
    ]
    async with bus_on(server.url, policies, deadline=PATIENCE) as bus:
        assert await bus.force("provider", CircuitState.HALF_OPEN, who="acme") == "closed"
        if how == "full":
            await bus.sync("last", remaining=0, who="acme")
        else:
            later.does = how
        for number in range(1 if how == "hangs" else 3):
            if how == "cancelled":
                later.does, later.asked = "hangs", asyncio.Event()
                asking = asyncio.create_task(record.ask(bus.check(Call())))
                await later.asked.wait()
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                record.saw("cancelled")
                await eventually(lambda: in_use(server) == 0, 1, what="it is given back")
            else:
                async with within(PATIENCE + 0.1):
                    decision = await ask(bus, record)
                assert (decision.allowed, decision.reason) == (False, reason)
                assert decision.permit is None
            # When the answer is there all of it has been given back, the probe included; unless
            # the answer could wait no longer.
            if how == "hangs":
                await eventually(lambda: charged(server) == 0, 1, what="it is given back")
            assert (charged(server), in_use(server)) == (0, 0)
            assert state(server, "circuit", "provider")["state"] == "half_open"
            if how == "full":
                assert later.settled == [Outcome.NEUTRAL] * (number + 1)
        later.does = "admits"
        if how == "full":
            await bus.reset("last")
        # There is as much as before, and the probe is to be had.
        decision = await ask(bus, record)
        assert decision, decision.verdicts
        assert decision.verdicts[0].remaining == 2 - 1
        assert (charged(server), in_use(server)) == (1, 1)
        record.charge(charged(server))
        assert decision.permit is not None
        assert await bus.settle(decision.permit)
        assert state(server, "circuit", "provider")["state"] == "closed"
