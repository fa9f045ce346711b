"""A quota tells everybody when a share of it is reached: once a window, whoever was admitted."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from stanchion import EventBus, Permit
from stanchion.events import QuotaThresholdReached
from stanchion.observers import Recorder
from stanchion.testing import memory_bus
from tests.busses import Call, Other, command, quota
from tests.policies.limits import EPOCH, admitted, vetoed
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion.testing import TestBus
    from tests.busses import Buses


async def told(bus: TestBus) -> list[tuple[float, int, int]]:
    """Get share, used and limit of each message up to now: one that is provoked now is the last."""
    bus.register(quota("sentinel", on=Other, cost=1, limit=1, warn_at=(1.0,)))
    await admitted(bus, Other())
    last = await bus.recorder.wait_for(
        lambda event: isinstance(event, QuotaThresholdReached) and event.policy == "sentinel"
    )
    *messages, newest = bus.recorder.of(QuotaThresholdReached)
    assert newest is last
    return [(message.threshold, message.used, message.limit) for message in messages]


async def heard_by(bus: EventBus, buses: int) -> None:
    """Wait until so many buses listen."""

    async def listeners() -> bool:
        return (await command(bus, "PUBSUB", "NUMSUB", "stanchion:{default}:control"))[1] == buses

    await eventually(listeners)


WINDOWS = {
    "fixed": {"per": "1d"},
    "calendar": {"per": "month", "timezone": "Europe/Berlin"},
    "rolling": {"per": "1d", "rolling": True},
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
async def test_eighty_and_a_hundred_percent_are_told_once_each(window):
    async with memory_bus(quota(limit=100, **window)) as bus:
        await admitted(bus, tokens=79)
        await admitted(bus, tokens=1)
        await admitted(bus, tokens=19)
        await admitted(bus, tokens=1)
        await vetoed(bus, tokens=1)
        assert await told(bus) == [(0.8, 80, 100), (1.0, 100, 100)]


async def test_one_call_may_reach_several():
    async with memory_bus(quota(limit=10, warn_at=(1.0, 0.25, 0.5))) as bus:
        await admitted(bus, tokens=5)
        await admitted(bus, tokens=5)
        assert await told(bus) == [(0.25, 5, 10), (0.5, 5, 10), (1.0, 10, 10)]


async def test_a_share_that_has_no_exact_number_is_reached_by_the_whole_number_that_it_means():
    async with memory_bus(quota(limit=100, warn_at=(0.07, 0.29))) as bus:
        for _ in range(28):
            await admitted(bus)
        await admitted(bus)
        assert await told(bus) == [(0.07, 7, 100), (0.29, 29, 100)]


async def test_falling_below_and_reaching_it_again_is_not_told_twice_in_a_window():
    async with memory_bus(quota(limit=100)) as bus:
        permit = await admitted(bus, tokens=85)
        await bus.settle(permit, tokens=10)
        await admitted(bus, tokens=75)
        assert await told(bus) == [(0.8, 85, 100)]


async def test_the_next_window_tells_anew():
    async with memory_bus(quota(limit=100)) as bus:
        await admitted(bus, tokens=80)
        await bus.clock.advance("1d")
        await admitted(bus, tokens=90)
        assert await told(bus) == [(0.8, 80, 100), (0.8, 90, 100)]
        first, second, _ = bus.recorder.of(QuotaThresholdReached)
        day = timedelta(days=1)
        assert first.window_end == EPOCH + timedelta(microseconds=bus.clock.now_us)
        assert second.window_end == first.window_end + day
        assert second.seq == first.seq + 1
        assert (first.policy, first.subject) == ("tokens", "-")


async def test_real_cost_reaches_it_too():
    async with memory_bus(quota(limit=100)) as bus:
        await bus.settle(await admitted(bus, tokens=10), tokens=130)
        assert await told(bus) == [(0.8, 130, 100), (1.0, 130, 100)]


async def test_what_rolled_over_counts_into_the_limit():
    async with memory_bus(quota(limit=100, rollover=100)) as bus:
        await bus.settle(await admitted(bus, tokens=10), tokens=0)
        await bus.clock.advance("1d")
        await admitted(bus, tokens=160)
        assert await told(bus) == [(0.8, 160, 200)]


async def test_a_refused_call_reaches_nothing():
    async with memory_bus(quota(limit=100)) as bus:
        await admitted(bus, tokens=79)
        await vetoed(bus, tokens=22)
        await bus.peek(Call(tokens=21))
        assert await told(bus) == []


async def test_a_quota_that_warns_of_nothing_tells_nothing():
    async with memory_bus(quota(limit=100, warn_at=())) as bus:
        await admitted(bus, tokens=100)
        assert await told(bus) == []


async def test_a_window_that_slides_tells_again_after_it_has_fallen_below():
    async with memory_bus(quota(limit=100, per="1h", rolling=True, slices=10)) as bus:
        await admitted(bus, tokens=85)
        await admitted(bus, tokens=1)
        await bus.clock.advance("2h")
        await admitted(bus, tokens=5)
        await admitted(bus, tokens=75)
        assert await told(bus) == [(0.8, 85, 100), (0.8, 80, 100)]


async def test_every_process_is_told_of_it_once_and_of_the_same_event(open_shared: Buses):
    recorders = [Recorder(on=QuotaThresholdReached) for _ in range(3)]
    policy = quota(limit=100, by="tenant")
    first, second, _ = buses = [await open_shared(policy, observers=[each]) for each in recorders]
    await heard_by(first, len(buses))
    for bus in (first, second) * 5:
        await admitted(bus, Call(tenant="acme", tokens=10))
    await eventually(lambda: all(len(each.events) == 2 for each in recorders))
    lists = [each.of(QuotaThresholdReached) for each in recorders]
    assert lists[0] == lists[1] == lists[2]
    assert [(event.threshold, event.subject) for event in lists[0]] == [
        (0.8, "acme"),
        (1.0, "acme"),
    ]


async def test_a_settlement_elsewhere_tells_those_who_were_admitted(open_valkey: Buses):
    recorder = Recorder(on=QuotaThresholdReached)
    here: EventBus = await open_valkey(quota(limit=100), observers=[recorder])
    elsewhere: EventBus = await open_valkey()
    await heard_by(here, 2)
    permit = str(await admitted(here, tokens=10))
    await elsewhere.settle(Permit.parse(permit), tokens=85)
    event = await recorder.wait_for(QuotaThresholdReached)
    assert (event.threshold, event.used, event.limit) == (0.8, 85, 100)
