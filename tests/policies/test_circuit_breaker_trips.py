"""What trips a circuit, to the call: rates, streaks, slowness, minimum calls and quorum."""

from __future__ import annotations

import pytest

from stanchion import CircuitOpen, CircuitState, Outcome
from stanchion.events import CircuitOpened
from tests.busses import Call, breaker
from tests.policies.circuits import CALL, circuit_bus, end, fail, state, succeed, take, vetoed

OPEN, CLOSED = CircuitState.OPEN, CircuitState.CLOSED


def rated(**fields):
    """Make a breaker that opens at half of at least four calls failed."""
    return breaker(**{"failure_rate": 0.5, "minimum_calls": 4, "window": "10s", **fields})


# ---- failure rate


@pytest.mark.parametrize("window", ["10s", 4, 100], ids=["time", "four-calls", "hundred-calls"])
async def test_it_opens_with_the_call_that_makes_the_minimum_and_the_rate(window):
    async with circuit_bus(rated(window=window)) as bus:
        await fail(bus, 2)
        await succeed(bus)
        assert await state(bus) is CLOSED, "three calls are below the minimum of four"
        await succeed(bus)
        assert await state(bus) is OPEN, "two of four failed, though the fourth did not"
        opened = await bus.recorder.wait_for(CircuitOpened)
        assert (opened.previous, opened.reason) == (CLOSED, "failure_rate")


@pytest.mark.parametrize("window", ["10s", 10], ids=["time", "calls"])
async def test_it_stays_closed_just_below_the_rate(window):
    async with circuit_bus(rated(failure_rate=0.3, minimum_calls=10, window=window)) as bus:
        await succeed(bus, 8)
        await fail(bus, 2)
        assert await state(bus) is CLOSED, "two of ten failed, and three would have to"
        if window == 10:
            await succeed(bus, 7)
            assert await state(bus) is CLOSED, "the first seven successes have left the window"
        await fail(bus, 1 if window == 10 else 2)
        assert await state(bus) is OPEN


async def test_a_rate_that_no_binary_fraction_meets_is_met_by_the_exact_number_of_calls():
    for failures, rate in ((7, 0.7), (1, 0.1), (3, 0.3), (6, 0.6)):
        async with circuit_bus(rated(failure_rate=rate, minimum_calls=10)) as bus:
            await succeed(bus, 10 - failures)
            await fail(bus, failures - 1) if failures > 1 else None
            assert await state(bus) is CLOSED
            await fail(bus)
            assert await state(bus) is OPEN, rate


async def test_failures_leave_a_time_window_with_it():
    async with circuit_bus(rated()) as bus:
        await fail(bus, 3)
        await bus.clock.advance("9999ms")
        await succeed(bus, 1)
        assert await state(bus) is OPEN
    async with circuit_bus(rated()) as bus:
        under_way = await bus.admit(CALL)
        await fail(bus, 3)
        await bus.clock.advance("10s")
        assert await bus.settle(under_way, Outcome.FAILURE)
        assert await state(bus) is CLOSED, "what it would have made four has just left"
        await fail(bus, 2)
        assert await state(bus) is CLOSED, "the first three have left, three are too few"
        await fail(bus)
        assert await state(bus) is OPEN


async def test_failures_leave_a_window_of_calls_with_newer_calls_and_not_with_time():
    async with circuit_bus(rated(window=4)) as bus:
        await fail(bus)
        await succeed(bus, 3)
        await bus.clock.advance("50m")
        await fail(bus)
        assert await state(bus) is CLOSED, "the oldest failure left as the newest came"
        await fail(bus)
        assert await state(bus) is OPEN, "success, success, failure, failure"


async def test_what_is_still_under_way_counts_for_nothing_yet():
    async with circuit_bus(rated(minimum_calls=2)) as bus:
        permits = [await bus.admit(CALL) for _ in range(5)]
        assert await state(bus) is CLOSED
        await bus.settle(permits[0], Outcome.FAILURE)
        assert await state(bus) is CLOSED
        await bus.settle(permits[0], Outcome.FAILURE)
        assert await state(bus) is CLOSED, "one call is one result, however often it is told"
        await bus.settle(permits[1], Outcome.FAILURE)
        assert await state(bus) is OPEN


async def test_subjects_have_circuits_of_their_own():
    async with circuit_bus(breaker(by="model")) as bus:
        await fail(bus, 2, event=Call(model="m1"))
        assert not await bus.check(Call(model="m1"))
        assert await bus.check(Call(model="m2"))


# ---- consecutive failures


async def test_it_opens_at_so_many_failures_in_a_row_whatever_else_is_in_the_window():
    async with circuit_bus(breaker(consecutive_failures=3)) as bus:
        await succeed(bus, 20)
        await fail(bus, 2)
        await succeed(bus)
        await fail(bus, 2)
        assert await state(bus) is CLOSED, "a success begins the count anew"
        await bus.clock.advance("50m")
        await fail(bus)
        assert await state(bus) is OPEN, "no time ends a streak"
        opened = await bus.recorder.wait_for(CircuitOpened)
        assert opened.reason == "consecutive_failures"


async def test_what_is_neutral_neither_ends_nor_lengthens_a_streak():
    async with circuit_bus(breaker(consecutive_failures=2)) as bus:
        await fail(bus)
        await end(bus, Outcome.NEUTRAL, 5)
        assert await state(bus) is CLOSED
        await fail(bus)
        assert await state(bus) is OPEN


# ---- slow calls


async def test_it_opens_at_the_share_of_slow_calls_though_none_failed():
    slow = breaker(slow_call="2s", slow_call_rate=0.5, minimum_calls=4, window=4)
    async with circuit_bus(slow) as bus:
        await take(bus, 1.999999)
        await take(bus, 1.999999)
        await take(bus, 2.0)
        assert await state(bus) is CLOSED
        await take(bus, 5)
        assert await state(bus) is OPEN, "two of four took two seconds or longer"
        opened = await bus.recorder.wait_for(CircuitOpened)
        assert opened.reason == "slow_call_rate"


async def test_slow_calls_are_timed_by_the_server_from_admission_to_settlement():
    slow = breaker(slow_call="2s", slow_call_rate=1.0, minimum_calls=2)
    async with circuit_bus(slow) as bus:
        permits = [await bus.admit(CALL) for _ in range(2)]
        await bus.clock.advance(2)
        assert all([await bus.settle(permit) for permit in permits])
        assert await state(bus) is OPEN


async def test_slow_successes_do_not_add_to_the_failure_rate():
    both = breaker(failure_rate=0.5, slow_call="2s", slow_call_rate=1.0, minimum_calls=4, window=4)
    async with circuit_bus(both) as bus:
        await take(bus, 3)
        await take(bus, 3)
        await take(bus, 0.1, Outcome.FAILURE)
        await take(bus, 3)
        assert await state(bus) is CLOSED, "a quarter failed, three quarters were slow"
        await take(bus, 3, Outcome.FAILURE)
        assert await state(bus) is OPEN
        opened = await bus.recorder.wait_for(CircuitOpened)
        assert opened.reason == "failure_rate", "two of the last four failed, one of them slowly"


# ---- a quorum of reporters


@pytest.mark.parametrize("window", ["30s", 100], ids=["time", "calls"])
async def test_it_opens_only_once_enough_workers_saw_failures(open_shared, window):
    policy = rated(min_reporters=3, window=window)
    first, second, third = [await open_shared(policy) for _ in range(3)]
    await fail(first, 10)
    assert await state(first) is CLOSED, "one bad node poisons nobody else"
    await fail(second)
    await succeed(third, 2)
    assert await state(first) is CLOSED, "a success reports nothing"
    await fail(third)
    for bus in (first, second, third):
        assert (await vetoed(bus)).reason == "circuit_open"


async def test_workers_count_by_what_they_saw_since_the_circuit_last_changed(open_valkey):
    policy = breaker(consecutive_failures=1, min_reporters=2)
    first, second = await open_valkey(policy), await open_valkey(policy)
    await fail(first)
    await fail(second)
    assert await state(first) is OPEN
    await first.force("provider", CLOSED)
    await fail(second)
    assert await state(first) is CLOSED, "what the first saw belongs to the round before"
    await fail(first)
    assert await state(first) is OPEN


async def test_four_workers_trip_it_together_where_none_alone_made_enough_calls(open_shared):
    policy = rated(minimum_calls=8, window="60s")
    buses = [await open_shared(policy) for _ in range(4)]
    for bus in buses:
        await fail(bus)
        await succeed(bus)
    with pytest.raises(CircuitOpen):
        await buses[0].admit(CALL)
    assert (await buses[3].peek(CALL)).reason == "circuit_open"
