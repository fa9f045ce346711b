"""A circuit that the whole fleet shares: forced, disabled, shadowed, and what is told of it."""

from __future__ import annotations

import pytest

from stanchion import CircuitOpen, CircuitState, Outcome
from stanchion.events import CircuitClosed, CircuitOpened
from stanchion.events.builtin import CircuitChanged
from stanchion.observers import Recorder
from tests.busses import Call, breaker, slots
from tests.policies.circuits import (
    CALL,
    circuit_bus,
    closed_and_untouched,
    fail,
    hearing,
    state,
    succeed,
    vetoed,
)
from tests.waiting import eventually

OPEN, HALF_OPEN, CLOSED = CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED
FORCED_OPEN, DISABLED = CircuitState.FORCED_OPEN, CircuitState.DISABLED

LEGAL = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED), (HALF_OPEN, OPEN)}


async def listener(open_shared, *policies):
    """Open a bus that takes no part; get what it hears from now on."""
    recorder = Recorder(on=CircuitChanged)
    await hearing(await open_shared(*policies, observers=[recorder]))
    return recorder


async def heard(recorder, *states):
    """Wait until these states, and no others, have been heard of."""

    def all_of_them():
        seen = [event.state for event in recorder.of(CircuitChanged)]
        assert seen == list(states)
        return True

    await eventually(all_of_them, what=f"{states} to be told")
    return recorder.of(CircuitChanged)


# ---- by hand


async def test_forced_open_vetoes_everywhere_for_good_until_it_is_lifted(open_shared):
    policy = breaker()
    one, two = await open_shared(policy), await open_shared(policy)
    recorder = await listener(open_shared, policy)
    assert await one.force("provider", FORCED_OPEN) is CLOSED
    decision = await vetoed(two)
    assert (decision.reason, decision.retry_after) == ("forced_open", None)
    with pytest.raises(CircuitOpen):
        await two.admit(CALL, wait=30)
    assert await two.force("provider", CLOSED) is FORCED_OPEN
    await succeed(one)
    events = await heard(recorder, FORCED_OPEN, CLOSED)
    assert [type(event) for event in events] == [CircuitOpened, CircuitClosed]
    assert {event.reason for event in events} == {"forced"}


async def test_no_time_ends_what_was_forced():
    async with circuit_bus(breaker(open_for="1s")) as bus:
        await bus.force("provider", FORCED_OPEN)
        await bus.clock.advance("300d")
        assert (await vetoed(bus)).reason == "forced_open"
        await bus.force("provider", DISABLED)
        await bus.clock.advance("300d")
        await fail(bus, 5)
        assert await bus.check(CALL)


async def test_disabled_admits_everywhere_and_counts_nothing(open_shared):
    policy = breaker(consecutive_failures=1)
    one, two = await open_shared(policy), await open_shared(policy)
    await fail(one)
    assert await one.force("provider", DISABLED) is OPEN
    await fail(two, 10)
    assert await one.check(CALL)
    during = await two.admit(CALL)
    assert await one.force("provider", CLOSED) is DISABLED
    assert await two.settle(during, Outcome.FAILURE)
    assert await closed_and_untouched(one), "what began while it was disabled counts for nothing"
    await fail(two)
    assert not await one.check(CALL)


@pytest.mark.parametrize("forced", [FORCED_OPEN, DISABLED, OPEN, HALF_OPEN, CLOSED])
async def test_forcing_begins_a_round_so_that_earlier_results_count_for_nothing(forced):
    async with circuit_bus(breaker(consecutive_failures=1)) as bus:
        before = await bus.admit(CALL)
        assert await bus.force("provider", forced) is CLOSED
        assert (await bus.settle(before, Outcome.FAILURE)).stale == ("provider",)
        assert await state(bus) is forced


async def test_an_open_circuit_is_closed_by_hand_without_ramp_or_probes():
    async with circuit_bus(breaker(ramp_up="1h", open_for="1h", max_open_for="9h")) as bus:
        await fail(bus, 2)
        assert await bus.force("provider", CLOSED) is OPEN
        for _ in range(30):
            await succeed(bus)
        await bus.force("provider", OPEN)
        assert (await vetoed(bus)).retry_after == 3600


async def test_one_subject_is_forced_and_no_other():
    async with circuit_bus(breaker(by=("tenant", "model"))) as bus:
        await bus.force("provider", FORCED_OPEN, tenant="acme", model="m1")
        assert not await bus.check(Call(tenant="acme", model="m1"))
        assert await bus.check(Call(tenant="acme", model="m2"))
        assert await bus.check(Call(tenant="other", model="m1"))


# ---- shadow


async def test_a_shadowed_circuit_trips_for_all_and_stops_nobody(open_shared):
    shadow = breaker(consecutive_failures=4, mode="shadow")
    one, two = [await open_shared(shadow, slots(limit=1)) for _ in range(2)]
    recorder = await listener(open_shared, shadow)
    await fail(one, 2)
    await fail(two, 2)
    await heard(recorder, OPEN)
    for bus in (one, two):
        decision = await bus.check(CALL)
        assert decision.allowed
        assert decision.permit is not None
        assert [hold.policy for hold in decision.permit.holds] == ["slots"]
        verdict = decision.verdicts[0]
        assert (verdict.allowed, verdict.enforced) == (False, False)
        assert verdict.reason == "circuit_open"
        assert verdict.retry_after == pytest.approx(30, abs=2)
        assert await bus.settle(decision.permit, Outcome.FAILURE)
    strict = await open_shared(breaker(consecutive_failures=4))
    assert (await vetoed(strict)).reason == "circuit_open"


async def test_a_shadowed_circuit_recovers_by_the_calls_that_it_would_have_let_through():
    policy = breaker(mode="shadow", open_for="10s", half_open_calls=2)
    async with circuit_bus(policy) as bus:
        await fail(bus, 2)
        await bus.clock.advance(10)
        decisions = [await bus.check(CALL) for _ in range(4)]
        assert all(decisions)
        reasons = [decision.verdicts[0].reason for decision in decisions]
        assert reasons == ["ok", "ok", "probes_in_use", "probes_in_use"]
        for decision in decisions:
            assert decision.permit is not None
            assert await bus.settle(decision.permit)
        assert await state(bus) is CLOSED


# ---- what is told


async def test_only_legal_transitions_are_told_in_order_and_without_gaps(open_shared):
    policy = breaker(consecutive_failures=1, open_for="10ms", half_open_calls=2)
    one, two = await open_shared(policy), await open_shared(policy)
    recorder = await listener(open_shared, policy)

    async def probing():
        assert await two.peek(CALL)
        return True

    for _ in range(3):
        await fail(one)
        await eventually(probing, interval=0.002)
        await fail(two)
        await eventually(probing, interval=0.002)
        await succeed(one)
        await succeed(two)
    round_trip = (OPEN, HALF_OPEN, OPEN, HALF_OPEN, CLOSED)
    events = await heard(recorder, *round_trip * 3)
    assert {(event.previous, event.state) for event in events} == LEGAL
    assert [event.previous for event in events] == [CLOSED, *(e.state for e in events[:-1])]
    first = events[0]
    for number, event in enumerate(events):
        assert event.seq == first.seq + number
        assert event.generation == first.generation + number
        assert (event.policy, event.subject) == ("provider", "-")
        assert (event.open_until is not None) is (event.state is OPEN)


async def test_a_change_by_hand_is_told_in_the_same_order():
    async with circuit_bus(breaker(consecutive_failures=1, open_for="10s")) as bus:
        forced = (FORCED_OPEN, DISABLED, OPEN, HALF_OPEN, FORCED_OPEN, CLOSED, DISABLED, CLOSED)
        for wanted in forced:
            await bus.force("provider", wanted)
        await fail(bus)
        events = await heard(bus.recorder, *forced, OPEN)
        assert [e.seq - events[0].seq for e in events] == list(range(len(events)))
        assert [e.generation - events[0].generation for e in events] == list(range(len(events)))
        assert [e.previous for e in events] == [CLOSED, *(e.state for e in events[:-1])]


async def test_nothing_is_told_of_what_changes_no_state():
    async with circuit_bus(breaker(consecutive_failures=2, open_for="10s")) as bus:
        await fail(bus)
        await succeed(bus, 3)
        await fail(bus, 2)
        for _ in range(5):
            await vetoed(bus)
            await bus.peek(CALL)
        await bus.clock.advance(10)
        await bus.peek(CALL)
        permit = await bus.admit(CALL)
        for _ in range(5):
            await vetoed(bus)
        await bus.renew(permit)
        await bus.settle(permit)
        await bus.settle(permit)
        await heard(bus.recorder, OPEN, HALF_OPEN, CLOSED)
