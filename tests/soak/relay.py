"""A process that holds the proxies between the workers and the server, one for each.

The first line on stdin is the server's port, how many proxies there are to be, and where the
journal goes; the proxies' ports are answered as one line. Each further line is
`[number, deed, argument]`. The end of stdin ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.proxy import Proxy
from tests.soak.journal import Journal
from tests.soak.lateness import Lateness

if TYPE_CHECKING:
    from tests.faults.proxy import Link


def _lose(link: Link, data: bytes) -> bytes:
    return b""


def _halve(link: Link, data: bytes) -> bytes:
    # The rest is cut off once this half is on its way.
    asyncio.get_running_loop().call_later(0.01, link.cut)
    return data[: len(data) // 2]


def spoil(proxy: Proxy, deed: str, argument: Any) -> None:
    match deed:
        case "slow":
            proxy.delay = float(argument)
        case "lose":
            proxy.on_reply = _lose
        case "halve":
            proxy.on_reply = _halve
        case "slice":
            proxy.slice = int(argument)
        case "reset":
            proxy.cut(reset=True)
        case "half_close":
            proxy.half_close()
        case "refuse":
            proxy.refuse = True
            proxy.cut(reset=True)
        case "heal":
            proxy.heal()
        case _:
            raise LookupError(deed)


async def main() -> None:
    port, count, path = json.loads(sys.stdin.readline())
    journal = Journal(Path(path))
    watching = asyncio.create_task(Lateness(journal).watch())
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(port)) for _ in range(count)]
        print(json.dumps([proxy.port for proxy in proxies]), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            number, deed, argument = json.loads(line)
            spoil(proxies[number], deed, argument)
    watching.cancel()
    await asyncio.wait([watching])
    journal.close()


if __name__ == "__main__":
    asyncio.run(main())
