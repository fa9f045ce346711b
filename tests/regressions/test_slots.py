"""Defects of semaphores and in-flight gauges that users have met elsewhere.

Covered elsewhere in full:
- a holder that was stopped past its lease, or killed: tests/faults/test_lost_leases.py
- cancelling at any moment, over a slow network: tests/faults/test_bad_network.py
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from stanchion.testing import memory_bus
from tests.busses import Call, slots
from tests.regressions.looking import lifetimes, only

if TYPE_CHECKING:
    from tests.busses import Buses
    from tests.servers import RealServer


async def free(bus) -> int | None:
    return only(await bus.peek(Call())).remaining


@pytest.mark.parametrize("ending", ["cancelled", "timed out", "raised", "closed stream"])
async def test_a_stream_that_does_not_end_well_gives_its_slot_back(store_url: str, ending: str):
    """litellm#27955, #20256: cancelled streams and timeouts leaked the in-flight count."""
    async with memory_bus(slots(), url=store_url) as bus:
        started = asyncio.Event()

        async def stream():
            async with bus.guard(Call()):
                started.set()
                for number in range(10_000):
                    yield number
                    if ending == "raised":
                        raise ConnectionError
                    await asyncio.sleep(0.001)

        async def consume() -> None:
            generator = stream()
            try:
                async for _ in generator:
                    if ending == "closed stream":
                        break
            finally:
                await generator.aclose()

        if ending == "timed out":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consume(), 0.05)
        else:
            task = asyncio.create_task(consume())
            await started.wait()
            if ending == "cancelled":
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await free(bus) == 1  # of two, one less that peek asks for
        assert not any("leases" in key for key in await lifetimes(bus))


async def test_a_leak_heals_under_steady_traffic(store_url: str):
    """litellm#28160: each increment renewed the TTL of the gauge, so that a leak never healed."""
    async with memory_bus(slots(limit=2, lease="30s"), url=store_url) as bus:
        leaked = await bus.admit(Call())
        for second in range(30):
            assert await free(bus) == 0, second
            held = await bus.admit(Call())
            assert not await bus.check(Call())
            assert not await bus.check(Call())
            await bus.settle(held)
            await bus.clock.advance(1)
        assert await free(bus) == 1
        assert not await bus.settle(leaked)
        assert await free(bus) == 1


async def test_the_same_slot_is_given_back_once(store_url: str):
    """solid_queue#761: a double release ran a job limited to one eleven times at once."""
    async with memory_bus(slots(limit=1), url=store_url) as bus:
        permit = await bus.admit(Call())
        assert await bus.settle(permit)
        await bus.admit(Call())
        for _ in range(11):
            assert not await bus.settle(permit)
            assert (await bus.check(Call())).reason == "no_free_slot"


async def test_a_release_of_what_has_ended_takes_nothing_from_the_next_holder(store_url: str):
    """solid_queue#761: the same, by a holder that was slower than its lease."""
    async with memory_bus(slots(limit=1, lease="5s"), url=store_url) as bus:
        slow = await bus.admit(Call())
        await bus.clock.advance(5)
        await bus.admit(Call())
        assert (await bus.settle(slow)).stale == ("slots",)
        assert not await bus.renew(slow)
        assert slow.lost
        assert (await bus.check(Call())).reason == "no_free_slot"


async def test_a_blocked_event_loop_does_not_starve_its_leases(
    open_valkey: Buses, valkey: RealServer
):
    """Prefect#21925: renewal ran on the loop that the work had blocked."""
    lease = 0.3
    bus = await open_valkey(slots(limit=1, lease=lease))
    async with bus.guard(Call()) as permit:
        began = time.monotonic()
        while time.monotonic() - began < 3 * lease:
            time.sleep(0.05)  # noqa: ASYNC251 - it is what the test is about
            (end,) = valkey.control.zrange(
                "stanchion:{default}:slots.leases:slots:-", 0, -1, withscores=True
            )
            seconds, micros = valkey.control.time()
            assert float(end[1]) > seconds * 1e6 + micros
        assert not permit.lost
        assert (await bus.check(Call())).reason == "no_free_slot"


async def test_a_weight_is_one_lease_and_leaves_as_a_whole(store_url: str):
    """Semaphores with one entry a unit give part of a weighted holder's slots away."""
    async with memory_bus(slots(limit=10, cost="tokens", lease="10s"), url=store_url) as bus:
        heavy = await bus.admit(Call(tokens=7))
        await bus.clock.advance(5)
        await bus.admit(Call(tokens=3))
        refused = only(await bus.check(Call(tokens=1)))
        assert (refused.reason, refused.retry_after) == ("no_free_slot", 5.0)
        await bus.settle(heavy)
        assert only(await bus.peek(Call(tokens=0))).remaining == 7
