"""Clocks that jump: a worker's own, which decides nothing, and the server's, which decides all."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome
from stanchion.testing import START_US, memory_bus
from tests.faults.calls import DEADLINE, Call, ask, breaker, bus_on, charged, quota, rate, slots

if TYPE_CHECKING:
    from stanchion import Decision
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


class Jump:
    """This process's wall clock, moved by so much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
        seconds = by.total_seconds()
        wall, wall_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: wall() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(seconds * 1e9))


@pytest.mark.parametrize("hours", [-24 * 40, -1, 1, 24 * 40])
@pytest.mark.parametrize("per", ["hour", "day", "month"])
async def test_a_worker_whose_clock_is_wrong_counts_in_the_same_window(
    valkey: RealServer,
    monkeypatch: pytest.MonkeyPatch,
    per: str,
    hours: int,
    fault_record: FaultRecords,
):
    """±1 h and ±40 days, from the start and in the middle of a run."""
    record = fault_record(23, "±1 h and ±40 days, `time.time` moved", valkey, deadline=5)
    policies = [
        rate(limit=100),
        quota(limit=100, per=per, timezone="Europe/Berlin"),
        slots(limit=100),
        breaker(),
    ]
    async with bus_on(valkey.url, policies, deadline=5) as right:
        first = await ask(right, record)
        # In it from the start.
        with monkeypatch.context() as patch:
            Jump(patch, timedelta(hours=hours))
            async with bus_on(valkey.url, policies, deadline=5) as wrong:
                for used in (2, 3):
                    decision = await ask(wrong, record)
                    assert seen(decision) == [("ok", 100 - used), ("ok", 100 - used)], hours
                    assert decision.decided_at is not None
                    assert first.decided_at is not None
                    assert abs(decision.decided_at - first.decided_at) < timedelta(minutes=1)
                    assert decision.permit is not None
                    assert await wrong.settle(decision.permit)
                # It has learned: one call is enough.
                with valkey.counting() as counted:
                    assert await ask(wrong, record)
                assert counted["evalsha"] == 1
            # In the middle of a run.
            assert seen(await ask(right, record)) == [("ok", 95), ("ok", 95)]
        assert seen(await ask(right, record)) == [("ok", 94), ("ok", 94)]
        assert charged(valkey) == 6
        record.charge(charged(valkey))


def seen(decision: Decision) -> list[tuple[str, int | None]]:
    calls, tokens, slots_, circuit = decision.verdicts
    assert (slots_.reason, circuit.reason) == ("ok", "ok")
    for verdict in (calls, tokens):
        assert verdict.reset_after is not None
        assert verdict.reset_after >= 0
    return [(one.reason, one.remaining) for one in (calls, tokens)]


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_window", "sliding_log", "fixed_window"])
async def test_a_rate_admits_no_more_when_the_servers_clock_goes_back(
    store_url: str, algorithm: str
):
    """What a subject has used stays used; time goes on where it was."""
    policy = rate(limit=10, per="1h", algorithm=algorithm)
    async with memory_bus(policy, url=store_url) as bus:
        start = START_US + 1000 * DAY + 17 * SECOND
        await bus.clock.set_us(start)
        assert all([await bus.check(Call()) for _ in range(10)])
        for back in (1, SECOND, HOUR, 40 * DAY):
            await bus.clock.set_us(start - back)
            for _ in range(3):
                decision = await bus.check(Call())
                assert decision.reason == "limit_reached"
                verdict = decision.verdicts[0]
                assert verdict.remaining == 0
                assert verdict.retry_after is not None
                assert verdict.reset_after is not None
                # Told as the server will count it: its clock has that far to come back.
                behind = back / SECOND
                assert behind < verdict.retry_after <= behind + 3600 * 1.1
                assert behind < verdict.reset_after <= behind + 2 * 3600
        await bus.clock.set_us(start + 2 * HOUR)
        assert (await bus.check(Call())).verdicts[0].remaining == 9


@pytest.mark.parametrize("per", ["hour", "day", "month", "1h", "rolling"])
async def test_a_quota_grants_no_window_twice_when_the_servers_clock_goes_back(
    store_url: str, per: str
):
    """Also where it goes back into the window before."""
    policy = quota(rolling=True, per="1h", limit=3) if per == "rolling" else quota(per=per, limit=3)
    async with memory_bus(policy, url=store_url) as bus:
        start = START_US + 31 * DAY + 5 * SECOND
        await bus.clock.set_us(start)
        permit = await bus.admit(Call(tokens=2))
        await bus.clock.set_us(start - HOUR)
        assert (await bus.check(Call(tokens=1))).verdicts[0].remaining == 0
        assert (await bus.check(Call(tokens=1))).reason == "quota_exhausted"
        assert await bus.settle(permit, tokens=1)
        assert (await bus.check(Call(tokens=1))).verdicts[0].remaining == 0
        assert (await bus.check(Call(tokens=1))).reason == "quota_exhausted"


async def test_slots_in_use_stay_in_use_when_the_servers_clock_goes_back(store_url: str):
    """Their leases still end, too."""
    async with memory_bus(slots(limit=2, lease="10s"), url=store_url) as bus:
        start = START_US + DAY
        await bus.clock.set_us(start)
        first = await bus.admit(Call())
        await bus.clock.set_us(start - HOUR)
        assert await bus.check(Call())
        full = await bus.check(Call())
        assert full.reason == "no_free_slot"
        assert full.retry_after is not None
        assert 3600 < full.retry_after <= 3600 + 10
        assert await bus.renew(first)
        assert await bus.settle(first)
        assert await bus.check(Call())
        await bus.clock.set_us(start + 11 * SECOND)
        assert (await bus.check(Call())).verdicts[0].remaining == 1


async def test_a_circuit_stays_open_no_longer_when_the_servers_clock_goes_back(
    store_url: str, fault_record: FaultRecords
):
    """Open_until is bounded by what the subject's own time says."""
    kind = "fakeredis" if store_url == "memory://" else "real servers"
    record = fault_record(24, "−1 h in what scripts read as the time", kind, deadline=DEADLINE)
    policy = breaker(consecutive_failures=1, open_for="10s", lease="5s")
    async with memory_bus(policy, url=store_url) as bus:
        start = START_US + DAY
        await bus.clock.set_us(start)
        permit = await bus.admit(Call())
        await bus.clock.set_us(start - HOUR)
        # It trips in the past, as the server has it.
        assert await bus.settle(permit, Outcome.FAILURE)
        refused = await ask(bus, record)
        assert refused.reason == "circuit_open"
        assert refused.retry_after is not None
        assert 3600 < refused.retry_after <= 3600 + 10
        await bus.clock.set_us(start + 9 * SECOND)
        assert (await ask(bus, record)).reason == "circuit_open"
        await bus.clock.set_us(start + 10 * SECOND)
        probe = await bus.admit(Call())
        # A probe's lease is not cut short either.
        await bus.clock.set_us(start - HOUR)
        held = await ask(bus, record)
        assert held.reason == "probes_in_use"
        assert held.retry_after is not None
        assert 3610 < held.retry_after <= 3610 + 5
        assert await bus.settle(probe)
        assert await bus.force("provider", CircuitState.CLOSED, who="acme") == "closed"
