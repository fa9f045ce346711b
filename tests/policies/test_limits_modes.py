"""Rehearsed, switched off, or on its own: what limits do when they are not simply enforced."""

from __future__ import annotations

from typing import Any

import pytest

from stanchion import ConfigError, EventBus, Outcome, Reason, Signal
from stanchion.events import PolicyFailed, PolicyVetoed
from stanchion.observers import Recorder
from stanchion.testing import memory_bus
from tests.busses import Call, command, quota, rate, slots
from tests.policies.limits import admitted, left, redeclare, seen, vetoed
from tests.servers import free_port
from tests.waiting import eventually

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gcra": (rate, {"cost": "tokens"}),
    "sliding_window": (rate, {"cost": "tokens", "algorithm": "sliding_window"}),
    "sliding_log": (rate, {"cost": "tokens", "algorithm": "sliding_log"}),
    "fixed_window": (rate, {"cost": "tokens", "algorithm": "fixed_window"}),
    "quota": (quota, {}),
    "rolling": (quota, {"rolling": True}),
    "slots": (slots, {"cost": "tokens"}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def limited(kind: str, name: str = "p", **fields: Any) -> Any:
    """Make a limit of 10."""
    make, given = KINDS[kind]
    return make(name, **{"limit": 10, **given, **fields})


# ---- shadow


@each_kind
async def test_a_shadow_says_what_it_would_have_said_and_nobody_follows_it(kind):
    async with memory_bus(limited(kind, mode="shadow"), limited(kind, "real", limit=100)) as bus:
        first = await bus.check(Call(tokens=8))
        assert [(v.allowed, v.enforced, v.remaining) for v in first.verdicts] == [
            (True, False, 2),
            (True, True, 92),
        ]
        second = await bus.check(Call(tokens=8))
        assert second
        assert (second.vetoes, second.policy, second.signal) == ((), None, Signal.PROCEED)
        shadow, real = second.verdicts
        assert (shadow.policy, shadow.allowed, shadow.enforced) == ("p", False, False)
        assert (shadow.remaining, shadow.limit) == (2, 10)
        assert shadow.retry_after is not None
        assert (real.remaining, real.enforced) == (84, True)
        assert not bus.recorder.of(PolicyVetoed)


@each_kind
async def test_a_shadow_charges_what_it_would_have_admitted_and_nothing_else(kind):
    async with memory_bus(limited(kind, mode="shadow")) as bus:
        permit = await admitted(bus, tokens=8)
        assert [hold.policy for hold in permit.holds] == ["p"]
        refused = await admitted(bus, tokens=8)
        assert refused.holds == ()
        assert await left(bus) == 2
        assert await bus.settle(refused)
        assert await left(bus) == 2
        assert await bus.settle(permit, Outcome.SUCCESS, tokens=0)
        assert await left(bus) == 10


@each_kind
async def test_a_shadow_is_charged_for_nothing_that_others_refused(kind):
    async with memory_bus(limited(kind, mode="shadow"), limited(kind, "real", limit=5)) as bus:
        decision = await vetoed(bus, tokens=6)
        assert [v.policy for v in decision.vetoes] == ["real"]
        assert await left(bus) == 10


@each_kind
async def test_a_shadow_that_becomes_enforced_knows_what_was_used(kind):
    async with memory_bus(limited(kind, mode="shadow")) as bus:
        await admitted(bus, tokens=8)
        redeclare(bus, limited(kind))
        await vetoed(bus, tokens=3)
        assert (await seen(bus)).enforced
        assert await left(bus) == 2


@each_kind
async def test_a_limit_that_is_off_neither_answers_nor_counts(kind):
    async with memory_bus(limited(kind, mode="off")) as bus:
        for _ in range(3):
            decision = await bus.check(Call(tokens=1000))
            assert decision
            assert decision.verdicts == ()
            assert decision.permit is not None
            assert decision.permit.holds == ()
        assert await command(bus, "KEYS", "*:p:*") == []


# ---- while the store does not answer


def nowhere() -> str:
    return f"redis://127.0.0.1:{free_port()}/0"


@each_kind
@pytest.mark.parametrize(("answer", "allowed"), [("veto", False), ("admit", True)])
async def test_a_limit_that_cannot_be_asked_says_so_and_never_that_it_is_reached(
    kind, answer, allowed
):
    policy = limited(kind, on_outage=answer)
    async with EventBus.from_url(nowhere(), policies=[policy]) as bus:
        for decision in (await bus.check(Call()), await bus.peek(Call())):
            assert decision.allowed is allowed
            (verdict,) = decision.verdicts
            assert (verdict.allowed, verdict.reason) == (allowed, Reason.STORE_UNAVAILABLE)
            assert (verdict.limit, verdict.remaining, verdict.enforced) == (None, None, True)


async def test_a_shadow_that_cannot_be_asked_stops_nothing():
    policy = rate(mode="shadow", on_outage="veto")
    async with EventBus.from_url(nowhere(), policies=[policy]) as bus:
        decision = await bus.check(Call())
        assert decision
        assert [(v.allowed, v.enforced) for v in decision.verdicts] == [(False, False)]


@each_kind
async def test_a_process_alone_admits_its_share_of_the_limit_and_not_a_unit_more(kind):
    policy = limited(kind, limit=1000, on_outage="local")
    async with EventBus.from_url(nowhere(), policies=[policy], processes=7) as bus:
        permit = await admitted(bus, tokens=142)
        decision = await vetoed(bus, tokens=1)
        (verdict,) = decision.verdicts
        assert (verdict.limit, verdict.remaining) == (142, 0)
        assert verdict.reason in {"limit_reached", "quota_exhausted", "no_free_slot"}
        assert await bus.settle(permit, tokens=100)
        assert await left(bus) == (142 if kind == "slots" else 42)
        assert (await bus.check(Call(tokens=1))).verdicts[0].reason == Reason.LOCAL_SHARE


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (rate(limit=100, burst=21, cost="tokens", on_outage="local"), 2),
        (rate(limit={"pro": 100, "*": 30}, limit_by="model", cost="tokens", on_outage="local"), 3),
        (quota(limit=99, on_outage="local"), 9),
    ],
    ids=["burst", "plan", "rounded down"],
)
async def test_every_part_of_a_limit_is_shared_out(policy, share):
    async with EventBus.from_url(nowhere(), policies=[policy], processes=10) as bus:
        await vetoed(bus, tokens=share + 1)
        await admitted(bus, tokens=share)


def test_what_rolls_over_is_shared_out_too():
    # Or as many processes as there are would save up as many times what may be saved up.
    share = quota(limit=1000, rollover=500).share(8)
    assert share is not None
    assert (share.declaration()["limit"], share.declaration()["rollover"]) == (125, 62)


@each_kind
async def test_a_share_below_one_unit_admits_nothing(kind):
    policy = limited(kind, limit=6, on_outage="local")
    async with EventBus.from_url(nowhere(), policies=[policy], processes=7) as bus:
        decision = await vetoed(bus, tokens=1)
        assert decision.reason == Reason.LOCAL_SHARE


@each_kind
async def test_a_share_without_the_number_of_processes_is_refused(kind):
    with pytest.raises(ConfigError, match=r'on_outage="local" shares the limit out.*processes=N'):
        EventBus.from_url("memory://", policies=[limited(kind, on_outage="local")])


async def test_after_the_outage_the_shared_state_decides_again_and_the_share_is_not_renewed(valkey):
    policy = quota(limit=100, on_outage="local")
    async with EventBus.from_url(valkey.url, policies=[policy], processes=10, deadline=0.2) as bus:
        await admitted(bus, tokens=50)
        valkey.pause()
        alone = await admitted(bus, tokens=10)
        await vetoed(bus, tokens=1)
        assert [hold.local for hold in alone.holds] == [True]
        valkey.resume()

        async def shared() -> bool:
            verdict = (await bus.peek(Call(tokens=0))).verdicts[0]
            # What was on its way when the server stopped may have been charged as well.
            return verdict.limit == 100 and verdict.remaining in (50, 40, 39)

        await eventually(shared, 5)
        valkey.pause()
        await vetoed(bus, tokens=1)
        valkey.resume()
        assert await bus.settle(alone, tokens=0)


async def test_observers_are_told_which_limit_could_not_be_asked():
    recorder = Recorder()
    policies = [rate(), quota(on_outage="admit")]
    async with EventBus.from_url(nowhere(), policies=policies, observers=[recorder]) as bus:
        await bus.check(Call())
        veto = await recorder.wait_for(PolicyVetoed)
        assert (veto.policy, veto.reason) == ("calls", Reason.STORE_UNAVAILABLE)
        await eventually(lambda: len(recorder.of(PolicyFailed)) == 2)
        assert {event.policy for event in recorder.of(PolicyFailed)} == {"calls", "tokens"}
