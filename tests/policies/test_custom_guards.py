"""Guards: arguments bound by name, guards within guards, and the face for code without a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, cast

import pytest

from stanchion import ConcurrencyLimited, ConfigError, Event, Outcome, RateLimited, StanchionError
from stanchion.sync import EventBus as SyncEventBus
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, SettlingCustom, breaker, quota, rate, slots, values
from tests.policies.circuits import CALL


class Order(Event, type="guards:order"):
    """An event with a field that must be given."""

    customer: str
    items: int
    express: bool = False


def heard(**options):
    """Make a custom policy that hears of calls and orders."""
    return SettlingCustom("heard", on=(Call, Order), **options)


def orders(custom):
    """Get what was ordered, by whom, and how."""
    asked = cast("list[Order]", custom.asked)
    return [(order.customer, order.items, order.express) for order in asked]


# ---- arguments


async def test_fields_are_bound_from_arguments_by_name_however_they_are_given():
    custom = heard()
    async with memory_bus(custom) as bus:

        @bus.guarded(Order)
        async def place(basket, items, /, customer="nobody", *rest, express=False, **more):
            return basket, items, customer, rest, express, more

        assert await place("b", 2) == ("b", 2, "nobody", (), False, {})
        assert await place("b", 3, "ann", 7, express=True, gift=1) == (
            *("b", 3, "ann"),
            *((7,), True, {"gift": 1}),
        )
        assert orders(custom) == [("nobody", 2, False), ("ann", 3, True)]
        with pytest.raises(TypeError, match="missing a required argument: 'items'"):
            await place("b")  # pyright: ignore[reportCallIssue]
        assert len(custom.asked) == 2
        assert place.__name__ == "place"


async def test_fields_that_are_no_arguments_are_given_to_the_decorator():
    custom = heard()
    async with memory_bus(custom) as bus:

        @bus.guarded(Order, customer="fixed", express=True)
        async def place(items, express):
            return items

        assert await place(4, express=False) == 4
        assert orders(custom) == [("fixed", 4, False)]


async def test_a_method_is_guarded_like_a_function():
    custom = heard()
    async with memory_bus(custom) as bus:

        class Shop:
            @bus.guarded(Order)
            async def place(self, customer: str, items: int) -> int:
                return items

        assert await Shop().place("ann", items=2) == 2
        assert orders(custom) == [("ann", 2, False)]


async def test_what_cannot_be_bound_is_told_where_it_is_decorated():
    async with memory_bus(heard()) as bus:
        with pytest.raises(ConfigError, match=r"Order needs \['items'\].*no argument of that name"):

            @bus.guarded(Order)
            async def place(customer, count): ...

        with pytest.raises(ConfigError, match=r"guarded field='colour'.*Order has"):
            bus.guarded(Order, colour="red")(place_it)
        with pytest.raises(ConfigError, match="is not an async function"):
            bus.guarded(Order)(cast("Any", lambda customer, items: None))


async def place_it(customer, items): ...


async def test_an_argument_of_a_wrong_type_calls_nothing_and_takes_nothing():
    called = []
    async with memory_bus(slots(on=Order), heard()) as bus:

        @bus.guarded(Order)
        async def place(customer, items):
            called.append(items)

        with pytest.raises(ValueError, match="items"):
            await place("ann", "many")
        assert called == []
        assert [state async for state in bus.inspect()] == []


async def test_what_is_vetoed_is_not_called(open_bus):
    called = []
    bus = await open_bus(rate(limit=1))

    @bus.guarded(Call)
    async def ask(tenant: str) -> None:
        called.append(tenant)

    await ask("acme")
    with pytest.raises(RateLimited):
        await ask("acme")
    assert called == ["acme"]


async def test_the_real_cost_is_taken_from_the_result(open_bus):
    custom = heard()
    bus = await open_bus(quota(), custom)

    @bus.guarded(Call, costs=lambda answer: {"tokens": len(answer)})
    async def ask(tenant: str, tokens: int) -> str:
        return "x" * 77

    await ask("acme", 500)
    fields = await values(bus, "tokens")
    assert (fields["used"], fields["held"]) == ("77", "0")
    assert custom.settled[0][1:] == (Outcome.SUCCESS, {"tokens": 77})


async def test_a_guarded_function_waits_its_turn(open_bus):
    bus = await open_bus(slots(limit=1))
    at_once = 0

    @bus.guarded(Call, wait=20)
    async def ask(tenant: str) -> int:
        nonlocal at_once
        at_once += 1
        seen = at_once
        await asyncio.sleep(0.001)
        at_once -= 1
        return seen

    assert await asyncio.gather(*(ask("acme") for _ in range(8))) == [1] * 8


# ---- how a block ends


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.SUCCESS),
        (ValueError(), Outcome.FAILURE),
        (asyncio.CancelledError(), Outcome.NEUTRAL),
        (KeyboardInterrupt(), Outcome.NEUTRAL),
    ],
    ids=repr,
)
async def test_a_custom_policy_is_told_how_a_guarded_block_ended(error, outcome):
    custom = heard()
    async with memory_bus(quota(), custom) as bus:
        with contextlib.suppress(BaseException):
            async with bus.guard(CALL) as permit:
                permit.charge(tokens=3)
                permit.charge(tokens=4)
                if error is not None:
                    raise error
        assert custom.settled == [(CALL, outcome, {"tokens": 7})]


async def test_guards_within_guards_hold_apart_and_end_inside_out(open_bus):
    custom = heard()
    bus = await open_bus(slots(limit=2), quota(), breaker(consecutive_failures=1), custom)
    outer_call, inner_call = Call(tenant="outer", tokens=100), Call(tenant="inner", tokens=10)
    async with bus.guard(outer_call) as outer:
        with pytest.raises(ConcurrencyLimited):
            async with bus.guard(inner_call) as inner, bus.guard(CALL):
                pytest.fail("a third slot")
        assert inner.id != outer.id
        # The inner block was ended by the veto of the third one, which is an error like any other.
        assert (await bus.check(CALL)).reason == "circuit_open"
        assert (await values(bus, "slots"))["in_use"] == "1"
        outer.charge(tokens=1)
    assert (await values(bus, "slots"))["in_use"] == "0"
    # The inner call failed with nothing reported, so it stays charged what it had reserved.
    assert (await values(bus, "tokens"))["used"] == "11"
    told = [(event.tenant, outcome) for event, outcome, _ in custom.settled]
    assert told[-2:] == [("inner", Outcome.FAILURE), ("outer", Outcome.SUCCESS)]


async def test_guarded_functions_may_call_one_another_as_far_as_there_are_slots():
    async with memory_bus(slots(limit=3)) as bus:

        @bus.guarded(Call)
        async def descend(tokens: int) -> int:
            return 1 + await descend(tokens - 1) if tokens else 0

        assert await descend(2) == 2
        with pytest.raises(ConcurrencyLimited):
            await descend(3)
        assert (await values(bus, "slots"))["in_use"] == "0"


# ---- without a loop


def test_the_blocking_face_has_the_same_verbs(valkey):
    custom = heard()
    policies = [slots(limit=1), quota(), custom]
    with SyncEventBus.from_url(valkey.url, policies=policies) as bus:
        with bus.guard(CALL) as permit:
            permit.charge(tokens=5)
            assert bus.check(CALL).reason == "no_free_slot"
            assert bus.renew(permit)
        with pytest.raises(ZeroDivisionError), bus.guard(CALL):
            raise ZeroDivisionError
        assert custom.outcomes == [Outcome.SUCCESS, Outcome.FAILURE]
        admitted = bus.admit(CALL)
        assert bus.settle(admitted, tokens=9)
        assert bus.settle(admitted).stale == ("slots", "tokens")

        @bus.guarded(Call, costs=lambda answer: {"tokens": answer})
        def ask(tenant: str) -> int:
            return 30

        assert ask("acme") == 30
        used = {state.policy: state.values.get("used") for state in bus.inspect()}
        assert used["tokens"] == str(5 + 1 + 9 + 30)
        with pytest.raises(ConfigError, match=r"is async: use stanchion\.EventBus"):
            bus.guarded(Call)(place_it)


def test_threads_share_the_blocking_face(valkey):
    admitted = []
    with SyncEventBus.from_url(valkey.url, policies=[rate(limit=40, burst=40, per="1h")]) as bus:

        def press():
            admitted.extend(bool(bus.check(CALL)) for _ in range(10))

        threads = [threading.Thread(target=press) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(admitted), sum(admitted)) == (80, 40)


async def test_the_blocking_face_refuses_to_work_inside_a_running_loop():
    text = "an event loop runs here: use stanchion.EventBus"
    bus = SyncEventBus.from_url("memory://", policies=[slots(limit=1)])
    with pytest.raises(ConfigError, match=text):
        bus.open()

    def elsewhere():
        with bus:
            assert bus.check(CALL)
            yield
            # Back in a thread without a loop, it works on.
            assert bus.check(CALL).reason == "no_free_slot"

    steps = elsewhere()
    await asyncio.to_thread(next, steps)
    try:
        for verb in (
            lambda: bus.check(CALL),
            lambda: bus.admit(CALL, wait=1),
            lambda: bus.guard(CALL).__enter__(),
            bus.inspect,
            lambda: bus.reset("slots"),
        ):
            with pytest.raises(ConfigError, match=text):
                verb()
    finally:
        await asyncio.to_thread(next, steps, None)


def test_a_blocking_bus_that_is_not_open_says_so():
    bus = SyncEventBus.from_url("memory://", policies=[Custom()])
    with pytest.raises(StanchionError, match="not open"):
        bus.check(CALL)
    with bus:
        assert bus.check(CALL)
    with pytest.raises(StanchionError, match="not open"):
        bus.check(CALL)
