"""First come, first served: across buses and processes, whoever dies, stands still or barges in."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import AsyncExitStack
from typing import cast

from stanchion.sync import EventBus as SyncEventBus
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, rate, slots
from tests.policies.lines import CALL, another_process, go, in_line, line_of, standing

# For so long a place is kept without a sign of life; a dead waiter is passed over by then.
PLACE = 3.0


async def work(bus, name, served):
    async with bus.guard(CALL, wait=30):
        served.append(name)


async def test_waiters_of_two_buses_are_served_in_the_order_in_which_they_came(open_shared):
    buses = [await open_shared(slots(limit=1)) for _ in range(2)]
    served: list[int] = []
    async with asyncio.TaskGroup() as group:
        holder = await buses[0].admit(CALL)
        for number, bus in enumerate(buses[turn] for turn in (0, 1, 1, 0, 1, 0, 0, 0, 1, 1)):
            group.create_task(work(bus, number, served))
            await in_line(bus, number + 1)
        await buses[1].settle(holder)
    assert served == list(range(10))
    assert await standing(buses[0]) == 0


async def test_waiters_of_several_processes_are_served_in_the_order_in_which_they_came(
    open_valkey, valkey
):
    bus = await open_valkey(slots(limit=1))
    holder = await bus.admit(CALL)
    async with AsyncExitStack() as stack:
        starting = [another_process(valkey.url, name) for name in "abc"]
        first, second, third = await asyncio.gather(*map(stack.enter_async_context, starting))
        own: list[str] = []
        task = None
        order = [first, None, second, third]
        for number, process in enumerate(order):
            if process is None:
                task = asyncio.create_task(work(bus, "own", own))
            else:
                await go(process)
            await in_line(bus, number + 1, timeout=10)
        await bus.settle(holder)
        told = [await line_of(process) for process in (first, second, third)]
        assert task is not None
        await task
    assert [said["name"] for said in told] == ["a", "b", "c"]
    stamps = [cast("int", said["at"]) for said in told]
    assert stamps == sorted(stamps)
    assert own == ["own"]


async def test_a_waiter_killed_with_its_process_leaves_no_hole(open_valkey, valkey):
    bus = await open_valkey(slots(limit=1))
    holder = await bus.admit(CALL)
    async with another_process(valkey.url, "killed") as killed:
        await go(killed)
        await in_line(bus, 1, timeout=10)
        behind = asyncio.create_task(bus.admit(CALL, wait=30))
        await in_line(bus, 2)
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        began = time.monotonic()
        await bus.settle(holder)
        assert await behind
    assert time.monotonic() - began < PLACE + 1.5
    assert await standing(bus) == 0


async def test_who_does_not_wait_cannot_pass_those_who_do(open_shared):
    one, two = await open_shared(slots(limit=2)), await open_shared(slots(limit=2))
    first, _ = await one.admit(CALL), await one.admit(CALL)
    waiting = asyncio.create_task(one.admit(CALL, wait=30))
    await in_line(one, 1)
    assert await two.settle(first)
    refused = [await two.check(CALL) for _ in range(3)]
    assert not any(refused)
    assert await waiting


async def test_a_heavy_waiter_is_not_starved_by_light_ones(open_valkey):
    bus = await open_valkey(slots(limit=3, cost="tokens"))
    light = [await bus.admit(Call(tokens=1)) for _ in range(2)]
    heavy = asyncio.create_task(bus.admit(Call(tokens=3), wait=30))
    await in_line(bus, 1)
    queued = await bus.check(Call(tokens=1))
    assert (queued.reason, queued.verdicts[0].remaining) == ("queued", 1)
    assert 0 < (queued.retry_after or 0) <= PLACE
    behind = asyncio.create_task(bus.admit(Call(tokens=1), wait=30))
    await in_line(bus, 2)
    for permit in light:
        assert not heavy.done()
        await bus.settle(permit)
    permit = await heavy
    assert not behind.done()
    await bus.settle(permit)
    assert await behind


async def test_a_rate_serves_its_waiters_in_order_and_in_the_ideal_time(open_valkey):
    crowd = 12
    buses = [await open_valkey(rate(limit=1, per="50ms")) for _ in range(3)]
    order = "stanchion:{default}:rate.order:calls:-"
    first = await buses[0].admit(CALL)
    tasks = []
    for number in range(crowd):
        tasks.append(asyncio.create_task(buses[number % 3].admit(CALL, wait=30)))
        # Tickets are told apart by the time at which they were drawn.
        await asyncio.sleep(0.003)
    stamps = [(await task).admitted_us - first.admitted_us for task in tasks]
    assert stamps == sorted(stamps)
    ideal = crowd * 50_000
    assert ideal <= stamps[-1] < ideal * 1.25 + 50_000, stamps
    assert await standing(buses[0], order) == 0


def test_threads_of_the_blocking_face_wait_their_turn(valkey):
    served: list[int] = []
    with SyncEventBus.from_url(valkey.url, policies=[slots(limit=1)]) as bus:

        def wait_for_it(number: int) -> None:
            with bus.guard(CALL, wait=20):
                served.append(number)

        threads = [threading.Thread(target=wait_for_it, args=(number,)) for number in range(4)]
        with bus.guard(CALL):
            for number, thread in enumerate(threads):
                thread.start()
                key = "stanchion:{default}:slots.order:slots:-"
                ends = time.monotonic() + 5
                while valkey.control.zcard(key) != number + 1:
                    assert time.monotonic() < ends
        for thread in threads:
            thread.join(20)
    assert served == [0, 1, 2, 3]


async def test_waiting_for_one_subject_holds_up_no_other():
    async with memory_bus(slots(limit=1, by="tenant"), Custom()) as bus:
        await bus.admit(CALL)
        waiting = asyncio.create_task(bus.admit(CALL, wait=30))
        await in_line(bus, 1, "stanchion:{test}:slots.order:slots:acme")
        assert await bus.check(Call(tenant="other"))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
