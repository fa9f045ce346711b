"""Shards on several nodes of a cluster, one of which is away."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from stanchion import EventBus, StoreUnavailable
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from tests.faults.calls import within
from tests.sharding.calls import (
    SPACE,
    Call,
    chain,
    in_shard,
    quota,
    rate,
    remaining,
    slots,
    spread_bus,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import RealServer
    from tests.topologies import Cluster

DEADLINE = 0.5


def shards_on(cluster: Cluster, node: RealServer) -> list[int]:
    return [
        space.shard
        for space in SPACE.everywhere
        if space.shard and cluster.node_of(space.overrides) is node
    ]


async def tenants(bus: EventBus, event: Call) -> list[int | None]:
    left = await remaining(bus, event)
    return [left.get(policy) for policy in ("calls", "tokens")]


@pytest.fixture
def away(cluster: Cluster) -> Iterator[RealServer]:
    """A node that hangs from when the test stops it."""
    node = cluster.nodes[1]
    yield node
    node.resume()


async def test_who_is_elsewhere_notices_nothing(cluster: Cluster, away: RealServer):
    here = in_shard(shards_on(cluster, cluster.nodes[0])[0])
    there = in_shard(shards_on(cluster, away)[0])
    policies = [rate(), quota()]
    async with spread_bus(cluster.url, policies, deadline=DEADLINE) as bus:
        assert await bus.check(Call(tenant=here))
        assert await bus.check(Call(tenant=there))
        away.pause()
        slow = 0
        for _ in range(6):
            began = time.monotonic()
            async with within(DEADLINE):
                assert (await bus.check(Call(tenant=there))).reason == "store_unavailable"
            slow += time.monotonic() - began > DEADLINE / 2
            # The gate of that node is not that of the others.
            assert await bus.check(Call(tenant=here))
        assert slow < 6
        away.resume()

        async def back() -> bool:
            return bool(await bus.check(Call(tenant=there)))

        await eventually(back, what="the node that was away is asked again")


async def test_what_one_shard_took_is_given_back_when_the_next_cannot_be_asked(
    cluster: Cluster, away: RealServer
):
    tenant = in_shard(shards_on(cluster, cluster.nodes[0])[0])
    model = in_shard(shards_on(cluster, away)[0], stem="model")
    event = Call(tenant=tenant, model=model, tokens=9)
    recorder = Recorder()
    policies = [rate(), quota(), slots(), rate(name="open", by="model", on_outage="admit")]
    async with spread_bus(cluster.url, policies, deadline=DEADLINE, observers=[recorder]) as bus:
        assert await bus.check(event)
        # What was sent to the node that hangs is in doubt, and ends with its lease.
        before = await tenants(bus, event)
        away.pause()
        async with within(DEADLINE):
            decision = await bus.check(event)
        assert (decision.policy, decision.reason) == ("in-flight", "store_unavailable")
        failed = {(await recorder.wait_for(PolicyFailed)).policy}
        assert failed <= {"in-flight", "open"}
        away.resume()

        async def as_before() -> bool:
            return await tenants(bus, event) == before

        await eventually(as_before, what="the tenant's shard is as it was")


async def test_settling_again_reaches_the_shard_that_was_away(cluster: Cluster, away: RealServer):
    tenant = in_shard(shards_on(cluster, cluster.nodes[0])[0])
    model = in_shard(shards_on(cluster, away)[0], stem="model")
    event = Call(tenant=tenant, model=model, tokens=9)
    async with spread_bus(cluster.url, chain(), deadline=DEADLINE) as bus:
        before = await remaining(bus, event)
        permit = (await bus.check(event)).permit
        assert permit is not None
        away.pause()
        with pytest.raises(StoreUnavailable):
            await bus.settle(permit, tokens=2)
        away.resume()

        async def settled() -> bool:
            try:
                return "in-flight" in (await bus.settle(permit, tokens=2)).statuses
            except StoreUnavailable:
                return False

        await eventually(settled, what="the permit is settled")
        after = await remaining(bus, event)
        assert before["tokens"] is not None
        assert after["tokens"] == before["tokens"] - 2
        assert after["in-flight"] == before["in-flight"]


async def test_two_shards_share_one_deadline(cluster: Cluster, away: RealServer):
    model = in_shard(shards_on(cluster, away)[0], stem="model")
    slow = in_shard(shards_on(cluster, cluster.nodes[2])[0])
    async with spread_bus(cluster.url, chain(), deadline=DEADLINE) as bus:
        assert await bus.check(Call(tenant=slow, model=model))
        cluster.nodes[2].pause()
        away.pause()

        async def wake() -> None:
            await asyncio.sleep(DEADLINE / 2)
            cluster.nodes[2].resume()

        waking = asyncio.create_task(wake())
        try:
            async with within(DEADLINE + 0.1):
                assert not await bus.check(Call(tenant=slow, model=model))
        finally:
            cluster.nodes[2].resume()
            await waking
