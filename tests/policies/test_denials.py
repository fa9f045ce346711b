"""What has been denied is denied again without asking, until it may have changed."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, ConfigError, Event, EventBus, Outcome
from stanchion.denials import Denial
from tests.busses import Call, Wave, breaker, calls_of_scripts, quota, rate, slots
from tests.policies.limits import admitted, redeclare, vetoed
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stanchion import Decision
    from tests.busses import Buses
    from tests.servers import RealServer

DENIED = "stanchion:{default}:denied"
ONE = {"limit": 1, "per": "1h"}


async def calls(server: RealServer, bus: EventBus, *events: Event) -> tuple[int, list[Decision]]:
    """Check one after another; get how many script calls that took, and the answers."""
    with server.counting() as counted:
        decisions = [await bus.check(event) for event in events]
    # The first call of a script is one that the server does not know yet.
    return counted["evalsha"], decisions


async def listening(server: RealServer, bus: EventBus) -> None:
    """Have a bus keep denials, for which it first has to be denied something."""
    bus.register(rate("waves", on=Wave, **ONE))
    await admitted(bus, Wave())
    await known(server, bus, Wave())


async def known(server: RealServer, bus: EventBus, event: Event) -> Decision:
    """Check what is denied until that takes no script call any more; get that denial."""

    async def without_asking() -> Decision | None:
        count, (decision,) = await calls(server, bus, event)
        assert not decision.allowed
        return None if count else decision

    found = await eventually(lambda: _kept(without_asking), what="the denial is kept")
    assert isinstance(found, list)
    return found[0]


async def _kept(look: Callable[[], Any]) -> list[Decision]:
    # A veto is false, and a list of one is true.
    decision = await look()
    return [] if decision is None else [decision]


@pytest.fixture
async def bus(open_valkey: Buses) -> EventBus:
    """A bus that keeps denials, of a rate of one an hour for each tenant, used up for `acme`."""
    made = await open_valkey(
        rate(by="tenant", cost="tokens", limit=5, per="1h"), cache_denials=True
    )
    await admitted(made, tenant="acme", tokens=5)
    return made


def event(tokens: int = 1, tenant: str = "acme") -> Call:
    return Call(tenant=tenant, tokens=tokens)


# ---- how long


async def test_a_denial_lasts_without_a_call_until_it_says_and_not_longer(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(rate(limit=1, per=0.8), cache_denials=True)
    await admitted(bus)
    denial = await known(valkey, bus, Call())
    assert denial.retry_after is not None
    until = time.monotonic() + denial.retry_after
    checks = 0
    with valkey.counting() as counted:
        while time.monotonic() < until - 0.02:
            assert not await bus.check(Call())
            await asyncio.sleep(0.001)
            checks += 1
    assert checks > 50
    assert calls_of_scripts(counted) == 0
    await asyncio.sleep(until - time.monotonic() + 0.002)
    assert await bus.check(Call())


async def test_nothing_is_kept_for_more_than_five_seconds(bus: EventBus, valkey: RealServer):
    await known(valkey, bus, event())
    began, count = time.monotonic(), 0
    while not count:
        await asyncio.sleep(0.05)
        count, _ = await calls(valkey, bus, event())
    assert 4 < time.monotonic() - began < 5.3
    # The mark of it lives twice as long, for clocks are not the same.
    assert 5_000 < int(valkey.execute("PTTL", DENIED)) <= 10_000


async def test_an_admission_is_never_kept(open_valkey: Buses, valkey: RealServer):
    bus = await open_valkey(rate(limit=50), cache_denials=True)
    await admitted(bus)
    for _ in range(3):
        count, (decision,) = await calls(valkey, bus, Call())
        assert (count, decision.allowed) == (1, True)


# ---- for whom


async def test_a_denial_at_one_cost_is_one_for_larger_costs_and_says_nothing_of_smaller_ones(
    open_valkey: Buses, valkey: RealServer
):
    policy = rate(by="tenant", cost="tokens", limit=10, per="1h")
    bus = await open_valkey(policy, cache_denials=True)
    await admitted(bus, event(6))
    await known(valkey, bus, event(5))
    assert (await calls(valkey, bus, event(6), event(10)))[0] == 0
    count, (decision,) = await calls(valkey, bus, event(4))
    assert (count, decision.allowed) == (1, True)


async def test_other_subjects_and_other_declarations_are_asked_about(
    bus: EventBus, valkey: RealServer
):
    await known(valkey, bus, event())
    count, (decision,) = await calls(valkey, bus, event(tenant="other"))
    assert (count, decision.allowed) == (1, True)
    redeclare(bus, rate(by="tenant", cost="tokens", limit=500, per="1h"))
    count, (decision,) = await calls(valkey, bus, event())
    assert (count, decision.allowed) == (1, True)


async def test_in_shadow_mode_nothing_is_kept(open_valkey: Buses, valkey: RealServer):
    bus = await open_valkey(rate(**ONE, mode="shadow"), rate("other"), cache_denials=True)
    await listening(valkey, bus)
    valkey.execute("DEL", DENIED)
    for number in range(4):
        count, (decision,) = await calls(valkey, bus, Call())
        assert (count, decision.allowed) == (1, True)
        assert decision.verdicts[0].allowed is (number == 0)
    assert not valkey.execute("EXISTS", DENIED)


async def test_slots_and_probes_are_asked_for_every_time(open_valkey: Buses, valkey: RealServer):
    bus = await open_valkey(slots(limit=1), breaker(open_for="50ms"), cache_denials=True)
    await listening(valkey, bus)
    permit = await admitted(bus)
    for _ in range(3):
        count, (decision,) = await calls(valkey, bus, Call())
        assert (count, decision.reason) == (1, "no_free_slot")
    await bus.settle(permit, Outcome.FAILURE)
    await bus.settle(await admitted(bus), Outcome.FAILURE)
    bus.unregister("slots")
    assert (await vetoed(bus)).reason == "circuit_open"
    await asyncio.sleep(0.06)
    await admitted(bus)
    for _ in range(3):
        count, (decision,) = await calls(valkey, bus, Call())
        assert (count, decision.reason) == (1, "probes_in_use")


async def test_waiting_and_looking_ask_every_time(open_valkey: Buses, valkey: RealServer):
    bus = await open_valkey(rate(limit=1, per=0.4), cache_denials=True)
    await admitted(bus)
    await known(valkey, bus, Call())
    with valkey.counting() as counted:
        assert not await bus.peek(Call())
    assert counted["evalsha"] == 1
    waiting = asyncio.create_task(bus.admit(Call(), wait=2))
    async with asyncio.timeout(1):
        await waiting
    # Nor does one who is refused in favour of those who wait keep that.
    waiting = asyncio.create_task(bus.admit(Call(), wait=2))
    await asyncio.sleep(0.1)
    assert not await bus.check(Call())
    await waiting


# ---- what it tells


async def test_a_kept_denial_tells_what_the_first_told_and_counts_down(
    open_valkey: Buses, valkey: RealServer
):
    policies = [rate(limit=2, per="1h", on_veto="retry"), quota()]
    bus = await open_valkey(*policies, cache_denials=True)
    for _ in range(2):
        await admitted(bus)
    first, told_at = await vetoed(bus), [time.monotonic()]
    kept = await known(valkey, bus, Call())
    told_at.append(time.monotonic())
    assert (kept.policy, kept.reason, kept.signal) == (first.policy, first.reason, first.signal)
    assert (kept.policy, kept.reason, kept.signal) == ("calls", "limit_reached", "retry")
    (verdict,) = kept.verdicts
    assert (verdict.limit, verdict.remaining, verdict.enforced) == (2, 0, True)
    assert kept.permit is None
    await asyncio.sleep(0.1)
    later = await bus.check(Call())
    told_at.append(time.monotonic())
    for number, (earlier, now) in enumerate(((first, kept), (kept, later))):
        assert earlier.retry_after is not None
        assert now.retry_after is not None
        passed = told_at[number + 1] - told_at[number]
        assert earlier.retry_after - now.retry_after == pytest.approx(passed, abs=0.03)
        # The server has not been asked what time it is.
        assert now.decided_at is None
    reset = later.verdicts[0].reset_after
    assert reset is not None
    assert 3600 - 10 < reset < 3600


# ---- what ends it


async def test_the_same_bus_never_denies_what_it_has_just_made_free(
    open_valkey: Buses, valkey: RealServer
):
    policies = [rate(by="tenant", **ONE), breaker(by="tenant")]
    bus = await open_valkey(*policies, cache_denials=True)
    for number in range(10):
        tenant = f"t{number}"
        permit = await admitted(bus, event(tenant=tenant))
        await known(valkey, bus, event(tenant=tenant))
        assert await bus.settle(permit, calls=0)
        await admitted(bus, event(tenant=tenant))
        await known(valkey, bus, event(tenant=tenant))
        await bus.reset("calls", tenant=tenant)
        await admitted(bus, event(tenant=tenant))
        await known(valkey, bus, event(tenant=tenant))
        await bus.override("calls", 9, tenant=tenant)
        await admitted(bus, event(tenant=tenant))
        await bus.force("provider", CircuitState.FORCED_OPEN, tenant=tenant)
        assert (await known(valkey, bus, event(tenant=tenant))).reason == "forced_open"
        await bus.force("provider", CircuitState.CLOSED, tenant=tenant)
        await admitted(bus, event(tenant=tenant))


async def test_what_is_denied_while_it_is_made_free_is_not_kept(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(rate(by="tenant", **ONE), cache_denials=True)
    other = await open_valkey(rate(by="tenant", **ONE))
    await listening(valkey, bus)
    for number in range(15):
        call = event(tenant=f"t{number}")
        permit = await admitted(other, call)
        # The denial, and that it has ended, come back together.
        valkey.pause()
        denied = [asyncio.create_task(bus.check(call)) for _ in range(3)]
        await asyncio.sleep(0.002)
        settling = asyncio.create_task(other.settle(permit, calls=0))
        await asyncio.sleep(0.002)
        valkey.resume()
        decisions = await asyncio.gather(*denied)
        assert await settling
        if not any(decisions):

            async def free(call: Call = call) -> bool:
                return (await bus.check(call)).allowed

            await eventually(free, 0.3, interval=0.002)


async def test_a_lost_subscription_takes_what_is_known_with_it_and_without_one_nothing_is_kept(
    bus: EventBus, valkey: RealServer, open_valkey: Buses
):
    await known(valkey, bus, event())
    valkey.execute("ACL", "SETUSER", "default", "-subscribe")
    try:
        valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")

        async def asked() -> bool:
            return (await calls(valkey, bus, event()))[0] > 0

        await eventually(asked, 1.0)
        other = await open_valkey(rate(by="tenant", cost="tokens", limit=5, per="1h"))
        for _ in range(3):
            assert (await calls(valkey, bus, event()))[0] == 1
        await other.reset("calls")
        assert await bus.check(event(5))
    finally:
        valkey.execute("ACL", "SETUSER", "default", "+subscribe")
    # Back on the channel, it keeps again.
    await known(valkey, bus, event())


async def test_a_subscription_that_comes_back_at_once_has_lost_what_was_known_as_well(
    bus: EventBus, valkey: RealServer, open_valkey: Buses
):
    other = await open_valkey(rate(by="tenant", cost="tokens", limit=5, per="1h"))
    await known(valkey, bus, event())
    valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
    await other.reset("calls")

    async def free() -> bool:
        return (await bus.check(event(5))).allowed

    await eventually(free, 1.0)


# ---- bounds, and what cannot be written


async def test_what_is_known_is_bounded(
    open_valkey: Buses, valkey: RealServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stanchion.denials._SUBJECTS", 300)
    bus = await open_valkey(rate(by="tenant", **ONE), cache_denials=True)
    await admitted(bus, event())
    await known(valkey, bus, event())
    events = [event(tenant=f"t{number}") for number in range(1200)]
    await asyncio.gather(*map(bus.check, events))
    denied = await asyncio.gather(*map(bus.check, events))
    assert not any(denied)
    del denied
    gc.collect()
    kept = sum(isinstance(one, Denial) for one in gc.get_objects())
    assert 100 <= kept <= 301
    # The newest are kept.
    assert (await calls(valkey, bus, *events[-50:]))[0] == 0
    assert int(valkey.execute("ZCARD", DENIED)) <= 1201


async def test_marks_that_have_ended_go_with_the_next_and_the_last_with_the_key(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(rate(by="tenant", limit=1, per=0.2), cache_denials=True)
    for number in range(20):
        await admitted(bus, event(tenant=f"t{number}"))
        await vetoed(bus, event(tenant=f"t{number}"))
    assert int(valkey.execute("ZCARD", DENIED)) > 1
    await asyncio.sleep(0.25)
    await admitted(bus, event(tenant="last"))
    await vetoed(bus, event(tenant="last"))
    assert valkey.execute("ZRANGE", DENIED, 0, -1) == ["stanchion:{default}:rate:calls:last"]


async def test_a_mark_that_cannot_be_written_changes_no_answer(
    open_valkey: Buses, valkey: RealServer
):
    policies = [rate(**ONE), quota(limit=1)]
    bus = await open_valkey(*policies, cache_denials=True)
    permit = await admitted(bus)
    valkey.execute("SET", DENIED, "text", "EX", 60)
    assert (await vetoed(bus)).reason == "limit_reached"
    await known(valkey, bus, Call())
    assert await bus.settle(permit, calls=0, tokens=0)
    valkey.execute("DEL", DENIED)
    await admitted(bus)
    fresh = await open_valkey(*policies, cache_denials=True)
    with valkey.configured(maxmemory=1):
        assert (await vetoed(fresh)).reason == "limit_reached"
        assert not valkey.execute("EXISTS", DENIED)


async def test_closing_while_it_is_asked_leaves_nothing_behind(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(rate(**ONE), cache_denials=True)
    await admitted(bus)
    valkey.pause()
    asking = asyncio.create_task(bus.check(Call()))
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0.02)
    valkey.resume()
    await closing
    assert not await asking


# ---- one setting


def declared() -> str:
    return "policies:\n  - {kind: rate_limit, name: calls, on: 'busses:call', limit: 1, per: 1h}\n"


@pytest.mark.parametrize("way", ["from_url", "yaml", "environment"])
@pytest.mark.parametrize("kept", [True, False])
async def test_one_setting_has_it_asked_every_time(
    valkey: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, kept: bool
):
    if way == "from_url":
        bus = EventBus.from_url(valkey.url, policies=[rate(**ONE)], cache_denials=kept)
    else:
        # What the environment says counts.
        said = kept if way == "yaml" else not kept
        monkeypatch.setenv("STANCHION_CACHE_DENIALS", str(kept).lower())
        if way == "yaml":
            monkeypatch.delenv("STANCHION_CACHE_DENIALS")
        file = tmp_path / "bus.yaml"
        file.write_text(f"url: {valkey.url}\ncache_denials: {str(said).lower()}\n" + declared())
        bus = EventBus.from_config(file)
    async with bus:
        await admitted(bus)
        if kept:
            await known(valkey, bus, Call())
        else:
            for _ in range(3):
                assert (await calls(valkey, bus, Call()))[0] == 1
            assert not valkey.execute("EXISTS", DENIED)


def test_what_is_no_answer_to_that_is_said(tmp_path: Path):
    file = tmp_path / "bus.yaml"
    file.write_text("url: memory://\ncache_denials: 3\n")
    with pytest.raises(ConfigError, match="cache_denials"):
        EventBus.from_config(file)
