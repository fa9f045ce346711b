"""One command stops the calls of every worker; another lets them go on.

    python examples/kill_switch.py

Two buses stand for two workers; with a `redis://` URL they are processes on any machine, and
`stanchion halt`, `stanchion halts` and `stanchion resume` do the same from a shell.
"""

from __future__ import annotations

import asyncio
import tempfile

from stanchion import Event, EventBus
from stanchion.policies.kill_switch import KillSwitch


class ModelCall(Event, type="llm:call"):
    tenant: str = "acme"


async def until(bus: EventBus, *, allowed: bool) -> None:
    while (await bus.check(ModelCall())).allowed is not allowed:  # noqa: ASYNC110 - as a worker does
        await asyncio.sleep(0.01)


async def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        url = f"embedded://{place}"
        here, there = KillSwitch(name="stop"), KillSwitch(name="stop")
        async with (
            EventBus.from_url(url, policies=[here]) as one,
            EventBus.from_url(url, policies=[there]) as other,
        ):
            print("before:", bool(await other.check(ModelCall())))
            await here.halt("llm:*", who="alice", why="runaway costs", tenant="acme")
            await until(other, allowed=False)
            decision = await other.check(ModelCall())
            print("halted:", decision.reason, "|", decision.verdicts[0].detail)
            print("others:", bool(await other.check(ModelCall(tenant="umbrella"))))
            for halt in await there.halted():
                print("listed:", halt.name, "by", halt.who)
            await here.resume("llm:*", tenant="acme")
            await until(other, allowed=True)
            print("after:", bool(await one.check(ModelCall())))


if __name__ == "__main__":
    asyncio.run(main())
