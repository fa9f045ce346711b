"""Quotas that wait for replicas: a failover forgets nothing that counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.calls import PREFIX, Call, bus_on, charged, denied, quota, recovered
from tests.faults.load import held
from tests.faults.waits import acknowledged, given_back, money
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.followers import Followers
    from tests.replicated import ReplicatedCluster
    from tests.topologies import SentinelGroup


# ---- failover


async def _load(bus: EventBus, admitted: set[str], over: asyncio.Event) -> None:
    while not over.is_set():
        decision = await bus.check(Call())
        if decision.permit is not None:
            admitted.add(decision.permit.id)
        await asyncio.sleep(0 if decision else 0.005)


async def test_a_primary_that_is_killed_under_load_has_handed_on_all_that_counted(
    followers: Followers,
):
    """SIGKILL; every admission that a caller was told of is on the replica that leads then."""
    lost, new = followers.primary, followers.replicas[0]
    admitted: set[str] = set()
    over = asyncio.Event()
    # Both, since either may be made to lead.
    async with bus_on(followers.url, [money(2)], deadline=1) as bus:
        callers = [asyncio.create_task(_load(bus, admitted, over)) for _ in range(20)]
        await eventually(lambda: len(admitted) >= 400, 20, what="admissions")
        lost.kill()
        over.set()
        await asyncio.gather(*callers)
    followers.promote(new)
    assert admitted <= held(new)
    assert len(admitted) >= 400
    print(f"{len(admitted)} admitted, {len(held(new))} on the replica, 0 forgotten")


async def test_a_primary_that_is_cut_off_admits_nothing_that_is_to_be_forgotten(
    followers: Followers,
):
    """The replica leads already, and this worker has not heard: what it is told there is lost."""
    new = followers.replicas[0]
    async with (
        bus_on(followers.url, [quota()]) as careless,
        bus_on(followers.url, [money()]) as careful,
    ):
        assert await careless.check(Call(who="careless"))
        assert await careful.check(Call(who="careful"))
        await eventually(lambda: charged(new, "careless") == charged(new, "careful") == 1)
        for replica in followers.replicas:
            followers.promote(replica)
        forgotten = [
            sum(map(bool, await asyncio.gather(*(bus.check(Call(who=who)) for _ in range(100)))))
            for bus, who in ((careless, "careless"), (careful, "careful"))
        ]
        assert charged(new, "careless") == charged(new, "careful") == 1
        await eventually(lambda: charged(followers.primary, "careful") == 1)
    assert forgotten == [100, 0]


# ---- whoever else finds the primary


async def test_a_failover_by_sentinels_forgets_nothing_that_counted(trio: SentinelGroup):
    """SENTINEL FAILOVER under load, with both replicas waited for."""
    old = trio.primary
    admitted: set[str] = set()
    over = asyncio.Event()
    async with bus_on(trio.url, [money(2)], deadline=1) as bus:
        callers = [asyncio.create_task(_load(bus, admitted, over)) for _ in range(10)]
        await eventually(lambda: len(admitted) >= 200, 20, what="admissions")
        await asyncio.to_thread(trio.failover)
        new = trio.primary
        # The sentinels do so within ten seconds; till then too few follow the new one.
        old.execute("REPLICAOF", new.host, new.port)
        before = len(admitted)
        await eventually(lambda: len(admitted) >= before + 200, 20, what="admissions")
        over.set()
        await asyncio.gather(*callers)
    assert admitted <= held(trio.primary)


@pytest.mark.deep
async def test_a_node_of_a_cluster_that_is_lost_has_handed_on_all_that_counted(
    replicated: ReplicatedCluster,
):
    """Its replica hangs, then the primary is killed, and the replica takes over."""
    old = replicated.node_of(PREFIX)
    new = replicated.replica_of(old)
    admitted: set[str] = set()
    over = asyncio.Event()
    async with bus_on(replicated.url, [money()], deadline=1) as bus:
        await recovered(bus)
        new.pause()
        (decision,) = await denied(bus)
        assert acknowledged(decision.verdicts[0].detail) == (0, 1)
        await given_back(old, 1)
        new.resume()
        callers = [asyncio.create_task(_load(bus, admitted, over)) for _ in range(10)]
        await eventually(lambda: len(admitted) >= 200, 20, what="admissions")
        old.kill()
        # The others would agree on it within seconds.
        new.execute("CLUSTER", "FAILOVER", "TAKEOVER")
        await eventually(lambda: new.leads, 20, what="the replica leads")
        before = len(admitted)
        # It follows by itself.
        await asyncio.to_thread(old.start)
        await eventually(lambda: len(admitted) >= before + 100, 20, what="admissions")
        over.set()
        await asyncio.gather(*callers)
        assert admitted <= held(new)
