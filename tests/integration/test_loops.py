"""The bus runs on uvloop as on asyncio's own loop, and loops of our own are uvloop's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from stanchion import EventBus, sync
from stanchion.loops import new_event_loop
from tests.busses import Call, breaker, quota, rate, slots
from tests.servers import RealServer

POLICIES = (rate(limit=3), quota(), slots(limit=9), breaker())


async def use(url: str) -> None:
    async with EventBus.from_url(url, policies=POLICIES, namespace="loops") as bus:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        decisions = await asyncio.gather(*(bus.check(Call(tokens=9)) for _ in range(5)))
        assert [bool(decision) for decision in decisions] == [True] * 3 + [False] * 2
        for decision in decisions:
            if decision.permit is not None:
                assert await bus.settle(decision.permit, tokens=4)


@pytest.mark.parametrize("place", ["valkey", "tls_server", "unix_server"])
def test_a_bus_works_on_uvloop(place: str, request: pytest.FixtureRequest):
    server: Any = request.getfixturevalue(place)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use(server.url))


def test_a_server_that_hangs_up_on_uvloop_costs_nobody_a_check(valkey: RealServer):
    async def hung_up_on() -> None:
        async with EventBus.from_url(valkey.url, policies=[rate(limit=50)]) as bus:
            for _ in range(20):
                assert await bus.check(Call())
                valkey.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(hung_up_on())


def test_loops_of_our_own_are_uvloops(valkey: RealServer):
    loop = new_event_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()
    with sync.EventBus.from_url(valkey.url, policies=[rate()]) as bus:
        assert bus.check(Call())
