"""More callers at once than there are connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, ConfigError, StoreUnavailable
from tests.faults.calls import (
    DEADLINE,
    Call,
    ask,
    bus_on,
    charged,
    denied,
    in_use,
    quota,
    recovered,
    within,
)
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup

CALLERS = 500
#: What a client of ours has at most: 16 for commands, and one for each subscription.
CONNECTIONS = 16 + 2


async def test_more_callers_than_connections_are_all_served(
    valkey: RealServer, fault_record: FaultRecords
):
    """They share a few connections, and wait their turn."""
    record = fault_record(13, f"{CALLERS} callers at once", valkey, deadline=10)
    async with bus_on(valkey.url, deadline=10) as bus:
        decisions = await asyncio.gather(*(ask(bus, record) for _ in range(CALLERS)))
        assert all(decisions)
        assert charged(valkey) == CALLERS
        record.charge(charged(valkey))
        permits = [decision.permit for decision in decisions]
        settled = await asyncio.gather(*(bus.settle(permit) for permit in permits if permit))
        assert all(settled)
        assert in_use(valkey) == 0
        assert len(valkey.connections()) <= CONNECTIONS


async def test_more_callers_than_connections_are_denied_in_time_by_a_hung_server(
    valkey: RealServer, fault_record: FaultRecords
):
    """The wait for a connection counts."""
    how = f"{CALLERS} callers at once, the server stopped"
    record = fault_record(13, how, valkey, deadline=DEADLINE)
    async with bus_on(valkey.url) as bus:
        assert await ask(bus, record)
        valkey.pause()
        async with within(DEADLINE):
            await denied(bus, CALLERS, record=record)
        valkey.resume()
        # Only what had been handed to a connection can have been counted.
        assert charged(valkey) <= 1 + 3 * 32
        assert len(valkey.connections()) <= CONNECTIONS
        record.charge(charged(valkey))


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_pool_of_two_serves_two_hundred_callers_or_refuses_them_in_time(
    valkey: RealServer,
    monkeypatch: pytest.MonkeyPatch,
    connections: int,
    fault_record: FaultRecords,
):
    """Verbs that need a connection each wait for one, and not for longer than the deadline."""
    monkeypatch.setattr("stanchion.store.clients._POOL", connections)
    how = f"200 callers of `reset`, a pool of {connections}"
    record = fault_record(13, how, valkey, deadline=5)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota()], deadline=5) as bus:
        resets = (bus.reset("tokens", who=f"w{number}") for number in range(200))
        assert await asyncio.gather(*(record.ask(verb) for verb in resets)) == [0] * 200
        # Theirs, one for what is decided, and one or two to listen.
        assert await ask(bus, record)
        assert len(proxy.links) <= connections + 1 + 2
        record.charge(charged(valkey))
    record = fault_record(13, f"{how}, the server stopped", valkey, deadline=DEADLINE)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota()]) as bus:
        assert await ask(bus, record)
        valkey.pause()
        async with within(DEADLINE):
            resets = (bus.reset("tokens", who=f"w{number}") for number in range(200))
            answers = await asyncio.gather(
                *(record.ask(verb) for verb in resets), return_exceptions=True
            )
        assert {type(error) for error in answers} == {StoreUnavailable}
        valkey.resume()
        assert await recovered(bus, record=record)
        assert len(proxy.links) <= connections + 1 + 2


async def test_the_size_of_the_pool_is_not_for_the_url_to_set(valkey: RealServer):
    """A bound that somebody lifts by a URL is none; nor may it turn waiting into an error."""
    with pytest.raises(ConfigError, match="max_connections"):
        async with bus_on(f"{valkey.url}?max_connections=2"):
            pytest.fail("opened")


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
