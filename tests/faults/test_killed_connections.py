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
from tests.faults.calls import DEADLINE, NAMESPACE, Call, ask, breaker, bus_on, charged, quota
from tests.topologies import SentinelGroup
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer
    from tests.topologies import Cluster

WORKERS = 20
KEYS = Keyspace(NAMESPACE)


async def test_idle_connections_that_were_killed_cost_nobody_a_check(
    server: RealServer, fault_record: FaultRecords
):
    """CLIENT KILL TYPE normal, between checks."""
    record = fault_record(4, "`CLIENT KILL TYPE normal`, between checks", server, deadline=5)
    async with bus_on(server.url, deadline=5) as bus:
        for number in range(5):
            decisions = await asyncio.gather(*(ask(bus, record) for _ in range(100)))
            assert all(decisions)
            assert server.execute("CLIENT", "KILL", "TYPE", "normal") >= 1
            await eventually(lambda: not _commanders(server), what="the connections are gone")
            assert charged(server) == 100 * (number + 1)
        assert await ask(bus, record)
        record.charge(charged(server))


def _commanders(server: RealServer) -> list[object]:
    return [one for one in server.connections() if "P" not in one["flags"]]


async def test_connections_killed_under_load_cost_a_check_each_and_charge_once(
    server: RealServer, fault_record: FaultRecords
):
    """CLIENT KILL TYPE normal, while checks are under way."""
    record = fault_record(4, "`CLIENT KILL TYPE normal`, under load", server, deadline=5)
    await kill_under_load(server.url, server, record)


@pytest.mark.parametrize("place", ["cluster", "sentinel"])
async def test_clients_for_several_servers_ask_no_second_time_either(
    request: pytest.FixtureRequest, place: str, fault_record: FaultRecords
):
    """Those that look for another node on an error, and must not try it by themselves."""
    group: Cluster | SentinelGroup = request.getfixturevalue(place)
    server = group.primary if isinstance(group, SentinelGroup) else group.node_of(KEYS.prefix)
    record = fault_record(4, "`CLIENT KILL TYPE normal`, under load", place, deadline=5)
    await kill_under_load(group.url, server, record)


async def kill_under_load(url: str, server: RealServer, record: FaultRecord) -> None:
    kills = 8
    over = asyncio.Event()

    async def work(bus: EventBus) -> None:
        while not over.is_set():
            decision = await ask(bus, record)
            assert decision.allowed or decision.reason == "store_unavailable"

    async with bus_on(url, [quota()], deadline=5) as bus, server.client() as other:
        workers = [asyncio.create_task(work(bus)) for _ in range(WORKERS)]
        for _ in range(kills):
            await _goes_on(record)
            await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with record.recovering():
            await _goes_on(record)
        over.set()
        await asyncio.gather(*workers)
    # A check under way on a connection that is killed may have been counted or not, but once.
    assert record.asked - record.admitted <= kills * WORKERS
    assert record.admitted <= charged(server) <= record.asked
    record.charge(charged(server))


async def _goes_on(record: FaultRecord) -> None:
    enough = record.admitted + WORKERS
    await eventually(lambda: record.admitted > enough, what="checks go through again")


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


async def test_decisions_go_on_while_subscriptions_are_killed(
    server: RealServer, fault_record: FaultRecords
):
    """CLIENT KILL TYPE pubsub, in a loop under load: news are late, answers are not."""
    record = fault_record(5, "`CLIENT KILL TYPE pubsub`, under load", server, deadline=DEADLINE)
    over, recorder = asyncio.Event(), Recorder()

    async def work(bus: EventBus) -> None:
        while not over.is_set():
            assert await ask(bus, record)

    async with bus_on(server.url, observers=[recorder]) as bus, server.client() as other:
        await eventually(lambda: _listeners(server) == 1, what="it listens")
        workers = [asyncio.create_task(work(bus)) for _ in range(WORKERS)]
        killed = 0
        while killed < 5:
            # One that was killed may be counted as listening for a moment.
            killed += int(await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub") or 0)
            await eventually(lambda: _listeners(server) == 1, what="it listens again")
        async with bus_on(server.url) as elsewhere:
            await eventually(lambda: _listeners(server) == 2, what="both listen")
            await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            with record.recovering():
                await elsewhere.force("provider", CircuitState.OPEN, who="missed")
                await recorder.wait_for(lambda event: _opened(event, "missed"))
        over.set()
        await asyncio.gather(*workers)
    assert charged(server) == record.admitted == record.asked
    record.charge(charged(server))


def _opened(event: object, who: str) -> bool:
    return isinstance(event, CircuitOpened) and event.subject == who


def _listeners(server: RealServer) -> int:
    return dict(server.control.pubsub_numsub(KEYS.control))[KEYS.control]
