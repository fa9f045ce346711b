"""The time to wait, by the clock of each real server."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.busses import Call, command, quota, rate
from tests.waiting import eventually

POLICIES = [
    rate(limit=50, per="5s", burst=2),
    rate(limit=2, per="200ms", algorithm="sliding_window", slices=10),
    rate(limit=2, per="200ms", algorithm="sliding_log"),
    rate(limit=2, per="200ms", algorithm="fixed_window"),
    quota(cost=1, limit=2, per="200ms"),
    quota(cost=1, limit=2, per="200ms", rolling=True, slices=10),
]


async def server_us(bus) -> int:
    seconds, micros = await command(bus, "TIME")
    return int(seconds) * 1_000_000 + int(micros)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind.script_name)
async def test_who_waits_as_long_as_told_is_admitted_by_the_servers_own_clock(open_shared, policy):
    bus = await open_shared(policy)
    # Together they travel in one call, and so are decided at one moment.
    *_, vetoed = await asyncio.gather(*(bus.check(Call()) for _ in range(5)))
    assert vetoed.decided_at is not None
    assert vetoed.retry_after is not None
    assert 0 < vetoed.retry_after <= 0.25
    at = vetoed.decided_at.timestamp() * 1_000_000 + vetoed.retry_after * 1_000_000
    assert (await server_us(bus)) < at + 1_000_000

    async def is_due() -> bool:
        return await server_us(bus) >= at

    await eventually(is_due, 2, interval=0.005)
    assert await bus.check(Call())


async def test_a_decision_is_of_the_servers_time_even_where_ours_is_elsewhere(
    open_shared, monkeypatch
):
    bus = await open_shared(quota(cost=1, limit=5, per="day", timezone="Europe/Berlin"))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 40 * 86_400 * 10**9)
    decision = await bus.check(Call())
    assert decision
    reset = decision.verdicts[0].reset_after
    assert reset is not None
    assert 0 < reset <= 25 * 3600
    assert decision.decided_at.timestamp() == pytest.approx(real() / 1e9, abs=2)
    assert (await bus.check(Call())).verdicts[0].remaining == 3
