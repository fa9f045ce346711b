"""Somebody empties the server while it is in use: its scripts, or all that it knows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stanchion.events import StateLost
from stanchion.observers import Recorder
from tests.faults.calls import ask, bus_on, charged, in_use, quota, rate, slots

if TYPE_CHECKING:
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

WORKERS = 20


async def test_flushing_scripts_under_load_denies_nobody_and_counts_exactly(
    server: RealServer, fault_record: FaultRecords
):
    """SCRIPT FLUSH in a loop: what was not found was not run, and is sent whole."""
    record = fault_record(8, "`SCRIPT FLUSH` in a loop, under load", server, deadline=5)
    rounds = 30
    over = asyncio.Event()
    policies = [rate(), quota(), slots()]
    async with bus_on(server.url, policies, deadline=5) as bus, server.client() as other:

        async def work() -> None:
            for _ in range(rounds):
                permit = (await ask(bus, record)).permit
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
        record.charge(charged(server) // 3)
    assert counted["eval"] >= rounds  # else the flushing met nobody


async def test_a_server_emptied_under_load_starts_anew_and_raises_nothing(
    server: RealServer, fault_record: FaultRecords
):
    """FLUSHALL: limits begin again, and permits from before it are stale."""
    record = fault_record(9, "`FLUSHALL` between checks", server, deadline=5)
    async with bus_on(server.url, [rate(), quota(), slots(limit=1)], deadline=5) as bus:
        for _ in range(20):
            kept = (await ask(bus, record, tokens=7)).permit
            assert kept is not None
            full = await ask(bus, record)
            assert full.reason == "no_free_slot"
            record.charge(charged(server) // 7)
            server.execute("FLUSHALL")
            permit = (await ask(bus, record)).permit
            assert permit is not None
            assert charged(server) == 1
            record.charge(charged(server))
            assert not await bus.settle(kept)
            assert (charged(server), in_use(server)) == (1, 1)
            assert await bus.settle(permit)


async def test_emptying_it_in_a_loop_harms_no_caller(
    valkey: RealServer, fault_record: FaultRecords
):
    """With checks and settlements under way all the time."""
    record = fault_record(9, "`FLUSHALL` in a loop, under load", valkey, deadline=5)
    over, recorder = asyncio.Event(), Recorder()
    async with (
        bus_on(valkey.url, deadline=5, observers=[recorder]) as bus,
        valkey.client() as other,
    ):
        await bus._parts.epochs.looked()

        async def work() -> None:
            for _ in range(30):
                decision = await ask(bus, record)
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
        assert await ask(bus, record)
        assert (charged(valkey), in_use(valkey)) == (1, 1)
        # It is told of, by itself within seconds.
        bus._parts.epochs.look()
        await recorder.wait_for(StateLost)
        record.saw("an observer: `store:state_lost`")
