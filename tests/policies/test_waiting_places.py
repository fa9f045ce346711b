"""Places in line: kept and passed on without polling, and given up without a hole."""

from __future__ import annotations

import asyncio

import pytest

from stanchion import ConcurrencyLimited, StanchionError
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, calls_of_scripts, rate, slots, values, warm
from tests.policies.lines import CALL, ORDER, SOON, in_line, taking

# ---- no polling


async def test_one_who_waits_for_two_caps_passes_on_what_the_first_has_free(open_valkey, valkey):
    policies = [slots("wide", limit=2), slots(limit=1, by="tenant")]
    bus, other = await open_valkey(*policies), await open_valkey(*policies)
    await warm(bus, valkey, CALL)
    own, wide = (f"stanchion:{{default}}:slots.order:{key}" for key in ("slots:acme", "wide:-"))
    held = await bus.admit(CALL)
    both = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, own)
    taken = await other.admit(Call(tenant="second"))
    # Both caps are in its way by now; it learns of the wide one with its next sign of life.
    await in_line(bus, 1, wide)
    one = asyncio.create_task(bus.admit(Call(tenant="third"), wait=30))
    await in_line(bus, 2, wide)
    with valkey.counting() as counted:
        async with taking(0, SOON):
            await other.settle(taken)
            await one
    assert calls_of_scripts(counted) <= 8
    async with taking(0, SOON):
        await bus.settle(held)
        await both


async def test_nobody_is_woken_while_nothing_comes_free(open_valkey, valkey):
    bus = await open_valkey(
        slots("wide", limit=3, cost="tokens"), slots(limit=1, by="tenant"), rate(limit=100)
    )
    await warm(bus, valkey, CALL)
    for tenant in ("acme", "second"):
        await bus.admit(Call(tenant=tenant))
    own, wide = (f"stanchion:{{default}}:slots.order:{key}" for key in ("slots:acme", "wide:-"))
    # The first could have the wide cap's last slot at any time, and is no reason to wake the other.
    waits = [asyncio.create_task(bus.admit(CALL, wait=30))]
    await in_line(bus, 1, own)
    waits.append(asyncio.create_task(bus.admit(Call(tenant="third", tokens=2), wait=30)))
    await in_line(bus, 1, wide)
    await asyncio.sleep(0.2)
    with valkey.counting() as counted:
        await asyncio.sleep(1.2)
    assert counted["publish"] == 0
    assert 1 <= calls_of_scripts(counted) <= 4
    for waiting in waits:
        waiting.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


@pytest.mark.parametrize("limit", [9, 1])
async def test_waiters_refused_behind_a_custom_policy_ask_seldom_too(open_valkey, valkey, limit):
    last = slots(limit=1, priority=3)
    policies = slots("first", limit=limit, priority=1), Custom(priority=2), last
    buses = [await open_valkey(*policies) for _ in range(2)]
    holder = await (await open_valkey(last)).admit(CALL)
    waits = [asyncio.create_task(bus.admit(CALL, wait=30)) for bus in (*buses, buses[0])]
    await asyncio.sleep(0.2)
    with valkey.counting() as counted:
        await asyncio.sleep(1.2)
    print(f"\nthree waiters behind a custom policy: {calls_of_scripts(counted)} calls in 1.2 s")
    assert calls_of_scripts(counted) <= 40
    async with taking(0, SOON):
        await buses[0].settle(holder)
        done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    for waiting in waits:
        waiting.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def test_many_who_wait_for_a_rate_ask_when_it_has_room_and_not_before(open_valkey, valkey):
    buses = [await open_valkey(rate(limit=1, per="50ms")) for _ in range(2)]
    for bus in buses:
        await warm(bus, valkey, CALL)
    crowd = 20
    with valkey.counting() as counted:
        waits = [buses[number % 2].admit(CALL, wait=30) for number in range(crowd)]
        await asyncio.gather(*waits)
    told = calls_of_scripts(counted)
    print(f"\n{crowd} waiters for a rate in two processes: {told} script calls")
    assert told <= 6 * crowd


async def test_many_who_wait_ask_the_server_seldom(open_valkey, valkey):
    buses = [await open_valkey(slots(limit=1)) for _ in range(2)]
    for bus in buses:
        await warm(bus, valkey, CALL)
    crowd, span = 20, 1.5
    holder = await buses[0].admit(CALL)
    with valkey.counting() as joining:
        group = [
            asyncio.create_task(buses[number % 2].admit(CALL, wait=60)) for number in range(crowd)
        ]
        for waiting in group:
            waiting.set_name("waiter")
        await in_line(buses[0], crowd)
        await asyncio.sleep(0.2)
    with valkey.counting() as idle:
        await asyncio.sleep(span)
    with valkey.counting() as serving:
        permit = holder
        for _ in range(crowd):
            await buses[0].settle(permit)
            done, _ = await asyncio.wait(
                [task for task in group if task.get_name() == "waiter"],
                return_when=asyncio.FIRST_COMPLETED,
                timeout=SOON,
            )
            (task,) = done
            task.set_name("served")
            permit = task.result()
    await buses[0].settle(permit)
    told = [calls_of_scripts(counted) for counted in (joining, idle, serving)]
    print(f"\n{crowd} waiters: {told} script calls to join, in {span} s, and to serve all")
    # Two tries each to join; a sign of life a second; a few calls for each that is served.
    assert told[0] <= 2 * crowd
    assert told[1] <= crowd * (span + 1)
    assert told[2] <= 6 * crowd


# ---- those who give up


async def test_a_wait_that_ended_leaves_no_hole(open_shared):
    one, two = await open_shared(slots(limit=1)), await open_shared(slots(limit=1))
    holder = await one.admit(CALL)
    short = asyncio.create_task(one.admit(CALL, wait=0.2))
    await in_line(one, 1)
    long = asyncio.create_task(two.admit(CALL, wait=30))
    await in_line(one, 2)
    with pytest.raises(ConcurrencyLimited):
        await short
    await in_line(one, 1)
    async with taking(0, SOON):
        await one.settle(holder)
        await long


async def test_cancelling_gives_the_place_back_and_wakes_the_next(open_shared):
    one, two = (
        await open_shared(slots(limit=2, cost="tokens")),
        await open_shared(slots(limit=2, cost="tokens")),
    )
    await one.admit(Call(tokens=1))
    # Two slots are not free, one is: only those who came first keep the other out.
    heavy = asyncio.create_task(one.admit(Call(tokens=2), wait=30))
    await in_line(one, 1)
    light = asyncio.create_task(two.admit(Call(tokens=1), wait=30))
    await in_line(one, 2)
    async with taking(0, SOON):
        heavy.cancel()
        assert await light
    assert heavy.cancelled() or isinstance(
        (await asyncio.gather(heavy, return_exceptions=True))[0], asyncio.CancelledError
    )
    await in_line(one, 0)


async def test_a_cancelled_waiter_in_any_turn_of_the_loop_leaves_nothing():
    async with memory_bus(slots(limit=1)) as bus:
        for turns in range(40):
            holder = await bus.admit(CALL)
            waiting = asyncio.create_task(bus.admit(CALL, wait=30))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await in_line(bus, 0, ORDER.replace("default", "test"))
            assert await bus.settle(holder)


async def test_cancelled_in_any_turn_of_the_loop_while_its_turn_comes_it_takes_nothing():
    order = ORDER.replace("default", "test")

    async def wait_and_work(bus):
        async with bus.guard(CALL, wait=30):
            await asyncio.Event().wait()

    async with memory_bus(slots(limit=1)) as bus:
        for turns in range(30):
            holder = await bus.admit(CALL)
            waiting = asyncio.create_task(wait_and_work(bus))
            await in_line(bus, 1, order)
            settling = asyncio.create_task(bus.settle(holder))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, settling, return_exceptions=True)
            await in_line(bus, 0, order)
            # What came too late for the one that was cancelled is given back by itself.
            again = await bus.admit(CALL, wait=5)
            assert await bus.settle(again)
        assert (await values(bus, "slots"))["in_use"] == "0"


@pytest.mark.parametrize("cancelled", [True, False])
async def test_closing_a_bus_gives_up_the_places_of_its_waiters(open_valkey, cancelled):
    one = await open_valkey(slots(limit=1))
    await one.admit(CALL)
    two = await open_valkey(slots(limit=1))
    waiting = asyncio.create_task(two.admit(CALL, wait=30))
    await in_line(one, 1)
    # It sleeps by then, rather than still being about to.
    await asyncio.sleep(0.1)
    if cancelled:
        waiting.cancel()
    await two.close()
    await in_line(one, 0)
    with pytest.raises(asyncio.CancelledError if cancelled else StanchionError):
        await waiting
