"""Holders that stop for longer than their lease, and buses that end up where they do not belong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, cast

from tests.faults.calls import PREFIX, Call, ask, bus_on, charged, in_use, quota, slots
from tests.faults.forked import VERBS, refusals

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

LEASE = "400ms"
LEASES = f"{PREFIX}slots.leases:slots:acme"


async def start(module: str, *arguments: str) -> Process:
    # The package may be on this process's path only.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), env=environment, stdin=pipe, stdout=pipe
    )


async def test_a_holder_that_was_stopped_past_its_lease_is_refused(
    valkey: RealServer, fault_record: FaultRecords
):
    """SIGSTOP: its slot goes to another, and coming back it takes nothing from that."""
    record = fault_record(26, "SIGSTOP of a holder, for longer than its lease", valkey)
    holder = await start("tests.faults.holder", valkey.url, LEASE)
    try:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert await holder.stdout.readline() == b"holding\n"
        async with bus_on(valkey.url, [quota(), slots(limit=1, lease=LEASE)], deadline=5) as bus:
            assert (await ask(bus, record)).reason == "no_free_slot"
            holder.send_signal(signal.SIGSTOP)
            ((_, ends),) = cast(
                "list[tuple[str, float]]", valkey.control.zrange(LEASES, 0, -1, withscores=True)
            )
            async with bus.guard(Call(tokens=7), wait=10) as permit:
                record.recovery = (permit.admitted_us - ends) / 1e6
                record.saw("entered")
                # The lease of the one that stands still has ended; this one's is being kept.
                holder.send_signal(signal.SIGCONT)
                holder.stdin.write(b"go on\n")
                told = json.loads(await holder.stdout.readline())
                assert told == {"lost": True, "renewed": False, "stale": ["slots", "tokens"]}
                record.saw("the holder: lost, not renewed, stale")
                assert await holder.wait() == 0
                assert not permit.lost
                assert (await ask(bus, record)).reason == "no_free_slot"
                assert in_use(valkey) == 1
            # It stays charged what it had reserved: nobody knows what it did.
            assert charged(valkey) == 1 + 7
            assert in_use(valkey) == 0
            record.admitted += 1  # and the holder
            record.charge(1 + 1)
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()


async def test_a_bus_taken_along_by_a_fork_says_so(valkey: RealServer, fault_record: FaultRecords):
    """Its connections are the parent's, where they go on working."""
    record = fault_record(27, "`os.fork` with an open bus", valkey)
    process = await start("tests.faults.forked", valkey.url)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert charged(valkey) == 2
    assert in_use(valkey) == 1
    record.saw(*("`ConfigError`" for _ in range(VERBS)), "admitted", "admitted")
    record.admitted += 2
    record.charge(charged(valkey))


async def test_a_bus_on_another_loop_says_so(valkey: RealServer, fault_record: FaultRecords):
    """Its connections are the first loop's."""
    record = fault_record(27, "an open bus on another event loop", valkey)
    async with bus_on(valkey.url, deadline=5) as bus:
        permit = await bus.admit(Call())
        said = await asyncio.to_thread(lambda: asyncio.run(refusals(bus, permit)))
        assert len(said) == VERBS
        assert all("another event loop" in text for text in said)
        assert await bus.settle(permit)
        assert await ask(bus, record)
        assert charged(valkey) == 2
        record.saw(*("`ConfigError`" for _ in said))
        record.charge(1)
