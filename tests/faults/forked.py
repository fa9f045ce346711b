"""A process that opens a bus and forks: each verb must say so in the child, and work in the parent.

Run with a URL. A fork in a process with threads of others, such as a test session's, would not be
a fair trial.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from stanchion import CircuitState, ConfigError
from tests.faults.calls import Call, bus_on

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from stanchion import EventBus, Permit


async def refusals(bus: EventBus, permit: Permit) -> list[str]:
    """Try every verb that asks the store; get what those said that were refused as they should."""
    said: list[str] = []

    async def refused(verb: Awaitable[object]) -> None:
        try:
            await verb
        except ConfigError as error:
            said.append(str(error))

    await refused(bus.check(Call()))
    await refused(bus.peek(Call()))
    await refused(bus.settle(permit))
    await refused(bus.renew(permit))
    await refused(bus.reset("calls", who="acme"))
    await refused(bus.reset("calls"))
    await refused(bus.force("provider", CircuitState.OPEN, who="acme"))
    await refused(bus.override("calls", 1, who="acme"))
    await refused(bus.sync("calls", remaining=0, who="acme"))
    await refused(anext(aiter(bus.inspect())))
    await refused(bus._store.publish("channel", "text"))
    await refused(bus._store.close())
    return said


VERBS = 12


def main(url: str) -> None:
    with asyncio.Runner() as runner:
        bus = bus_on(url, deadline=5)
        runner.run(bus.open())
        permit = runner.run(bus.admit(Call()))
        child = os.fork()
        if child == 0:
            said = asyncio.run(refusals(bus, permit))
            sound = len(said) == VERBS and all("another process" in text for text in said)
            sys.stdout.write(f"{said}\n")
            sys.stdout.flush()
            os._exit(0 if sound else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the child's bus was not refused"
        assert runner.run(bus.check(Call()))
        assert runner.run(bus.settle(permit))
        runner.run(bus.close())


if __name__ == "__main__":
    main(*sys.argv[1:])
