"""Whatever goes wrong, what a verb raises is an error of this library."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, StanchionError
from tests.faults.calls import Call, bus_on, recovered
from tests.topologies import Cluster, SentinelGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from stanchion import EventBus
    from stanchion.store.redis_store import RedisStore
    from tests.servers import RealServer

ROUNDS = 6


async def look(bus: EventBus) -> int:
    return len([one async for one in bus.inspect()])


async def check_and_settle(bus: EventBus) -> None:
    decision = await bus.check(Call())
    assert decision.allowed or decision.reason == "store_unavailable"
    if decision.permit is not None:
        await bus.settle(decision.permit)


VERBS: list[Callable[[EventBus], Coroutine[Any, Any, object]]] = [
    check_and_settle,
    lambda bus: bus.peek(Call()),
    lambda bus: bus.reset("calls", who="acme"),
    lambda bus: bus.reset("tokens"),
    lambda bus: bus.force("provider", CircuitState.CLOSED, who="acme"),
    lambda bus: bus.override("calls", None, who="acme"),
    lambda bus: bus.sync("calls", remaining=10**6, who="other"),
    look,
]


@pytest.mark.parametrize("place", ["valkey", "cluster", "sentinel"])
async def test_no_error_of_the_client_gets_out(request: pytest.FixtureRequest, place: str):
    """All verbs at once, while connections are killed, servers stop and go on, and scripts go."""
    group: RealServer | Cluster | SentinelGroup = request.getfixturevalue(place)
    match group:
        case Cluster():
            servers: list[RealServer] = list(group.nodes)
        case SentinelGroup():
            servers = [group.primary]
        case _:
            servers = [group]
    over = asyncio.Event()
    raised: list[BaseException] = []

    async def work(bus: EventBus, verbs: Iterator[Callable[..., Coroutine[Any, Any, object]]]):
        while not over.is_set():
            try:
                await next(verbs)(bus)
            except StanchionError as error:
                raised.append(error)
            # Denied at once, it would leave the loop no time for anything else.
            await asyncio.sleep(0.001)

    async with bus_on(group.url) as bus:
        store: RedisStore = bus._store  # pyright: ignore[reportAssignmentType]
        verbs = itertools.cycle(VERBS)
        workers = [asyncio.create_task(work(bus, verbs)) for _ in range(24)]
        for _ in range(ROUNDS):
            for server in servers:
                server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                server.execute("SCRIPT", "FLUSH")
                await asyncio.sleep(0.01)
                server.pause()
                await asyncio.sleep(0.05)
                server.resume()
                await store._calls.drop()
                await asyncio.sleep(0.02)
        over.set()
        await asyncio.gather(*workers)
        assert raised, "nothing went wrong, so nothing was seen"
        assert await recovered(bus)
