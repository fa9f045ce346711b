"""A primary behind sentinels is lost or retired under load: who was admitted, beside the limit.

The promise: strict while one primary lives. At a failover over-admission is at most the decisions
that the old primary had answered and the new one does not have. Each test counts those for itself,
permit by permit, and prints the figures: `pytest tests/faults/test_sentinel_failover.py -rP`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.calls import UNAVAILABLE, charged, quota
from tests.faults.load import Balance, Load, Tally, balance, held, load
from tests.servers import free_port
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer
    from tests.topologies import SentinelGroup

LIMIT = 800
DEADLINE = 0.4
SENTINEL_FAILOVER, TOO_FEW_REPLICAS = 15, 18
#: Admissions before the fault, and after replication has been cut.
BEFORE, UNSEEN = 150, 100


@contextmanager
def minimum_of_replicas(trio: SentinelGroup, count: int) -> Iterator[None]:
    """Have every server refuse writes that fewer replicas than so many would get."""
    with ExitStack() as stack:
        for server in trio.data:
            stack.enter_context(server.configured(min_replicas_to_write=count))
        yield


def cut(trio: SentinelGroup) -> None:
    """Have the replicas hear of nothing any more. What was sent to them before, they have."""
    nobody = free_port()
    for replica in trio.replicas:
        replica.execute("REPLICAOF", replica.host, nobody)


async def settled(under: Load, trio: SentinelGroup, record: FaultRecord, began: float) -> Balance:
    """Use the limit up at the new primary; hold what was promised against the bound."""
    await under.exhausts()
    tally = await under.stop()
    primary = await eventually(lambda: trio.primary, what="the sentinels agree")
    result = balance(tally, primary)
    assert charged(primary) == LIMIT
    # What nobody heard of was charged all the same: it is on the safe side.
    assert result.admitted == LIMIT + result.missing - result.unheard
    assert result.over(LIMIT) <= result.missing
    told(record, tally, result, began)
    record.charge(charged(primary))
    return result


def told(record: FaultRecord, tally: Tally, result: Balance, began: float) -> None:
    assert tally.worst < DEADLINE + 1
    unavailable = tally.denied.get(UNAVAILABLE, 0)
    record.saw(*["admitted"] * result.admitted, *[f"denied, `{UNAVAILABLE}`"] * unavailable)
    record.admitted += result.admitted
    record.took(tally.worst)
    record.recovery = max(tally.recovered_after(began), 0.0)
    print(
        f"{record.fault}: {result.admitted} admitted under a limit of {LIMIT}; over-admission "
        f"{result.over(LIMIT)}, bound {result.missing} (answered, not replicated); {result.unheard}"
        f" charged without an answer; {unavailable} vetoes for {record.recovery:.2f} s, worst "
        f"answer {tally.worst:.3f} s; {tally.details}"
    )


async def retired(old: RealServer) -> None:
    """Wait until the sentinels have told an old primary, and all who are with it have left."""
    await eventually(lambda: old.execute("ROLE")[0] == "slave", 30, what="the old one is told")
    await eventually(lambda: not old.connections(), what="its clients have left")


def limited() -> list[object]:
    return [quota(limit=LIMIT, lease="1h")]


@pytest.mark.deep
async def test_a_killed_primary_costs_at_most_what_it_had_not_handed_on(
    trio: SentinelGroup, fault_record: FaultRecords
):
    record = fault_record(SENTINEL_FAILOVER, "SIGKILL of the primary", trio.primary)
    async with load(trio.url, limited(), deadline=DEADLINE) as under:
        await under.admits(BEFORE)
        began = time.time()
        trio.primary.kill()
        await under.admits(BEFORE)
        await settled(under, trio, record, began)


async def test_the_bound_is_reached_when_replication_is_cut_before(
    trio: SentinelGroup, fault_record: FaultRecords
):
    record = fault_record(SENTINEL_FAILOVER, "replication cut, then SIGKILL", trio.primary)
    async with load(trio.url, limited(), deadline=DEADLINE) as under:
        await under.admits(BEFORE)
        await asyncio.to_thread(cut, trio)
        await under.admits(UNSEEN)
        began = time.time()
        trio.primary.kill()
        await under.admits(BEFORE)
        result = await settled(under, trio, record, began)
    assert result.missing >= UNSEEN
    assert result.over(LIMIT) > 0


async def test_a_primary_that_must_have_a_replica_decides_nothing_once_it_is_cut_off(
    trio: SentinelGroup, fault_record: FaultRecords
):
    """min-replicas-to-write: what can be handed to nobody is not answered."""
    primary, replica = trio.primary, trio.replica
    record = fault_record(TOO_FEW_REPLICAS, "replication cut under load", primary)
    with minimum_of_replicas(trio, 1):
        async with load(trio.url, limited(), deadline=DEADLINE) as under:
            await under.admits(BEFORE)
            began = time.time()
            await asyncio.to_thread(cut, trio)

            async def refused() -> bool:
                return (await under.count()).get(UNAVAILABLE, 0) >= UNSEEN

            await eventually(refused, 10, what="the primary refuses")
            lost = len(held(primary) - held(replica))
            # No more than what was under way while the links were being cut.
            assert lost < UNSEEN
            for one in trio.replicas:
                one.execute("REPLICAOF", primary.host, primary.port)
            result = await settled(under, trio, record, began)
    print(f"{lost} of what was decided before was handed to nobody")
    assert (result.missing, result.unheard) == (0, 0)


async def test_a_coordinated_failover_costs_nothing(
    trio: SentinelGroup, fault_record: FaultRecords
):
    """SENTINEL FAILOVER COORDINATED: the old one pauses until the new one has everything."""
    record = fault_record(SENTINEL_FAILOVER, "SENTINEL FAILOVER COORDINATED", trio.primary)
    async with load(trio.url, limited(), deadline=DEADLINE) as under:
        await under.admits(BEFORE)
        began, old = time.time(), trio.primary
        trio.sentinels[0].execute("SENTINEL", "FAILOVER", trio.service, "COORDINATED")
        await eventually(lambda: trio.primary is not old, 20, what="another one leads")
        await under.admits(BEFORE)
        result = await settled(under, trio, record, began)
    assert (result.missing, result.over(LIMIT)) == (0, 0)


@pytest.mark.deep
async def test_a_plain_failover_lets_the_old_primary_admit_until_it_is_told(
    trio: SentinelGroup, fault_record: FaultRecords
):
    """SENTINEL FAILOVER without a minimum: for some ten seconds there are two primaries."""
    record = fault_record(SENTINEL_FAILOVER, "SENTINEL FAILOVER", trio.primary)
    async with load(trio.url, limited(), deadline=DEADLINE) as under:
        await under.admits(BEFORE)
        began, old = time.time(), trio.primary
        await asyncio.to_thread(trio.failover)
        await retired(old)
        await settled(under, trio, record, began)
