"""The server lives on, and ends connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState
from stanchion.events import CircuitOpened
from stanchion.observers import Recorder
from stanchion.policies import Binding
from stanchion.store.keys import Keyspace, Kind
from stanchion.store.scripts import ScriptName, load_scripts
from tests.faults.calls import NAMESPACE, Call, breaker, bus_on, charged, quota
from tests.topologies import SentinelGroup
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.servers import RealServer
    from tests.topologies import Cluster

WORKERS = 20
KEYS = Keyspace(NAMESPACE)


async def test_idle_connections_that_were_killed_cost_nobody_a_check(server: RealServer):
    """CLIENT KILL TYPE normal, between checks."""
    async with bus_on(server.url) as bus:
        for number in range(5):
            decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(100)))
            assert all(decisions)
            assert server.execute("CLIENT", "KILL", "TYPE", "normal") >= 1
            await eventually(lambda: not _commanders(server), what="the connections are gone")
            assert charged(server) == 100 * (number + 1)
        assert await bus.check(Call())


def _commanders(server: RealServer) -> list[object]:
    return [one for one in server.connections() if "P" not in one["flags"]]


async def test_connections_killed_under_load_cost_a_check_each_and_charge_once(server: RealServer):
    """CLIENT KILL TYPE normal, while checks are under way."""
    await kill_under_load(server.url, server)


@pytest.mark.parametrize("place", ["cluster", "sentinel"])
async def test_clients_for_several_servers_ask_no_second_time_either(
    request: pytest.FixtureRequest, place: str
):
    """Those that look for another node on an error, and must not try it by themselves."""
    group: Cluster | SentinelGroup = request.getfixturevalue(place)
    server = group.primary if isinstance(group, SentinelGroup) else group.node_of(KEYS.prefix)
    await kill_under_load(group.url, server)


async def kill_under_load(url: str, server: RealServer) -> None:
    kills = 8
    admitted = denied = 0
    over = asyncio.Event()

    async def work(bus: EventBus) -> None:
        nonlocal admitted, denied
        while not over.is_set():
            decision = await bus.check(Call())
            assert decision.allowed or decision.reason == "store_unavailable"
            admitted += decision.allowed
            denied += not decision.allowed

    async with bus_on(url, [quota()], deadline=5) as bus, server.client() as other:
        workers = [asyncio.create_task(work(bus)) for _ in range(WORKERS)]
        for _ in range(kills):
            before = admitted
            await eventually(lambda: admitted > before + WORKERS, what="checks go through again")  # noqa: B023
            await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        before = admitted
        await eventually(lambda: admitted > before + WORKERS, what="checks go through again")
        over.set()
        await asyncio.gather(*workers)
    # A check under way on a connection that is killed may have been counted or not, but once.
    assert denied <= (kills) * WORKERS
    assert admitted <= charged(server) <= admitted + denied


async def test_a_change_missed_while_the_subscription_was_gone_is_learned(server: RealServer):
    """CLIENT KILL TYPE pubsub: a fresh subscription is followed by a look at the state."""
    recorder = Recorder()
    async with bus_on(server.url, observers=[recorder]) as bus, bus_on(server.url) as other:
        await eventually(lambda: _listeners(server) == 2, what="both listen")
        await other.force("provider", CircuitState.OPEN, who="first")
        await recorder.wait_for(lambda event: _opened(event, "first"))
        # Nobody comes back before this loop has its turn, and by then a circuit has opened.
        assert server.execute("CLIENT", "KILL", "TYPE", "pubsub") >= 2
        key, aux = KEYS.keys(Kind.CIRCUIT, "provider", "missed")
        server.execute(
            *("EVAL", load_scripts().get(ScriptName.FORCE).text, 4),
            *(key, aux, KEYS.circuits, KEYS.denied),
            *("nonce", KEYS.control, KEYS.wake, "open", Binding.declared(breaker())),
        )
        event = await recorder.wait_for(lambda event: _opened(event, "missed"))
        assert isinstance(event, CircuitOpened)
        assert event.reason == "resync"
        # Decisions go another way.
        assert not await bus.check(Call(who="missed"))
        # And what is published from now on is heard.
        await other.force("provider", CircuitState.OPEN, who="last")
        await recorder.wait_for(lambda event: _opened(event, "last"))


def _opened(event: object, who: str) -> bool:
    return isinstance(event, CircuitOpened) and event.subject == who


def _listeners(server: RealServer) -> int:
    return dict(server.control.pubsub_numsub(KEYS.control))[KEYS.control]
