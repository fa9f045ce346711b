"""A slot that moves to another node while 64 callers check: key by key, or as one.

What is counted in the end is exactly what was admitted. `-rP` prints what callers saw.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis.exceptions import NoScriptError

from stanchion.store.clients import connect
from stanchion.store.urls import parse_url
from tests.faults.calls import PREFIX, Call, bus_on, charged, quota, slots
from tests.faults.moves import Move
from tests.topologies import Cluster
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from redis.asyncio.cluster import RedisCluster

    from stanchion import EventBus
    from tests.conftest import Pool
    from tests.faults.report import FaultRecord, FaultRecords

CALLERS = 64
SLOTS_MOVED = 17
#: For callers that shall notice nothing.
PATIENT = 2.0
#: For callers whose patience ends before the move does.
SHORT = 0.4


class Watch:
    """What 64 callers were told, and when."""

    def __init__(self) -> None:
        self.admitted = 0
        self.reasons: Counter[str] = Counter()
        self.denied_at: list[float] = []
        self.worst = 0.0
        self.texts: Counter[str] = Counter()

    @property
    def denied(self) -> int:
        return self.reasons.total()

    async def call(self, bus: EventBus, over: asyncio.Event) -> None:
        while not over.is_set():
            began = time.monotonic()
            decision = await bus.check(Call())
            self.worst = max(self.worst, time.monotonic() - began)
            self.admitted += decision.allowed
            if not decision:
                self.reasons[decision.reason or ""] += 1
                self.denied_at.append(time.monotonic())
                # A denial may come at once: leave the loop to others.
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)

    async def goes_on(self) -> None:
        before = self.admitted
        await eventually(lambda: self.admitted > before + 200, 10, what="checks go through")

    def told(self, record: FaultRecord, charged: int, began: float) -> None:
        record.saw(*["admitted"] * self.admitted)
        for reason, count in self.reasons.items():
            record.saw(*[f"denied, `{reason}`"] * count)
        record.admitted += self.admitted
        record.took(self.worst)
        record.charge(charged)
        lasted = max((at - began for at in self.denied_at), default=0.0)
        record.recovery = lasted
        print(
            f"{record.fault}: {self.admitted} admitted, {charged} charged, {self.denied} vetoes "
            f"for {lasted:.2f} s, worst answer {self.worst:.3f} s; {dict(self.texts)}"
        )


@asynccontextmanager
async def watching(bus: EventBus) -> AsyncGenerator[Watch]:
    watch, over = Watch(), asyncio.Event()

    def explained(event: Any) -> None:
        watch.texts[event.error.replace("Redis has not been answering: ", "gate: ")] += 1

    bus.observers.register(explained, on="policy:failed")
    callers = [asyncio.create_task(watch.call(bus, over)) for _ in range(CALLERS)]
    try:
        await watch.goes_on()
        yield watch
    finally:
        over.set()
        await asyncio.gather(*callers)


PROGRAMS = [
    "valkey9",
    pytest.param("redis8", marks=pytest.mark.deep),
    pytest.param("redis7", marks=pytest.mark.deep),
]


@pytest.fixture(params=PROGRAMS)
def nodes(request: pytest.FixtureRequest, pool: Pool) -> Cluster:
    """Three primaries, a third of the slots each."""
    program = request.param
    name = "cluster" if program == "valkey9" else f"{program} cluster"
    cluster = pool.lend(name, lambda: Cluster(program, pool.reaper))
    pool.lent.extend(cluster.nodes)
    return cluster


@pytest.fixture
def move(nodes: Cluster) -> Iterator[Move]:
    """Our slot, from where it is to another node; and back, after the test."""
    source = nodes.node_of(PREFIX)
    target = next(node for node in nodes.nodes if node is not source)
    slot = int(source.execute("CLUSTER", "KEYSLOT", PREFIX))
    yield Move(slot, source, target)
    for node in (source, target):
        node.execute("CLUSTER", "SETSLOT", slot, "STABLE")
    if slot in target.slots:
        Move(slot, target, source).whole(nodes.nodes)


async def test_a_slot_that_is_carried_over_at_once_is_not_noticed(
    nodes: Cluster, move: Move, fault_record: FaultRecords
):
    """TRYAGAIN, ASK and MOVED within the deadline: none ran, so the call is offered again."""
    record = fault_record(SLOTS_MOVED, "carried over at once", move.source, deadline=PATIENT)
    async with bus_on(nodes.url, [quota(), slots()], deadline=PATIENT) as bus:
        async with watching(bus) as watch:
            began = time.monotonic()
            for _ in range(3):
                await asyncio.to_thread(move.whole, nodes.nodes)
                await watch.goes_on()
                move.source, move.target = move.target, move.source
        await eventually(lambda: charged(move.source) == watch.admitted, what="exact")
        watch.told(record, charged(move.source), began)
        move.source, move.target = move.target, move.source
        assert watch.denied == 0
        assert watch.worst < PATIENT


async def test_while_half_of_a_slot_has_moved_checks_are_vetoes_and_nothing_is_charged(
    nodes: Cluster, move: Move, fault_record: FaultRecords
):
    """No script can run whose keys are on both sides; callers are told so, by their deadline."""
    record = fault_record(SLOTS_MOVED, "half of it, for longer than a deadline", move.source)
    async with bus_on(nodes.url, [quota(), slots()], deadline=SHORT) as bus:
        permit = await bus.admit(Call(who="elsewhere"))
        async with watching(bus) as watch:
            began = time.monotonic()
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.carry, 1)
            await eventually(lambda: watch.denied > 2 * CALLERS, 10, what="vetoes")
            while await asyncio.to_thread(move.carry, 100):
                pass
            await asyncio.to_thread(move.end, nodes.nodes)
            ended = time.monotonic()
            await watch.goes_on()
        # Each was told the truth, and none was charged without being told.
        assert charged(move.target) == watch.admitted
        watch.told(record, charged(move.target), began)
        record.recovery = max(at - ended for at in watch.denied_at)
        assert watch.reasons.keys() == {"store_unavailable"}
        assert any("TRYAGAIN" in text for text in watch.texts)
        assert watch.worst < SHORT + 1
        # What was held before is settled where it is now.
        assert await bus.settle(permit, tokens=3)
        assert charged(move.target, "elsewhere") == 3


@pytest.mark.parametrize("nodes", ["valkey9"], indirect=True)
async def test_a_slot_that_moves_as_one_is_not_noticed(
    nodes: Cluster, move: Move, fault_record: FaultRecords
):
    """CLUSTER MIGRATESLOTS of Valkey 9: the source has the slot until the target has all of it."""
    record = fault_record(SLOTS_MOVED, "CLUSTER MIGRATESLOTS", move.source, deadline=PATIENT)
    async with bus_on(nodes.url, [quota(), slots()], deadline=PATIENT) as bus:
        async with watching(bus) as watch:
            began = time.monotonic()
            for source, target in ((move.source, move.target), (move.target, move.source)):
                await asyncio.to_thread(migrate, move.slot, source, target)
                await eventually(lambda s=source: moved_away(s), 20, what="it has moved")
                await watch.goes_on()
        assert charged(move.source) == watch.admitted
        watch.told(record, charged(move.source), began)
        assert watch.denied == 0


def migrate(slot: int, source: Any, target: Any) -> None:
    owner = str(target.execute("CLUSTER", "MYID"))
    source.execute("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", owner)


def moved_away(source: Any) -> bool:
    # The latest one is told of first.
    told = source.execute("CLUSTER", "GETSLOTMIGRATIONS")[0]
    fields = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    assert fields["state"] != "failed", told
    return fields["state"] == "success"


# ---- the client itself, with scripts all of whose keys have moved


COUNT = """
for _, key in ipairs(KEYS) do
  redis.call('INCR', key)
  redis.call('PEXPIRE', key, 60000)
end
return {tonumber(redis.call('GET', KEYS[1]))}
"""
KEYS = (f"{PREFIX}a", f"{PREFIX}b")


@asynccontextmanager
async def client_of(url: str) -> AsyncGenerator[tuple[Any, RedisCluster]]:
    connections = await connect(parse_url(url), deadline=PATIENT)
    try:
        yield connections, cast("RedisCluster", connections.client)
    finally:
        await connections.close()


async def counted(connections: Any, sha: str) -> int:
    try:
        (count,) = await connections.run("EVALSHA", sha, 2, *KEYS)
    except NoScriptError:
        (count,) = await connections.run("EVAL", COUNT, 2, *KEYS)
    return count


async def test_a_script_whose_keys_have_all_moved_runs_once_each_at_the_other_node(
    nodes: Cluster, move: Move
):
    """ASK: let in and called on one connection, whatever the others do; NOSCRIPT there as well."""
    async with client_of(nodes.url) as (connections, _):
        sha = str(move.source.execute("SCRIPT", "LOAD", COUNT))
        # As many connections as there are calls, to both.
        await asyncio.gather(*(counted(connections, sha) for _ in range(16)))
        # The first call is sent anywhere.
        move.target.execute("CONFIG", "RESETSTAT")
        await asyncio.to_thread(move.begin)
        while await asyncio.to_thread(move.carry, 100):
            pass
        for _ in range(8):
            await asyncio.gather(*(counted(connections, sha) for _ in range(16)))
        # Whoever is not let in is sent away.
        assert "errorstat_MOVED" not in move.target.control.info("errorstats")
        await asyncio.to_thread(move.end, nodes.nodes)
        assert await counted(connections, sha) == 16 * 9 + 1
        assert move.target.execute("GET", KEYS[1]) == str(16 * 9 + 1)


@pytest.mark.parametrize("state", ["asked", "moved"])
async def test_a_node_that_joined_later_is_found(nodes: Cluster, move: Move, state: str):
    """A client that has never heard of the node to which it is sent."""
    async with client_of(nodes.url) as (connections, client):
        sha = str(move.source.execute("SCRIPT", "LOAD", COUNT))
        assert await counted(connections, sha) == 1
        name = f"{move.target.host}:{move.target.port}"
        forgotten = client.nodes_manager.nodes_cache.pop(name)
        await forgotten.disconnect()
        await asyncio.to_thread(move.begin)
        await asyncio.to_thread(move.carry, 100)
        if state == "moved":
            await asyncio.to_thread(move.end, nodes.nodes)
        assert await counted(connections, sha) == 2
        if state == "asked":
            await asyncio.to_thread(move.end, nodes.nodes)
        assert await counted(connections, sha) == 3


async def test_a_moved_slot_cuts_nobody_else_off(nodes: Cluster, move: Move):
    """What is under way at other nodes goes on, however often a slot has moved."""
    elsewhere = next(node for node in nodes.nodes if node not in (move.source, move.target))
    key = next(key for key in map(str, range(1000)) if nodes.node_of(key) is elsewhere)
    async with client_of(nodes.url) as (connections, client):
        await connections.run("PTTL", KEYS[0])
        waiting = asyncio.create_task(
            client.execute_command("BLPOP", key, 5, target_nodes=client.get_node_from_key(key))
        )
        await eventually(lambda: [c for c in elsewhere.connections() if c["cmd"] == "blpop"])
        for _ in range(6):
            await asyncio.to_thread(move.whole, nodes.nodes)
            assert await connections.run("PTTL", KEYS[0]) == -2
            move.source, move.target = move.target, move.source
        elsewhere.execute("RPUSH", key, "there")
        assert list(await waiting) == [key.encode(), b"there"]
