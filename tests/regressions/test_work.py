"""What a limit costs the server: memory and commands, however high it is and however busy."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from stanchion.testing import memory_bus
from tests.busses import Call, calls_of_scripts, command, rate, slots
from tests.regressions.looking import PREFIX, lifetimes, only

if TYPE_CHECKING:
    from stanchion.testing import TestBus
    from tests.busses import Buses
    from tests.servers import RealServer


async def _memory(bus: TestBus) -> int:
    return sum([await command(bus, "MEMORY", "USAGE", key) for key in await lifetimes(bus)])


async def _check_often(bus: TestBus, count: int) -> None:
    # In parts, so that none waits for its turn until the deadline.
    for first in range(0, count, 200):
        part = range(first, min(first + 200, count))
        assert all(await asyncio.gather(*(bus.check(Call()) for _ in part)))


@pytest.mark.parametrize("algorithm", ["gcra", "fixed_window", "sliding_window"])
async def test_memory_and_work_do_not_grow_with_what_was_admitted(
    server: RealServer, algorithm: str
):
    """limits#268: a moving window of 70,000 a day held an entry for each, and stalled Redis."""
    policy = rate(limit=70_000, per="1d", algorithm=algorithm)
    async with memory_bus(policy, url=server.url) as bus:
        figures = []
        for count in (3, 60):
            for _ in range(24):
                await _check_often(bus, count)
                await bus.clock.advance("1h")
            with server.counting() as counted:
                assert await bus.check(Call())
            figures.append((await _memory(bus), len(await lifetimes(bus)), counted))
        (memory, keys, commands), (memory_then, keys_then, commands_then) = figures
        assert (keys, keys_then) == (1, 1)
        assert memory_then <= memory * 1.5  # the counts have more digits by then
        assert memory_then < 2500
        # Those of one slice leave with the field that counted them.
        assert commands_then - commands <= Counter(hdel=1)


async def test_a_refusal_by_a_long_log_takes_few_steps(valkey: RealServer):
    """limits#268: neither admitting nor refusing walks through all that the window holds."""
    policy = rate(limit=3000, per="1h", algorithm="sliding_log", cost="tokens")
    async with memory_bus(policy, url=valkey.url) as bus:
        with valkey.counting() as counted:
            assert await bus.check(Call())
        first = counted.total()
        await _check_often(bus, 2998)
        with valkey.counting() as counted:
            assert await bus.check(Call())
        assert counted.total() <= first + 1
        with valkey.counting() as counted:
            assert not await bus.check(Call())
        assert counted["zrangebyscore"] <= 2
        # Even where the wait is for all of them.
        with valkey.counting() as counted:
            assert not await bus.check(Call(tokens=3000))
        assert counted["zrangebyscore"] <= 8


async def test_more_than_eight_thousand_that_end_together_are_cleared_away(valkey: RealServer):
    """Scripts that `unpack` what they found fail with "too many results" near 8,000."""
    many = 8200
    policies = [
        slots(limit=2 * many, lease="30s"),
        rate(limit=2 * many, per="30s", algorithm="sliding_log"),
    ]
    async with memory_bus(*policies, url=valkey.url) as bus:
        await _check_often(bus, many)
        await bus.clock.advance(31)
        left = [verdict.remaining for verdict in (await bus.check(Call())).verdicts]
        assert left == [2 * many - 1] * 2
        for aux in ("slots.leases:slots:-", "rate.log:calls:-"):
            assert await command(bus, "ZCARD", PREFIX + aux) == 1


async def test_four_hundred_at_once_on_one_key_are_each_decided_once(
    open_valkey: Buses, valkey: RealServer
):
    """bucket4j#404, #603: compare-and-swap collapsed, and refused while there were tokens left."""
    buses = [await open_valkey(rate(limit=400, per="1h"), deadline=10) for _ in range(4)]
    with valkey.counting() as counted:
        decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(100) for bus in buses))
    assert all(decisions)
    assert sorted(only(decision).remaining or 0 for decision in decisions) == list(range(400))
    assert not await buses[0].check(Call())
    # One call decides for many, and none is made twice; the script itself has to be sent once.
    assert calls_of_scripts(counted) <= 4 * 8


async def test_a_refused_caller_asks_once(open_valkey: Buses, valkey: RealServer):
    """bucket4j#404: nor does a refusal cause more calls than an admission does."""
    bus = await open_valkey(rate(limit=1, per="1h"))
    assert await bus.check(Call())
    with valkey.counting() as counted:
        assert not await bus.check(Call())
    assert calls_of_scripts(counted) == 1
