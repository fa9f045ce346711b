"""Defects of circuit breakers that users have met elsewhere.

Covered elsewhere in full:
- a prober that is killed: tests/faults/test_lost_leases.py kills holders; a probe is held alike
- a server's clock that steps back while a circuit is open: tests/faults/test_clocks.py
- a change that was missed while a subscription was gone: tests/faults/test_killed_connections.py
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome
from stanchion.events import CircuitClosed, CircuitOpened
from stanchion.testing import START_US, memory_bus
from tests.busses import Call, Custom, breaker, rate, slots
from tests.regressions.looking import fields, lifetimes, only
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import Permit
    from stanchion.testing import TestBus
    from tests.busses import Buses
    from tests.servers import RealServer

SECOND = 1_000_000
CIRCUIT = "circuit:provider:-"


async def trip(bus: TestBus, failures: int = 2) -> None:
    for _ in range(failures):
        await bus.settle(await bus.admit(Call()), Outcome.FAILURE)
    assert await state(bus) == "open"


async def recovering(bus: TestBus) -> Permit:
    """Trip it, let its time pass, and get the first probe."""
    await trip(bus)
    await bus.clock.advance(30)
    probe = await bus.admit(Call())
    assert await state(bus) == "half_open"
    return probe


async def state(bus: TestBus) -> str:
    return (await fields(bus, CIRCUIT))["state"]


# ---- probes that nobody settles


@pytest.mark.parametrize("traffic", [True, False], ids=["steady traffic", "no traffic"])
async def test_a_leaked_probe_comes_back_when_its_lease_ends(store_url: str, traffic: bool):
    """interlock: each refusal renewed its TTL; OmniRoute#13836: six days half open, 49,607 refused.

    Also Netflix/Hystrix#1621 and resilience4j#935: a permit that nobody ever settles.
    """
    async with memory_bus(breaker(lease="300ms"), url=store_url) as bus:
        leaked = await recovering(bus)
        for _ in range(29):
            await bus.clock.advance(0.01)
            if traffic:
                assert (await bus.check(Call())).reason == "probes_in_use"
                assert not await bus.peek(Call())
        await bus.clock.advance(0.01)
        probe = await bus.admit(Call())
        assert not await bus.settle(leaked)
        assert await state(bus) == "half_open"
        assert await bus.settle(probe)
        assert await state(bus) == "closed"


@pytest.mark.parametrize("order", [1, -1], ids=["breaker first", "breaker last"])
async def test_a_later_veto_takes_no_probe(store_url: str, order: int):
    """alibaba/Sentinel#1638, litellm#39544: a later rule refused: half open for ever."""
    policies = [breaker(), rate(limit=3, per="1h")][::order]
    async with memory_bus(*policies, url=store_url) as bus:
        probe = await recovering(bus)
        await bus.settle(probe, Outcome.NEUTRAL)
        for _ in range(3):
            assert (await bus.check(Call())).policy == "calls"
        await bus.reset("calls")
        assert await bus.settle(await bus.admit(Call()))
        assert await state(bus) == "closed"


async def test_a_probe_is_given_back_when_a_custom_policy_refuses_later(store_url: str):
    """alibaba/Sentinel#1638: also where the later policy is not one of the store's."""
    filter_ = Custom("filter", priority=200)
    async with memory_bus(breaker(), slots(limit=1), filter_, url=store_url) as bus:
        await trip(bus)
        await bus.clock.advance(30)
        filter_.answer = False
        for _ in range(3):
            assert (await bus.check(Call())).policy == "filter"
        filter_.answer = True
        assert await bus.settle(await bus.admit(Call()))
        assert await state(bus) == "closed"


async def test_a_cancelled_probe_is_given_back_and_is_no_failure(store_url: str):
    """Netflix/Hystrix#1621, #1781: an unsubscribed probe left the circuit open for good."""
    async with memory_bus(breaker(), url=store_url) as bus:
        await bus.settle(await recovering(bus), Outcome.NEUTRAL)
        inside = asyncio.Event()

        async def work() -> None:
            async with bus.guard(Call()):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        assert (await bus.check(Call())).reason == "probes_in_use"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await state(bus) == "half_open"
        assert await bus.settle(await bus.admit(Call()))
        assert await state(bus) == "closed"


@pytest.mark.parametrize("fails", [True, False])
async def test_probes_that_end_together_leave_one_clear_state(store_url: str, fails: bool):
    """Netflix/Hystrix#2108: results that raced each other left it open with nothing to end that."""
    async with memory_bus(breaker(half_open_calls=4), url=store_url) as bus:
        probes = [await recovering(bus), *[await bus.admit(Call()) for _ in range(3)]]
        ends = [Outcome.SUCCESS, Outcome.FAILURE if fails else Outcome.SUCCESS] * 2
        await asyncio.gather(*(bus.settle(p, end) for p, end in zip(probes, ends, strict=True)))
        assert await state(bus) == ("open" if fails else "closed")
        await bus.clock.advance(30)
        assert await bus.check(Call())


async def test_a_classifier_that_raises_leaks_nothing(store_url: str):
    """resilience4j#2488: the predicate raised, and the permit was never given back."""

    def broken(error: BaseException) -> bool:
        raise LookupError(f"no rule for {error!r}")

    policies = [slots(limit=1), breaker(consecutive_failures=1, failures=broken)]
    async with memory_bus(*policies, url=store_url) as bus:
        for _ in range(3):
            with pytest.raises(ValueError, match="of the work"):
                async with bus.guard(Call()):
                    raise ValueError("of the work")
        assert (await bus.peek(Call())).verdicts[0].remaining == 0  # of one, which it would take
        assert not any("leases" in key for key in await lifetimes(bus))


# ---- one fleet, one circuit


async def test_probes_are_rationed_over_all_processes(open_shared: Buses):
    """ParentSquare/faulty#70: every process probed; bolshakov/stoplight#366, #364: all at once."""
    policy = breaker(half_open_calls=3, open_for="100ms")
    buses = [await open_shared(policy, deadline=5) for _ in range(6)]
    for _ in range(2):
        await buses[0].settle(await buses[0].admit(Call()), Outcome.FAILURE)
    granted: list[Permit] = []

    async def pressed() -> bool:
        decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(10) for bus in buses))
        granted.extend(d.permit for d in decisions if d.permit is not None)
        return bool(granted)

    await eventually(pressed)
    for _ in range(3):
        await pressed()
    assert len(granted) == 3


async def test_after_recovery_callers_are_let_back_little_by_little():
    """bolshakov/stoplight#366: one success, and the whole herd was there again."""
    async with memory_bus(breaker(ramp_up="10s")) as bus:
        assert await bus.settle(await recovering(bus))
        assert await state(bus) == "closed"

        async def share() -> int:
            return sum(map(bool, await asyncio.gather(*(bus.check(Call()) for _ in range(120)))))

        # A tenth at first, 55 in a hundred at half time; six standard deviations either way.
        await bus.clock.advance(0.1)
        assert 0 < await share() < 35
        await bus.clock.advance(4.9)
        assert 35 < await share() < 97
        await bus.clock.advance(5)
        assert await share() == 120


async def test_failures_reported_at_once_are_all_counted(open_shared: Buses):
    """gobreaker: state was read before its lock was taken, and updates were lost."""
    policy = breaker(failure_rate=1.0, minimum_calls=60, window="60s")
    buses = [await open_shared(policy, deadline=5) for _ in range(3)]
    permits = await asyncio.gather(*(bus.admit(Call()) for _ in range(20) for bus in buses))
    reports = [
        buses[number % 3].settle(permit, Outcome.FAILURE) for number, permit in enumerate(permits)
    ]
    await asyncio.gather(*reports[:-1])
    assert await buses[0].check(Call())
    assert await reports[-1]
    assert (await buses[1].check(Call())).reason == "circuit_open"


async def test_nothing_is_locked_while_a_call_is_under_way(open_valkey: Buses, valkey: RealServer):
    """gobreaker: the lock was held during the user's call, one call at a time for the fleet."""
    buses = [await open_valkey(breaker(), deadline=5) for _ in range(2)]
    async with buses[0].guard(Call()), buses[0].guard(Call()):
        with valkey.counting() as counted:
            async with buses[1].guard(Call()):
                pass
        assert counted["evalsha"] + counted["eval"] in {2, 3}  # admitted, settled; once sent whole
        assert {key for key, _ in valkey.keys("stanchion:*:*:*")} == {
            "stanchion:{default}:circuit:provider:-",
            "stanchion:{default}:circuit.calls:provider:-",
        }


async def test_a_newcomer_changes_nothing_by_joining(valkey: RealServer):
    """danielfm/pybreaker#26, #36: it reset the shared counter, or stamped opened_at anew."""
    policy = breaker(consecutive_failures=3)
    async with memory_bus(policy, url=valkey.url) as first:
        for _ in range(2):
            await first.settle(await first.admit(Call()), Outcome.FAILURE)
        async with memory_bus(policy, url=valkey.url) as second:
            await second.settle(await second.admit(Call()), Outcome.FAILURE)
        assert await state(first) == "open"
        for second in range(29):
            await first.clock.set_us(START_US + second * SECOND)
            async with memory_bus(policy, url=valkey.url) as newcomer:
                await newcomer.clock.set_us(START_US + second * SECOND)
                assert only(await newcomer.check(Call())).retry_after == 30 - second
        await first.clock.set_us(START_US + 30 * SECOND)
        assert await first.check(Call())


async def test_one_bad_worker_does_not_open_the_circuit_for_all(open_valkey: Buses):
    """App-vNext/Polly#287, #259: one node whose own network was bad stopped everybody."""
    policy = breaker(failure_rate=0.5, minimum_calls=4, min_reporters=2)
    bad, good, other = [await open_valkey(policy) for _ in range(3)]
    for _ in range(20):
        await bad.settle(await bad.admit(Call()), Outcome.FAILURE)
    assert await good.check(Call())
    await other.settle(await other.admit(Call()), Outcome.FAILURE)
    assert (await good.check(Call())).reason == "circuit_open"


async def test_no_time_in_the_state_is_that_of_a_process(store_url: str):
    """template-agent#232: time.monotonic() in Redis, stuck open after a restart; stoplight#315."""
    async with memory_bus(breaker(), url=store_url) as bus:
        await bus.clock.advance(1.234567)
        await bus.settle(await recovering(bus), Outcome.FAILURE)
        stored = await fields(bus, CIRCUIT)
        now = bus.clock.now_us
        assert (int(stored["open_until"]), int(stored["changed"])) == (now + 30 * SECOND, now)
        # The server's own clock is months ahead of this one, and so is this process's.
        moments = [int(text) for text in stored.values() if len(text) == 16 and text.isdigit()]
        assert len(moments) >= 4
        assert all(START_US <= moment <= now + 31 * SECOND for moment in moments)


async def test_what_is_told_about_a_circuit_is_what_happened():
    """Told by every process, a change is heard of many times; here the script tells it, once."""
    async with memory_bus(breaker()) as bus:
        await bus.settle(await recovering(bus))
        await bus.recorder.wait_for(CircuitClosed)
        (opened,) = bus.recorder.of(CircuitOpened)
        assert (opened.reason, opened.state) == ("consecutive_failures", CircuitState.OPEN)
        assert opened.open_until is not None
        assert opened.open_until.timestamp() * SECOND == START_US + 30 * SECOND


# ---- results that come late


async def test_a_late_result_changes_no_later_round(store_url: str):
    """denoland/std#7306, gofiber/contrib#2350: it closed a new round, or opened it again."""
    async with memory_bus(breaker(half_open_calls=2, lease="5s"), url=store_url) as bus:
        of_closed = [await bus.admit(Call()) for _ in range(4)]
        probe = await recovering(bus)
        # Those admitted while it was closed close nothing, and open nothing.
        assert (await bus.settle(of_closed[0])).stale == ("provider",)
        assert not await bus.settle(of_closed[1], Outcome.FAILURE)
        assert await state(bus) == "half_open"
        assert await bus.settle(probe, Outcome.FAILURE)
        await bus.clock.advance(30)
        second = await bus.admit(Call())
        assert not await bus.settle(probe)
        third = await bus.admit(Call())
        # A probe of the last round frees no place in this one.
        assert (await bus.check(Call())).reason == "probes_in_use"
        assert await bus.settle(second)
        assert await bus.settle(third)
        assert await state(bus) == "closed"
        # A whole cycle later they still count for nothing.
        for permit in of_closed[2:]:
            assert not await bus.settle(permit, Outcome.FAILURE)
        assert await state(bus) == "closed"
        assert (await fields(bus, CIRCUIT))["streak"] == "0"
