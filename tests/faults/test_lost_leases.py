"""Holders that stop for longer than their lease, and buses that end up where they do not belong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.faults.calls import Call, bus_on, charged, in_use, quota, slots
from tests.faults.forked import VERBS, refusals

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from tests.servers import RealServer

LEASE = "400ms"


async def start(module: str, *arguments: str) -> Process:
    # The package may be on this process's path only.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), env=environment, stdin=pipe, stdout=pipe
    )


async def test_a_holder_that_was_stopped_past_its_lease_is_refused(valkey: RealServer):
    """SIGSTOP: its slot goes to another, and coming back it takes nothing from that."""
    holder = await start("tests.faults.holder", valkey.url, LEASE)
    try:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert await holder.stdout.readline() == b"holding\n"
        async with bus_on(valkey.url, [quota(), slots(limit=1, lease=LEASE)], deadline=5) as bus:
            assert (await bus.check(Call())).reason == "no_free_slot"
            holder.send_signal(signal.SIGSTOP)
            async with bus.guard(Call(tokens=7), wait=10) as permit:
                # The lease of the one that stands still has ended; this one's is being kept.
                holder.send_signal(signal.SIGCONT)
                holder.stdin.write(b"go on\n")
                told = json.loads(await holder.stdout.readline())
                assert told == {"lost": True, "renewed": False, "stale": ["slots", "tokens"]}
                assert await holder.wait() == 0
                assert not permit.lost
                assert (await bus.check(Call())).reason == "no_free_slot"
                assert in_use(valkey) == 1
            # It stays charged what it had reserved: nobody knows what it did.
            assert charged(valkey) == 1 + 7
            assert in_use(valkey) == 0
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()


async def test_a_bus_taken_along_by_a_fork_says_so(valkey: RealServer):
    """Its connections are the parent's, where they go on working."""
    process = await start("tests.faults.forked", valkey.url)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert charged(valkey) == 2


async def test_a_bus_on_another_loop_says_so(valkey: RealServer):
    """Its connections are the first loop's."""
    async with bus_on(valkey.url, deadline=5) as bus:
        permit = await bus.admit(Call())
        said = await asyncio.to_thread(lambda: asyncio.run(refusals(bus, permit)))
        assert len(said) == VERBS
        assert all("another event loop" in text for text in said)
        assert await bus.settle(permit)
