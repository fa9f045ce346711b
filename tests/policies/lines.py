"""What the tests of waiting share: who stands in a line, and waiters of other processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from stanchion import EventBus, Vetoed
from tests.busses import Call, command, slots
from tests.waiting import eventually

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

ORDER = "stanchion:{default}:slots.order:slots:-"
CALL = Call(tenant="acme")


# A place in line is renewed once a second: whatever ends much sooner was woken, or knew the time.
SOON = 0.5


@asynccontextmanager
async def taking(shortest: float, longest: float) -> AsyncGenerator[None]:
    """Fail a block that does not take between so many seconds."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert shortest <= took < longest, f"took {took:.3f} s"


async def standing(bus: EventBus, order: str = ORDER) -> int:
    """Get how many stand in a line, those that died a short while ago included."""
    return int(await command(bus, "ZCARD", order))


async def in_line(bus: EventBus, count: int, order: str = ORDER, *, timeout: float = 2.0) -> None:
    """Wait until so many stand in a line; for less time than an abandoned place is kept."""

    async def so_many():
        assert await standing(bus, order) == count
        return True

    await eventually(so_many, timeout, what=f"{count} in line", interval=0.002)


@asynccontextmanager
async def another_process(url: str, name: str, wait: float = 20.0) -> AsyncGenerator[Process]:
    """Start a process that waits for the one slot, says so when it has it, and gives it back."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.policies.lines", url, name, str(wait)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await line_of(process) == {"ready": name}
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: Process) -> dict[str, object]:
    """Get the next line that a process says."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        said = await process.stdout.readline()
    return cast("dict[str, object]", json.loads(said))


async def go(process: Process) -> None:
    """Have a process get into the line."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    await process.stdin.drain()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def main(url: str, name: str, wait: str) -> None:
    async with EventBus.from_url(url, policies=[slots(limit=1)]) as bus:
        say(ready=name)
        await asyncio.to_thread(sys.stdin.readline)
        try:
            async with bus.guard(CALL, wait=float(wait)) as permit:
                say(name=name, at=permit.admitted_us)
        except Vetoed as veto:
            say(name=name, vetoed=veto.decision.reason)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
