"""What one process makes free, another that keeps a denial of it hears of at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stanchion import CircuitBreaker, CircuitState, EventBus, Quota, RateLimit
from tests.busses import calls_of_scripts
from tests.contention.calls import NAMESPACE, Call, FixedCall, LogCall, SlidingCall
from tests.contention.fleet import fleet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion import Permit
    from tests.contention.fleet import Worker
    from tests.servers import RealServer

#: Seconds within which the other process is to be admitted; most of it for a machine under load.
SOON = 0.25


async def assert_ended(
    server: RealServer, worker: Worker, call: type[Call], act: Callable[[], Awaitable[object]]
) -> float:
    """Have a worker know a denial, end it, and get how long the worker took to be admitted."""
    name = call.event_type
    assert None not in await worker.ask("ask", call=name, seconds=0.15)
    with server.counting() as counted:
        reasons = await worker.ask("ask", call=name, seconds=0.1)
    assert None not in reasons
    assert len(reasons) > 10
    assert calls_of_scripts(counted) == 0
    waiting = asyncio.create_task(worker.ask("until_admitted", call=name))
    await asyncio.sleep(0.05)
    await act()
    done = time.monotonic()
    took = await waiting - done
    assert took < SOON
    return took


async def test_what_another_process_makes_free_ends_a_denial_at_once(valkey: RealServer):
    policies = [
        Quota(name="quota", on=LogCall, limit=10, cost="tokens", per="1h"),
        RateLimit(name="fixed", on=FixedCall, limit=1, algorithm="fixed_window", per="1h"),
        RateLimit(name="gcra", on=SlidingCall, limit=1, per="1h"),
        CircuitBreaker(name="circuit", on=SlidingCall, consecutive_failures=1, open_for="1h"),
    ]
    bus = EventBus.from_url(valkey.url, policies=policies, namespace=NAMESPACE)
    async with (
        bus,
        fleet(valkey.url, *policies, workers=1, module="tests.contention.denied") as (worker,),
    ):

        async def taken(event: Call) -> Permit:
            return await bus.admit(event)

        took: dict[str, float] = {}
        permit = await taken(LogCall(tokens=10))
        took["refund of a quota"] = await assert_ended(
            valkey, worker, LogCall, lambda: bus.settle(permit, tokens=2)
        )
        other = await taken(FixedCall())
        took["refund of a rate"] = await assert_ended(
            valkey, worker, FixedCall, lambda: bus.settle(other, fixed=0)
        )
        took["reset"] = await assert_ended(valkey, worker, FixedCall, lambda: bus.reset("fixed"))
        await taken(SlidingCall())
        took["override"] = await assert_ended(
            valkey, worker, SlidingCall, lambda: bus.override("gcra", 50)
        )
        await bus.force("circuit", CircuitState.FORCED_OPEN)
        took["force"] = await assert_ended(
            valkey, worker, SlidingCall, lambda: bus.force("circuit", CircuitState.CLOSED)
        )
        await bus.override("gcra", None)
    print({what: f"{1000 * seconds:.1f} ms" for what, seconds in took.items()})
