"""A cluster of six that loses a primary, or has another one lead, under load.

The figures are printed: `pytest tests/faults/test_cluster_failover.py -rP`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest

from stanchion import EventBus
from tests.faults.calls import PREFIX, UNAVAILABLE, Call, charged, quota, rate
from tests.faults.load import Balance, Load, Tally, balance, load
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.replicated import ReplicatedCluster, ReplicatedNode

LIMIT = 800
DEADLINE = 0.4
#: For callers that shall notice nothing.
PATIENT = 2.0
CLUSTER_FAILOVER = 16
BEFORE = 150


def limited() -> list[object]:
    return [quota(limit=LIMIT, lease="1h")]


class Elsewhere:
    """A caller in a namespace on another node, that must notice nothing."""

    def __init__(self, cluster: ReplicatedCluster) -> None:
        ours = cluster.node_of(PREFIX)
        names = (f"elsewhere-{number}" for number in range(100))
        name = next(n for n in names if cluster.node_of(f"stanchion:{{{n}}}:") is not ours)
        self.denied = 0
        self.admitted = 0
        self.worst = 0.0
        self._over = asyncio.Event()
        # A connection that is lost with the other node must not be this bus's.
        self._bus = EventBus.from_url(
            cluster.url, policies=[rate()], namespace=name, deadline=PATIENT
        )
        self._caller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._bus.open()
        await eventually(lambda: self._bus.check(Call()), what="the store answers")
        self._caller = asyncio.create_task(self._call())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        if self._caller is not None:
            await self._caller
        await self._bus.close()

    async def _call(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            decision = await self._bus.check(Call())
            self.worst = max(self.worst, time.monotonic() - began)
            self.admitted += decision.allowed
            self.denied += not decision.allowed
            await asyncio.sleep(0.01)


async def settled(
    under: Load, cluster: ReplicatedCluster, record: FaultRecord, began: float
) -> Balance:
    """Use the limit up where the slot is now; hold what was promised against the bound."""
    await under.exhausts()
    tally = await under.stop()
    leader = await asyncio.to_thread(cluster.node_of, PREFIX)
    result = balance(tally, leader)
    assert charged(leader) == LIMIT
    assert result.admitted == LIMIT + result.missing - result.unheard
    assert tally.worst < PATIENT + 1
    told(record, tally, result, began)
    record.charge(charged(leader))
    return result


def told(record: FaultRecord, tally: Tally, result: Balance, began: float) -> None:
    unavailable = tally.denied.get(UNAVAILABLE, 0)
    record.saw(*["admitted"] * result.admitted, *[f"denied, `{UNAVAILABLE}`"] * unavailable)
    record.admitted += result.admitted
    record.took(tally.worst)
    record.recovery = max(tally.recovered_after(began), 0.0)
    print(
        f"{record.fault}: {result.admitted} admitted under a limit of {LIMIT}; over-admission "
        f"{result.over(LIMIT)}, bound {result.missing} (answered, not replicated); {result.unheard}"
        f" charged without an answer; {unavailable} vetoes for {record.recovery:.2f} s, longest "
        f"without an admission {tally.longest_gap:.2f} s, worst answer {tally.worst:.3f} s; "
        f"{tally.details}"
    )


async def hand_over(replica: ReplicatedNode, *how: str) -> None:
    """Have a replica lead; one that did not get through to it in five seconds is asked again."""
    for _ in range(3):
        await asyncio.to_thread(replica.execute, "CLUSTER", "FAILOVER", *how)
        with suppress(AssertionError):
            await eventually(lambda: replica.slots, 7, what="the replica leads")
            return
    pytest.fail(f"no failover to {replica}")


async def test_a_manual_failover_loses_nothing_and_nobody_is_refused(
    replicated: ReplicatedCluster, fault_record: FaultRecords
):
    """CLUSTER FAILOVER: the primary pauses its clients until the replica has everything."""
    ours = replicated.node_of(PREFIX)
    record = fault_record(CLUSTER_FAILOVER, "CLUSTER FAILOVER", ours)
    async with (
        load(replicated.url, limited(), deadline=PATIENT) as under,
        Elsewhere(replicated) as elsewhere,
    ):
        await under.admits(BEFORE)
        began = time.time()
        await hand_over(replicated.replica_of(ours))
        await under.admits(BEFORE)
        result = await settled(under, replicated, record, began)
    assert (result.missing, result.over(LIMIT)) == (0, 0)
    assert elsewhere.denied == 0


async def test_a_takeover_costs_at_most_what_was_not_handed_on(
    replicated: ReplicatedCluster, fault_record: FaultRecords
):
    """CLUSTER FAILOVER TAKEOVER: the replica asks nobody, and its primary hears of it later."""
    ours = replicated.node_of(PREFIX)
    replica = replicated.replica_of(ours)
    record = fault_record(CLUSTER_FAILOVER, "CLUSTER FAILOVER TAKEOVER", ours)
    async with load(replicated.url, limited(), deadline=DEADLINE) as under:
        await under.admits(BEFORE)
        began = time.time()
        await hand_over(replica, "TAKEOVER")
        await under.admits(BEFORE)
        result = await settled(under, replicated, record, began)
    assert result.over(LIMIT) <= result.missing


async def test_a_killed_primary_is_replaced_and_other_namespaces_do_not_notice(
    replicated: ReplicatedCluster, fault_record: FaultRecords
):
    ours = replicated.node_of(PREFIX)
    record = fault_record(CLUSTER_FAILOVER, "SIGKILL of the primary", ours)
    async with (
        load(replicated.url, limited(), deadline=DEADLINE) as under,
        Elsewhere(replicated) as elsewhere,
    ):
        await under.admits(BEFORE)
        began = time.time()
        ours.kill()
        await under.admits(BEFORE)
        result = await settled(under, replicated, record, began)
        assert result.over(LIMIT) <= result.missing
        print(f"elsewhere: {elsewhere.admitted} admitted, worst answer {elsewhere.worst:.3f} s")
    assert elsewhere.denied == 0
    assert elsewhere.worst < PATIENT
