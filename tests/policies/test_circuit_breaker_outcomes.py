"""What counts as a failure: by type of error, by predicate, and what never counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from stanchion import CircuitState, Outcome
from stanchion.sync import EventBus as SyncEventBus
from stanchion.testing import memory_bus
from tests.busses import Call, breaker, slots, values
from tests.policies.circuits import CALL, closed_and_untouched, end, state

OPEN, CLOSED = CircuitState.OPEN, CircuitState.CLOSED


class Refused(ConnectionError):
    """What a subclass of a listed error is."""


def once(**fields):
    """Make a breaker that one failure trips."""
    return breaker(consecutive_failures=1, **fields)


async def guarded_block(bus, error=None):
    with suppress(BaseException):
        async with bus.guard(CALL):
            if error is not None:
                raise error


async def guarded_call(bus, result):
    @bus.guarded(Call)
    async def ask(tenant: str):
        return result

    return await ask("acme")


def is_bad(given):
    """Say of a result or an error what it is to the provider's health."""
    if isinstance(given, BaseException):
        return Outcome.NEUTRAL if isinstance(given, KeyError) else isinstance(given, OSError)
    return given in {500, 503}


@pytest.mark.parametrize(
    ("failures", "error", "opens"),
    [
        (None, ValueError(), True),
        (ConnectionError, Refused(), True),
        (ConnectionError, ValueError(), False),
        ((TimeoutError, ConnectionError), Refused(), True),
        ((TimeoutError, ConnectionError), KeyError(), False),
        (is_bad, OSError(), True),
        (is_bad, ValueError(), False),
        (is_bad, KeyError(), False),
    ],
    ids=["any", "subclass", "other", "tuple", "not-in-tuple", "true", "false", "neutral"],
)
async def test_errors_count_by_their_type_or_as_a_predicate_says(failures, error, opens):
    async with memory_bus(once(failures=failures)) as bus:
        await guarded_block(bus, error)
        assert await state(bus) is (OPEN if opens else CLOSED)


@pytest.mark.parametrize(("result", "opens"), [(503, True), (200, False), (None, False)])
async def test_results_count_as_a_predicate_says(result, opens):
    async with memory_bus(once(failures=is_bad)) as bus:
        assert await guarded_call(bus, result) == result
        assert await state(bus) is (OPEN if opens else CLOSED)


def test_results_of_blocking_functions_count_as_a_predicate_says(valkey):
    with SyncEventBus.from_url(valkey.url, policies=[once(failures=is_bad)]) as bus:

        @bus.guarded(Call)
        def ask(tenant: str, status: int) -> int:
            return status

        assert ask("acme", 200) == 200
        assert bus.peek(CALL)
        assert ask("acme", 503) == 503
        assert bus.peek(CALL).reason == "circuit_open"


async def test_an_error_that_is_no_failure_is_an_answer_and_ends_a_streak():
    async with memory_bus(breaker(consecutive_failures=2, failures=ConnectionError)) as bus:
        for error in (Refused(), ValueError(), Refused(), ValueError()):
            await guarded_block(bus, error)
        assert await state(bus) is CLOSED
        await guarded_block(bus, Refused())
        await guarded_block(bus, Refused())
        assert await state(bus) is OPEN


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()], ids=repr
)
async def test_what_stops_the_work_from_outside_is_never_counted(error):
    # Not even where a predicate calls everything a failure.
    policy = once(failures=lambda given: Outcome.FAILURE)
    async with memory_bus(policy, slots(limit=1)) as bus:
        await guarded_block(bus, error)
        assert await closed_and_untouched(bus)
        assert (await values(bus, "slots"))["in_use"] == "0"


async def test_a_cancelled_task_gives_everything_back_and_counts_for_nothing(open_bus):
    bus = await open_bus(once(failures=lambda given: True), slots(limit=1))
    inside = asyncio.Event()

    async def work():
        async with bus.guard(CALL):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    assert not await bus.check(CALL)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await state(bus) is CLOSED
    assert await bus.check(CALL)


async def test_a_timeout_inside_a_guard_is_a_failure_though_it_cancels():
    async with memory_bus(once()) as bus:
        with pytest.raises(TimeoutError):
            async with bus.guard(CALL), asyncio.timeout(0.001):
                await asyncio.Event().wait()
        assert await state(bus) is OPEN


async def test_neutral_results_never_make_up_the_minimum(open_bus):
    bus = await open_bus(breaker(failure_rate=0.1, minimum_calls=3))
    await end(bus, Outcome.NEUTRAL, 10)
    await end(bus, Outcome.FAILURE, 2)
    assert await state(bus) is CLOSED
    assert (await values(bus, "provider"))["window_calls"] == "2"
    await end(bus, Outcome.SUCCESS)
    assert await state(bus) is OPEN


@pytest.mark.parametrize("ending", [ValueError("the work's own"), None], ids=["error", "result"])
async def test_a_predicate_that_raises_holds_up_nothing_and_hides_nothing(ending, caplog):
    def broken(given):
        raise ZeroDivisionError

    async with memory_bus(once(failures=broken), slots(limit=1)) as bus:

        @bus.guarded(Call)
        async def ask(tenant: str):
            if ending is not None:
                raise ending
            return "answer"

        if ending is None:
            assert await ask("acme") == "answer"
        else:
            with pytest.raises(ValueError, match="the work's own"):
                await ask("acme")
        # It says nothing of the provider's health; what was held is given back all the same.
        assert await closed_and_untouched(bus)
        assert (await values(bus, "slots"))["in_use"] == "0"
        assert "provider" in caplog.text
