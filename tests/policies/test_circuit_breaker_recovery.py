"""How a circuit comes back: open times, rationed probes under leases, rounds, and the ramp."""

from __future__ import annotations

import asyncio
import math

import pytest

from stanchion import CircuitState, Outcome
from stanchion.testing import START_US, memory_bus
from tests.busses import Call, breaker, slots, values
from tests.policies.circuits import CALL, fail, state, succeed, vetoed

OPEN, HALF_OPEN, CLOSED = CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED


def once(**fields):
    """Make a breaker that one failure trips, for ten seconds."""
    return breaker(**{"consecutive_failures": 1, "open_for": "10s", "lease": "5s", **fields})


async def reopen(bus):
    """Wait until an open circuit lets a probe in, and fail it; get for how long it was open."""
    wait = (await vetoed(bus)).retry_after
    assert wait is not None
    await bus.clock.advance(wait)
    await fail(bus)
    assert await state(bus) is OPEN
    return wait


async def half_open(bus):
    """Trip it and let the open time pass; the next admission is a probe."""
    await fail(bus)
    await bus.clock.advance((await vetoed(bus)).retry_after)


# ---- how long it is open


async def test_an_open_circuit_says_to_the_microsecond_when_it_will_admit():
    async with memory_bus(once()) as bus:
        await bus.clock.advance(0.123457)
        await fail(bus)
        assert (await vetoed(bus)).retry_after == 10.0
        await bus.clock.advance(3.000001)
        decision = await vetoed(bus)
        assert decision.retry_after == decision.verdicts[0].reset_after == 6.999999
        end = START_US + 10_123_457
        await bus.clock.set_us(end - 1)
        assert (await vetoed(bus)).retry_after == 0.000001
        await bus.clock.set_us(end)
        assert await bus.peek(CALL)
        assert await state(bus) is OPEN, "a look changes nothing"
        assert await bus.check(CALL)
        assert await state(bus) is HALF_OPEN


async def test_each_time_that_it_reopens_it_stays_open_for_twice_as_long_up_to_the_cap():
    async with memory_bus(once(max_open_for="70s")) as bus:
        await fail(bus)
        assert [await reopen(bus) for _ in range(5)] == [10, 20, 40, 70, 70]
        await bus.clock.advance(70)
        await succeed(bus)
        assert await state(bus) is CLOSED
        await fail(bus)
        assert (await vetoed(bus)).retry_after == 10, "closing begins the doubling anew"


async def test_without_a_cap_it_is_open_for_the_same_time_each_time():
    async with memory_bus(once()) as bus:
        await fail(bus)
        assert [await reopen(bus) for _ in range(3)] == [10, 10, 10]


async def test_doubling_goes_on_for_ever_without_running_out_of_numbers():
    async with memory_bus(once(open_for="1ms", max_open_for="30d")) as bus:
        await fail(bus)
        waits = [await reopen(bus) for _ in range(45)]
        assert waits == [min(2**n / 1000, 30 * 86400) for n in range(45)]


async def test_jitter_only_lengthens_and_stays_within_its_share():
    policy = once(by="model", jitter=0.5, max_open_for="25s")
    async with memory_bus(policy) as bus:
        for floor, ceiling in ((10, 15), (20, 30), (25, 37.5)):
            waits: list[float] = []
            for number in range(28):
                event = Call(model=f"m{number}")
                await fail(bus, event=event)
                waits.append((await vetoed(bus, event)).retry_after or 0)
            assert all(floor <= wait < ceiling for wait in waits), (min(waits), max(waits))
            # Draws that all fall into one half: once in a hundred million.
            middle = (floor + ceiling) / 2
            assert min(waits) < middle < max(waits)
            await bus.clock.advance(ceiling)


# ---- probes


@pytest.mark.parametrize("ration", [1, 3])
async def test_probes_are_rationed_over_all_workers(open_shared, ration):
    policy = breaker(consecutive_failures=1, half_open_calls=ration)
    buses = [await open_shared(policy) for _ in range(6)]
    await buses[0].force("provider", HALF_OPEN)
    decisions = await asyncio.gather(*(bus.check(CALL) for bus in buses for _ in range(5)))
    admitted = [decision for decision in decisions if decision]
    assert len(admitted) == ration
    refused = [decision for decision in decisions if not decision]
    assert {decision.reason for decision in refused} == {"probes_in_use"}
    verdict = refused[-1].verdicts[0]
    assert (verdict.limit, verdict.remaining) == (ration, 0)
    for decision in admitted[:-1]:
        assert await buses[-1].settle(decision.permit)
        assert not await buses[0].check(CALL), "what has passed stays part of the ration"
        assert await state(buses[1]) is HALF_OPEN
    assert await buses[-1].settle(admitted[-1].permit)
    assert await state(buses[1]) is CLOSED
    assert await buses[0].check(CALL)


async def test_one_probe_that_fails_opens_it_again_whatever_the_others_do():
    async with memory_bus(once(half_open_calls=3)) as bus:
        await half_open(bus)
        permits = [await bus.admit(CALL) for _ in range(3)]
        assert await bus.settle(permits[0])
        assert await bus.settle(permits[1], Outcome.FAILURE)
        assert await state(bus) is OPEN
        assert (await bus.settle(permits[2])).stale == ("provider",)
        assert await state(bus) is OPEN


async def test_a_probe_that_is_slow_opens_it_again_where_slowness_trips():
    policy = once(slow_call="2s", slow_call_rate=0.5)
    async with memory_bus(policy) as bus:
        await half_open(bus)
        permit = await bus.admit(CALL)
        await bus.clock.advance(2)
        assert await bus.settle(permit)
        assert await state(bus) is OPEN


async def test_a_probe_that_says_nothing_gives_its_place_back_at_once():
    async with memory_bus(once()) as bus:
        await half_open(bus)
        for _ in range(3):
            permit = await bus.admit(CALL)
            assert (await vetoed(bus)).reason == "probes_in_use"
            assert await bus.settle(permit, Outcome.NEUTRAL)
        assert await state(bus) is HALF_OPEN
        await succeed(bus)
        assert await state(bus) is CLOSED


async def test_a_lost_probe_comes_back_when_its_lease_ends_under_steady_traffic_too():
    async with memory_bus(once()) as bus:
        await half_open(bus)
        lost = await bus.admit(CALL)
        for tick in range(50):
            decision = await vetoed(bus)
            assert decision.reason == "probes_in_use"
            assert decision.retry_after == pytest.approx(5 - tick / 10, abs=1e-9)
            await bus.clock.advance(0.1)
        successor = await bus.admit(CALL)
        assert (await bus.settle(lost, Outcome.FAILURE)).stale == ("provider",)
        assert await state(bus) is HALF_OPEN, "whoever comes back late decides nothing"
        assert await bus.settle(successor)
        assert await state(bus) is CLOSED


async def test_a_lost_probe_comes_back_in_real_time_while_two_workers_press(open_shared):
    policy = once(lease="300ms")
    one, two = await open_shared(policy), await open_shared(policy)
    await one.force("provider", HALF_OPEN)
    lost = await one.admit(CALL)
    denied = 0
    while not (found := [d for d in await asyncio.gather(one.check(CALL), two.check(CALL)) if d]):
        denied += 1
        await asyncio.sleep(0.002)
    assert denied > 10
    assert len(found) == 1
    took = found[0].permit.admitted_us - lost.admitted_us
    assert 300_000 <= took < 600_000, took


async def test_a_probe_that_is_renewed_keeps_its_place():
    async with memory_bus(once()) as bus:
        await half_open(bus)
        permit = await bus.admit(CALL)
        for _ in range(4):
            await bus.clock.advance(4)
            assert (await vetoed(bus)).retry_after == 1
            assert await bus.renew(permit)
            assert (await vetoed(bus)).retry_after == 5
        await bus.clock.advance(5)
        assert not await bus.renew(permit), "a lease that has ended stays ended"
        assert permit.lost
        assert await bus.check(CALL)


async def test_a_guard_keeps_its_probe_for_longer_than_a_lease(open_valkey):
    policy = once(lease="200ms")
    one, two = await open_valkey(policy), await open_valkey(policy)
    await one.force("provider", HALF_OPEN)
    async with one.guard(CALL) as permit:
        ends = permit.admitted_us + 800_000
        while (decision := await two.check(CALL)).decided_at.timestamp() * 1e6 < ends:
            assert decision.reason == "probes_in_use"
            await asyncio.sleep(0.01)
    assert not permit.lost
    assert await state(two) is CLOSED


async def test_a_ration_that_is_in_use_says_when_the_next_probe_is_back():
    async with memory_bus(once(half_open_calls=2)) as bus:
        await half_open(bus)
        await bus.admit(CALL)
        await bus.clock.advance(2)
        await bus.admit(CALL)
        assert (await vetoed(bus)).retry_after == 3
        await bus.clock.advance(3)
        assert await bus.check(CALL)
        assert (await vetoed(bus)).retry_after == 2


async def test_probes_are_taken_only_by_what_every_policy_lets_pass():
    async with memory_bus(slots(limit=1, by="tenant"), once()) as bus:
        await bus.admit(CALL)
        await fail(bus, event=Call(tenant="other"))
        await bus.clock.advance(10)
        assert (await vetoed(bus)).policy == "slots"
        assert await state(bus) is OPEN, "who was vetoed by another policy began no probing"
        assert await bus.check(Call(tenant="third"))
        assert await state(bus) is HALF_OPEN


# ---- rounds


async def test_late_results_of_an_earlier_round_count_for_nothing():
    async with memory_bus(once(half_open_calls=2)) as bus:
        closed = [await bus.admit(CALL) for _ in range(4)]
        await half_open(bus)
        assert (await bus.settle(closed[0])).stale == ("provider",)
        probe = await bus.admit(CALL)
        assert await state(bus) is HALF_OPEN
        assert not await bus.settle(closed[1]), "a success of the closed round is no probe's"
        assert (await values(bus, "provider"))["passed"] == "0"
        await succeed(bus)
        assert await bus.settle(probe)
        assert await state(bus) is CLOSED
        assert not await bus.settle(closed[2], Outcome.FAILURE)
        assert not await bus.settle(probe, Outcome.FAILURE)
        assert await state(bus) is CLOSED, "nor does it trip the next closed round"
        await half_open(bus)
        assert not await bus.settle(closed[3], Outcome.FAILURE)
        assert (await bus.check(CALL)).allowed


async def test_a_late_probe_decides_nothing_in_a_later_half_open_round():
    async with memory_bus(once(half_open_calls=2, lease="1h")) as bus:
        await half_open(bus)
        late = await bus.admit(CALL)
        await fail(bus)
        await bus.clock.advance(10)
        await succeed(bus)
        for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
            assert (await bus.settle(late, outcome)).stale == ("provider",)
            assert not await bus.renew(late)
            assert await state(bus) is HALF_OPEN
        await succeed(bus)
        assert await state(bus) is CLOSED


# ---- ramp-up


async def admitted_share(bus, asked=1000):
    decisions = await asyncio.gather(*(bus.peek(CALL) for _ in range(asked)))
    refused = [decision for decision in decisions if not decision]
    assert {decision.reason for decision in refused} <= {"ramping_up"}
    left = START_US + 110_000_000 - bus.clock.now_us
    assert all(0 < decision.retry_after <= left / 1e6 for decision in refused)
    return 1 - len(refused) / asked


async def test_after_closing_a_growing_share_is_admitted():
    async with memory_bus(once(ramp_up="100s")) as bus:
        assert await admitted_share(bus, 50) == 1, "before it was ever open there is no ramp"
        await half_open(bus)
        await succeed(bus)
        for wanted in (0.1, 0.4, 0.7):
            # Six standard deviations: by chance alone, once in 500 million runs.
            margin = 6 * math.sqrt(wanted * (1 - wanted) / 1000)
            assert await admitted_share(bus) == pytest.approx(wanted, abs=margin)
            await bus.clock.advance(100 / 3)
        await bus.clock.set_us(START_US + 110_000_000)
        assert await admitted_share(bus) == 1
