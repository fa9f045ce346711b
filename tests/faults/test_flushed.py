"""Somebody empties the server while it is in use: its scripts, or all that it knows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.faults.calls import Call, bus_on, charged, in_use, quota, rate, slots

if TYPE_CHECKING:
    from tests.servers import RealServer

WORKERS = 20


async def test_flushing_scripts_under_load_denies_nobody_and_counts_exactly(server: RealServer):
    """SCRIPT FLUSH in a loop: what was not found was not run, and is sent whole."""
    rounds = 30
    over = asyncio.Event()
    policies = [rate(), quota(), slots()]
    async with bus_on(server.url, policies, deadline=5) as bus, server.client() as other:

        async def work() -> None:
            for _ in range(rounds):
                permit = (await bus.check(Call())).permit
                assert permit is not None
                assert await bus.settle(permit, tokens=3)

        async def flush() -> None:
            while not over.is_set():
                await other.execute_command("SCRIPT", "FLUSH")

        flushing = asyncio.create_task(flush())
        with server.counting() as counted:
            await asyncio.gather(*(work() for _ in range(WORKERS)))
            over.set()
            await flushing
        assert charged(server) == 3 * rounds * WORKERS
        assert in_use(server) == 0
    assert counted["eval"] >= rounds  # else the flushing met nobody


async def test_a_server_emptied_under_load_starts_anew_and_raises_nothing(server: RealServer):
    """FLUSHALL: limits begin again, and permits from before it are stale."""
    async with bus_on(server.url, [rate(), quota(), slots(limit=1)], deadline=5) as bus:
        for _ in range(20):
            kept = (await bus.check(Call(tokens=7))).permit
            assert kept is not None
            full = await bus.check(Call())
            assert full.reason == "no_free_slot"
            server.execute("FLUSHALL")
            permit = (await bus.check(Call())).permit
            assert permit is not None
            assert charged(server) == 1
            assert not await bus.settle(kept)
            assert (charged(server), in_use(server)) == (1, 1)
            assert await bus.settle(permit)


async def test_emptying_it_in_a_loop_harms_no_caller(valkey: RealServer):
    """With checks and settlements under way all the time."""
    over = asyncio.Event()
    async with bus_on(valkey.url, deadline=5) as bus, valkey.client() as other:

        async def work() -> None:
            for _ in range(30):
                decision = await bus.check(Call())
                assert decision.permit is not None
                await bus.settle(decision.permit)

        async def flush() -> None:
            while not over.is_set():
                await other.flushall()

        flushing = asyncio.create_task(flush())
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        over.set()
        await flushing
        valkey.execute("FLUSHALL")
        assert await bus.check(Call())
        assert (charged(valkey), in_use(valkey)) == (1, 1)
