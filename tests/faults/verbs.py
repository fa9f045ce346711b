"""Every verb of a bus once, between two buses at the same place."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from stanchion import CircuitOpen, CircuitState, Event, EventBus, Outcome, Permit, Verdict
from stanchion.events import CircuitClosed, CircuitOpened
from stanchion.observers import Recorder, RedisPublisher
from tests.faults.calls import Call, breaker, bus_on, quota, rate, slots
from tests.waiting import eventually


async def every_verb(url: str, **terms: Any) -> None:
    """See every verb work at a URL: decisions, settling, waiting, administration, pub/sub."""
    policies = [rate(limit=1000), quota(), slots(limit=2), breaker(consecutive_failures=1)]
    recorder = Recorder()
    async with (
        bus_on(url, policies, deadline=5, observers=[RedisPublisher()], **terms) as bus,
        bus_on(url, policies, deadline=5, observers=[recorder], **terms) as other,
    ):
        # A permit travels as text and is settled elsewhere.
        decision = await bus.check(Call(tokens=3))
        assert [verdict.reason for verdict in decision.verdicts] == ["ok"] * 4
        permit = Permit.parse(str(decision.permit))
        assert await other.settle(permit, tokens=5)
        assert set((await bus.settle(permit, tokens=5)).stale) >= {"tokens", "slots", "provider"}
        assert (await other.peek(Call())).verdicts[1].remaining == 10**9 - 5 - 1

        # A guard renews and settles by itself; an undo is as if it had never been.
        async with bus.guard(Call()) as held:
            held.charge(tokens=2)
            assert await bus.renew(held)
        assert (await bus.peek(Call())).verdicts[1].remaining == 10**9 - 7 - 1
        assert await bus.settle(await bus.admit(Call()), Outcome.NEUTRAL, tokens=0)

        # Whoever vetoes later has it all given back.
        before = await _held_of(bus)
        bus.register(_Never())
        assert (await bus.check(Call(tokens=5))).policy == "never"
        bus.unregister("never")
        assert await _held_of(bus) == before

        await _wait_in_line(url, **terms)

        # What one process brings about the other hears of, and obeys.
        with pytest.raises(ZeroDivisionError):
            async with bus.guard(Call(who="failing")):
                raise ZeroDivisionError
        opened = await recorder.wait_for(CircuitOpened)
        assert (opened.subject, opened.reason) == ("failing", "consecutive_failures")
        with pytest.raises(CircuitOpen):
            await other.admit(Call(who="failing"))
        assert await other.force("provider", CircuitState.HALF_OPEN, who="failing") == "open"
        probe = await bus.admit(Call(who="failing"))
        assert (await other.check(Call(who="failing"))).reason == "probes_in_use"
        assert await other.settle(probe)
        assert (await recorder.wait_for(CircuitClosed)).subject == "failing"
        assert await bus.check(Call(who="failing"))

        # Administration.
        await bus.override("calls", 1, who="small")
        assert (await other.check(Call(who="small"))).verdicts[0].remaining == 0
        await bus.override("calls", None, who="small")
        assert await bus.sync("calls", remaining=0, who="known")
        assert (await other.check(Call(who="known"))).reason == "limit_reached"
        found = {(one.policy, one.subject) async for one in other.inspect()}
        assert found >= {("calls", "known"), ("tokens", "acme"), ("provider", "failing")}
        assert not [one async for one in other.inspect("tokens") if one.policy != "tokens"]
        assert await bus.reset("calls", who="known") == 1
        assert await other.check(Call(who="known"))
        assert await bus.reset("tokens") >= 3
        assert not [one async for one in other.inspect("tokens")]


class _Never:
    name, on, priority = "never", Call, 200

    async def evaluate(self, event: Event) -> Verdict:
        del event
        return Verdict(self.name, allowed=False, reason="never")


async def _held_of(bus: EventBus) -> list[int | None]:
    """Get what is left where time gives nothing back."""
    return [one.remaining for one in (await bus.peek(Call())).verdicts if one.policy != "calls"]


async def _wait_in_line(url: str, **terms: Any) -> None:
    async with (
        bus_on(url, [slots(limit=1)], deadline=5, **terms) as bus,
        bus_on(url, [slots(limit=1)], deadline=5, **terms) as other,
    ):
        event = Call(who="popular")
        first = await bus.admit(event)
        waiting = asyncio.create_task(other.admit(event, wait=30))
        gone = asyncio.create_task(other.admit(event, wait=30))

        async def queued() -> bool:
            return (await bus.check(event)).reason == "queued" or not waiting.done()

        await eventually(queued, what="somebody is in line")
        gone.cancel()
        began = time.monotonic()
        await bus.settle(first)
        second = await waiting
        assert time.monotonic() - began < 2
        await asyncio.gather(gone, return_exceptions=True)
        await other.settle(second)
        assert await bus.admit(event, wait=10)
