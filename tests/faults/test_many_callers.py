"""More callers at once than there are connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState
from tests.faults.calls import DEADLINE, Call, bus_on, charged, denied, in_use, within

if TYPE_CHECKING:
    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup

CALLERS = 500
#: What a client of ours has at most: 16 for commands, and one for each subscription.
CONNECTIONS = 16 + 2


async def test_more_callers_than_connections_are_all_served(valkey: RealServer):
    """They share a few connections, and wait their turn."""
    async with bus_on(valkey.url, deadline=10) as bus:
        decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(CALLERS)))
        assert all(decisions)
        assert charged(valkey) == CALLERS
        permits = [decision.permit for decision in decisions]
        settled = await asyncio.gather(*(bus.settle(permit) for permit in permits if permit))
        assert all(settled)
        assert in_use(valkey) == 0
        assert len(valkey.connections()) <= CONNECTIONS


async def test_more_callers_than_connections_are_denied_in_time_by_a_hung_server(
    valkey: RealServer,
):
    """The wait for a connection counts."""
    async with bus_on(valkey.url) as bus:
        assert await bus.check(Call())
        valkey.pause()
        async with within(DEADLINE):
            await denied(bus, CALLERS)
        valkey.resume()
        # Only what had been handed to a connection can have been counted.
        assert charged(valkey) <= 1 + 3 * 32
        assert len(valkey.connections()) <= CONNECTIONS


@pytest.mark.parametrize("place", ["valkey", "cluster", "sentinel"])
async def test_verbs_that_travel_alone_share_the_connections_too(
    request: pytest.FixtureRequest, place: str
):
    """Some clients' pools refuse at once where others wait; ours never get there."""
    server: RealServer | Cluster | SentinelGroup = request.getfixturevalue(place)
    async with bus_on(server.url, deadline=10) as bus:
        assert await bus.check(Call())
        before = await bus.force("provider", CircuitState.CLOSED, who="acme")
        assert before is CircuitState.CLOSED
        answers = await asyncio.gather(
            *(bus.reset("calls", who=f"w{number}") for number in range(CALLERS)),
            *(bus.check(Call()) for _ in range(CALLERS)),
        )
        assert answers[:CALLERS] == [0] * CALLERS
        assert all(answers[CALLERS:])
