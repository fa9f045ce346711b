"""Defects of waiting for a limit that users have met elsewhere."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.busses import Call, calls_of_scripts, command, rate, slots
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus, Permit
    from tests.busses import Buses
    from tests.servers import RealServer

ORDER = "stanchion:{default}:slots.order:slots:-"


async def in_line(bus: EventBus, count: int) -> list[str]:
    """Wait until so many stand in line; get who, in the order in which they are to be served."""

    async def all_there() -> bool:
        return await command(bus, "ZCARD", ORDER) == count

    await eventually(all_there)
    return [waiter.decode() for waiter in await command(bus, "ZRANGE", ORDER, "0", "-1")]


async def test_waiters_are_served_in_order_and_none_starves(open_shared: Buses, server: RealServer):
    """mperham/sidekiq#5315: a hundred were woken at the same time, and some were never served."""
    buses = [await open_shared(slots(limit=1), deadline=5) for _ in range(3)]
    holder = await buses[0].admit(Call())

    async def work(bus: EventBus) -> Permit:
        permit = await bus.admit(Call(), wait=20)
        await bus.settle(permit)
        return permit

    waiting = [asyncio.create_task(work(bus)) for _ in range(10) for bus in buses]
    due = await in_line(buses[0], 30)
    with server.counting() as counted:
        await buses[0].settle(holder)
        served = await asyncio.gather(*waiting)
    served.sort(key=lambda permit: permit.admitted_us)
    assert [permit.id for permit in served] == due
    # Each that is admitted or leaves wakes the first one of each process, and not everybody.
    assert calls_of_scripts(counted) <= 30 * 2 * (1 + len(buses))


async def test_each_waiter_for_a_rate_has_a_time_of_its_own(open_valkey: Buses):
    """mperham/sidekiq#5315: all were told the same time to try again."""
    bus = await open_valkey(rate(limit=50, per="1s", burst=1), deadline=5)
    assert await bus.check(Call())
    permits = await asyncio.gather(*(bus.admit(Call(), wait=10) for _ in range(15)))
    admitted = [permit.admitted_us for permit in permits]
    assert admitted == sorted(admitted)
    assert all(later - one >= 20_000 for one, later in pairwise(admitted))


async def test_who_waits_for_a_slot_is_woken_and_does_not_poll(
    open_valkey: Buses, valkey: RealServer
):
    """openlinker#2019: a semaphore polled every 200 ms cost two thirds of the throughput."""
    first, second = [await open_valkey(slots(limit=1), deadline=5) for _ in range(2)]
    holder = await first.admit(Call())
    began = asyncio.get_running_loop().time()
    waiting = [asyncio.create_task(second.admit(Call(), wait=20)) for _ in range(5)]
    await in_line(first, 5)

    def listening() -> bool:
        return "stanchion:{default}:wake" in valkey.control.pubsub_channels()

    await eventually(listening)
    before = valkey.commandstats()
    quiet = False
    while not quiet:
        # Silence cannot be waited for: it is what does not happen within half a second.
        await asyncio.sleep(0.5)
        now = valkey.commandstats()
        quiet = calls_of_scripts(now - before) == 0
        before = now
        assert asyncio.get_running_loop().time() - began < 5
    for task in waiting:
        # Sooner than the next sign of life, which is due after a second.
        released = asyncio.get_running_loop().time()
        await (first if task is waiting[0] else second).settle(holder)
        holder = await asyncio.wait_for(task, 5)
        assert asyncio.get_running_loop().time() - released < 0.4
    await second.settle(holder)


async def test_a_waiter_that_gives_up_is_not_waited_for(open_valkey: Buses):
    """mperham/sidekiq#5315: a slot reserved for one that had gone was lost to all others."""
    bus = await open_valkey(slots(limit=1), deadline=5)
    holder = await bus.admit(Call())
    waiting = [asyncio.create_task(bus.admit(Call(), wait=20)) for _ in range(3)]
    await in_line(bus, 3)
    for task in waiting[:2]:
        task.cancel()
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    await in_line(bus, 1)
    await bus.settle(holder)
    await bus.settle(await asyncio.wait_for(waiting[2], 5))
    assert await bus.check(Call())
