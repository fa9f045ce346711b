"""Slots under leases: their weights, how they are kept, lost and given back, and when to retry."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from stanchion import ConcurrencyLimited, Outcome, Permit
from stanchion.sync import EventBus as SyncEventBus
from stanchion.testing import START_US, memory_bus
from tests.busses import Call, in_use, slots, snapshot, values
from tests.waiting import eventually

CALL = Call(tenant="acme")
LEASES = "stanchion:{default}:slots.leases:slots:-"
LEASE = 0.3


def weighted(**fields):
    """Make a cap of ten slots, of which each call takes as many as it has tokens."""
    return slots(**{"limit": 10, "cost": "tokens", **fields})


async def refused(bus, event=CALL):
    """Check, see it refused for want of slots, and get the verdict."""
    decision = await bus.check(event)
    assert not decision
    assert decision.reason == "no_free_slot"
    return decision.verdicts[0]


# ---- counting


async def test_heavy_and_light_holders_share_the_slots(open_bus):
    bus = await open_bus(weighted())
    heavy, light = await bus.admit(Call(tokens=7)), await bus.admit(Call(tokens=2))
    verdict = await refused(bus, Call(tokens=2))
    assert (verdict.limit, verdict.remaining) == (10, 1)
    last = await bus.check(Call(tokens=1))
    assert last.verdicts[0].remaining == 0
    assert await bus.settle(heavy)
    assert (await values(bus, "slots"))["in_use"] == "3"
    await refused(bus, Call(tokens=8))
    assert await bus.check(Call(tokens=7))
    assert await bus.settle(light)
    assert await bus.settle(last.permit)
    assert (await values(bus, "slots"))["in_use"] == "7"


async def test_a_fixed_weight_counts_for_every_call(open_bus):
    bus = await open_bus(slots(limit=7, cost=3))
    assert await bus.check(CALL)
    assert (await bus.check(CALL)).verdicts[0].remaining == 1
    await refused(bus)


async def test_however_many_press_at_once_from_everywhere_the_cap_holds(open_shared):
    buses = [await open_shared(weighted()) for _ in range(4)]
    events = [Call(tokens=weight) for weight in (1, 2, 3) * 8]
    decisions = await asyncio.gather(*(bus.check(event) for event in events for bus in buses))
    taken = [
        event.tokens
        for event, decision in zip(
            [event for event in events for _ in buses], decisions, strict=True
        )
        if decision
    ]
    assert sum(taken) == 10
    settled = [await buses[0].settle(d.permit) for d in decisions if d.permit]
    assert all(settled)
    assert (await values(buses[1], "slots"))["in_use"] == "0"


async def test_the_real_cost_changes_nothing_that_was_held(open_bus):
    bus = await open_bus(weighted())
    permit = await bus.admit(Call(tokens=4))
    assert await bus.settle(permit, tokens=9)
    assert (await values(bus, "slots"))["in_use"] == "0"


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_slots_come_back_however_it_ended(open_bus, outcome):
    bus = await open_bus(slots(limit=1))
    for _ in range(3):
        permit = await bus.admit(CALL)
        await refused(bus)
        assert await bus.settle(permit, outcome)


# ---- giving back


async def test_releasing_again_changes_nothing(open_bus):
    bus = await open_bus(weighted(limit=6))
    first, _ = await bus.admit(Call(tokens=2)), await bus.admit(Call(tokens=4))
    assert await bus.settle(first)
    before = await snapshot(bus)
    for _ in range(3):
        again = await bus.settle(first)
        assert (bool(again), again.stale) == (False, ("slots",))
    assert await snapshot(bus) == before
    await refused(bus, Call(tokens=3))


async def test_a_text_of_a_permit_releases_once_whoever_holds_it(open_shared):
    one, two = await open_shared(slots(limit=1)), await open_shared()
    permit = await one.admit(CALL)
    copy = Permit.parse(str(permit))
    assert await two.settle(copy)
    assert not await one.settle(permit)
    assert await one.check(CALL)


async def test_a_release_after_the_lease_takes_nothing_from_the_successor():
    async with memory_bus(slots(limit=1)) as bus:
        late = await bus.admit(CALL)
        await bus.clock.advance(30)
        successor = await bus.admit(CALL)
        before = await snapshot(bus)
        assert (await bus.settle(late)).stale == ("slots",)
        assert not await bus.renew(late)
        assert late.lost
        assert await snapshot(bus) == before
        await refused(bus)
        assert await bus.settle(successor)


async def test_a_release_just_before_the_lease_ends_is_in_time():
    async with memory_bus(slots(limit=1)) as bus:
        permit = await bus.admit(CALL)
        await bus.clock.set_us(START_US + 29_999_999)
        assert await bus.settle(permit)


async def test_a_lease_that_has_ended_is_lost_though_nobody_took_the_slot_yet():
    async with memory_bus(slots(limit=1)) as bus:
        permit = await bus.admit(CALL)
        await bus.clock.advance(30)
        assert not await bus.renew(permit)
        assert permit.lost
        assert (await bus.settle(permit)).stale == ("slots",)
        assert await bus.peek(CALL)


async def test_a_release_after_a_reset_is_stale(open_bus):
    bus = await open_bus(slots(limit=1))
    permit = await bus.admit(CALL)
    await bus.reset("slots")
    successor = await bus.admit(CALL)
    assert (await bus.settle(permit)).stale == ("slots",)
    await refused(bus)
    assert await bus.settle(successor)


# ---- when to try again


async def test_retry_after_is_when_enough_leases_will_have_ended():
    async with memory_bus(weighted()) as bus:
        for weight in (5, 3, 2):
            await bus.admit(Call(tokens=weight))
            await bus.clock.advance(4)
        for weight, wait in ((1, 18), (5, 18), (6, 22), (8, 22), (9, 26), (10, 26)):
            assert (await refused(bus, Call(tokens=weight))).retry_after == wait, weight
        verdict = (await bus.check(Call(tokens=11))).verdicts[0]
        assert (verdict.reason, verdict.retry_after) == ("cost_above_limit", None)
        await bus.clock.set_us(START_US + 34_000_000 - 1)
        assert (await refused(bus, Call(tokens=8))).retry_after == 0.000001
        await bus.clock.set_us(START_US + 34_000_000)
        assert await bus.check(Call(tokens=8))


async def test_a_denial_lengthens_no_lease():
    async with memory_bus(slots(limit=1)) as bus:
        await bus.admit(CALL)
        for second in range(30):
            assert (await refused(bus)).retry_after == 30 - second
            await bus.clock.advance(1)
        assert await bus.check(CALL)


# ---- keeping


async def test_renewing_by_hand_begins_the_lease_anew():
    async with memory_bus(slots(limit=1)) as bus:
        permit = await bus.admit(CALL)
        for _ in range(5):
            await bus.clock.advance(20)
            assert (await refused(bus)).retry_after == 10
            assert await bus.renew(permit)
            assert (await refused(bus)).retry_after == 30
        assert await bus.settle(permit)


def press(url, told, stop):
    """Ask for the slot from a thread of its own, as another process would, until told to stop."""
    with SyncEventBus.from_url(url, policies=[slots(limit=1, lease=LEASE)]) as bus:
        while not stop.is_set():
            told.append(bus.check(CALL))


async def test_a_blocked_loop_loses_no_slot(open_valkey, valkey):
    bus = await open_valkey(slots(limit=1, lease=LEASE))
    told, stop = [], threading.Event()
    presser = threading.Thread(target=press, args=(valkey.url, told, stop))
    async with bus.guard(CALL) as permit:
        presser.start()
        # On purpose: nothing of this loop runs for three and a half leases.
        time.sleep(3.5 * LEASE)  # noqa: ASYNC251
        seconds, micros = valkey.execute("TIME")
        ((_, end),) = valkey.control.zrange(LEASES, 0, -1, withscores=True)
        stop.set()
        assert end > int(seconds) * 1_000_000 + int(micros), "the lease is still being renewed"
        assert not permit.lost
        await asyncio.to_thread(presser.join)
    assert len(told) > 20
    assert {decision.reason for decision in told} == {"no_free_slot"}
    assert await in_use(bus) == 0


async def test_a_blocking_guard_keeps_its_slot_while_its_thread_is_busy(valkey):
    def work():
        with (
            SyncEventBus.from_url(valkey.url, policies=[slots(limit=1, lease=LEASE)]) as bus,
            bus.guard(CALL) as permit,
        ):
            time.sleep(2.5 * LEASE)
            return permit.lost, bus.check(CALL).reason

    assert await asyncio.to_thread(work) == (False, "no_free_slot")


async def test_a_holder_learns_that_its_lease_has_ended(open_shared, server):
    one, two = [await open_shared(slots(limit=1, lease=LEASE)) for _ in range(2)]
    async with one.guard(CALL) as permit:
        assert not permit.lost
        # As if this process had stood still: its lease is over, and another has the slot.
        server.execute("ZREM", LEASES, *server.control.zrange(LEASES, 0, -1))
        async with two.guard(CALL) as successor:
            await eventually(lambda: permit.lost, what="the holder is told")
            assert not await one.renew(permit)
            await refused(one)
            assert not successor.lost
            stale = await one.settle(permit)
            assert stale.stale == ("slots",)
            await refused(one)
    assert await in_use(one) == 0


async def test_what_a_check_holds_ends_with_its_lease_unless_somebody_renews_it(open_valkey):
    bus = await open_valkey(slots(limit=1, lease=LEASE))
    permit = await bus.admit(CALL)
    successor = await eventually(lambda: bus.check(CALL), interval=0.005)
    waited = successor.permit.admitted_us - permit.admitted_us
    assert LEASE * 1e6 <= waited < LEASE * 2e6, waited
    assert (await bus.settle(permit)).stale == ("slots",)
    with pytest.raises(ConcurrencyLimited):
        await bus.admit(CALL)
