"""One event under limits of several levels: all of them or none, in one call, and who vetoed."""

from __future__ import annotations

import itertools

import pytest

from stanchion import Event, Outcome, Vetoed
from stanchion.events import PolicyVetoed
from stanchion.observers import Recorder
from stanchion.testing import memory_bus
from tests.busses import breaker as make_breaker
from tests.busses import calls_of_scripts, in_use, snapshot
from tests.busses import quota as make_quota
from tests.busses import rate as make_rate
from tests.busses import slots as make_slots

LEVELS = ("organisation", "tenant", "user", "model")


class Ask(Event, type="hierarchies:ask"):
    """What is asked on behalf of somebody, within several larger wholes."""

    organisation: str = "org"
    tenant: str | None = "acme"
    user: str = "ann"
    model: str = "m1"
    tokens: int = 10


ASK = Ask()
#: Events that have so many levels in common with ASK, from the widest on.
KIN = {
    1: Ask(tenant="other", user="bob", model="m2"),
    2: Ask(user="bob", model="m2"),
    3: Ask(model="m2"),
}


def by(level):
    """Get the fields that tell the subjects of a level apart: each level lies within the last."""
    return LEVELS[: LEVELS.index(level) + 1]


MAKERS = {
    "rate": lambda name, level, limit: make_rate(
        name, on=Ask, by=by(level), limit=limit, cost="tokens"
    ),
    "log": lambda name, level, limit: make_rate(
        name, on=Ask, by=by(level), limit=limit, cost="tokens", algorithm="sliding_log"
    ),
    "quota": lambda name, level, limit: make_quota(name, on=Ask, by=by(level), limit=limit),
    "slots": lambda name, level, limit: make_slots(
        name, on=Ask, by=by(level), limit=limit, cost="tokens"
    ),
}


def levels(kind, **limits):
    """Make a policy of one kind for each level; those that are not named have room for a lot."""
    return [MAKERS[kind](level, level, limits.get(level, 1000)) for level in LEVELS]


@pytest.mark.parametrize(("kind", "tight"), list(itertools.product(MAKERS, LEVELS)))
async def test_the_level_that_is_full_vetoes_and_no_other_is_touched(open_valkey, kind, tight):
    bus = await open_valkey(*levels(kind, **{tight: 25}))
    assert await bus.check(ASK)
    assert await bus.check(ASK)
    before = await snapshot(bus)
    for _ in range(3):
        decision = await bus.check(ASK)
        assert not decision
        assert decision.policy == tight
        assert [verdict.policy for verdict in decision.verdicts] == list(LEVELS)
        assert {v.policy: v.allowed for v in decision.verdicts} == {
            level: level != tight for level in LEVELS
        }
        left = {v.policy: v.remaining for v in decision.verdicts}
        assert left == {level: 5 if level == tight else 980 for level in LEVELS}
    assert await snapshot(bus) == before, "byte for byte, and to the millisecond of every expiry"
    assert await bus.check(Ask(tokens=5))


@pytest.mark.parametrize("kind", MAKERS)
async def test_each_level_counts_all_that_is_within_it(open_valkey, kind):
    bus = await open_valkey(*levels(kind, organisation=100, tenant=70, user=40, model=20))
    for event, wanted in (
        (ASK, [90, 60, 30, 10]),
        (KIN[3], [80, 50, 20, 10]),
        (KIN[2], [70, 40, 30, 10]),
        (KIN[1], [60, 60, 30, 10]),
        (ASK, [50, 30, 10, 0]),
    ):
        decision = await bus.check(event)
        assert [verdict.remaining for verdict in decision.verdicts] == wanted
    assert (await bus.check(ASK)).policy == "model"
    assert await bus.check(KIN[3])
    assert [v.policy for v in (await bus.check(ASK)).vetoes] == ["user", "model"]
    assert [v.policy for v in (await bus.check(Ask(model="m3"))).vetoes] == ["user"]
    with pytest.raises(Vetoed) as caught:
        await bus.admit(Ask(tokens=50))
    assert [v.policy for v in caught.value.decision.vetoes] == list(LEVELS)


async def test_the_first_level_in_order_gives_the_advice_and_the_last_the_time():
    policies = [
        make_rate("wide", on=Ask, limit=1, per="10s", on_veto="retry"),
        make_rate("narrow", on=Ask, by="user", limit=1, per="60s", on_veto="skip"),
    ]
    recorder = Recorder(on=PolicyVetoed)
    async with memory_bus(*policies, observers=[recorder]) as bus:
        assert await bus.check(ASK)
        decision = await bus.check(ASK)
        assert (decision.policy, decision.signal) == ("wide", "retry")
        assert [v.retry_after for v in decision.vetoes] == [10, 60]
        assert decision.retry_after == 60, "sooner, one of them would veto once more"
        told = await recorder.wait_for(PolicyVetoed)
        assert (told.policy, told.retry_after) == ("wide", 60)
        assert told.verdicts == decision.verdicts, "observers learn of every level too"
        await bus.clock.advance(60)
        assert await bus.check(ASK)


async def test_a_wide_limit_is_not_used_up_by_what_a_narrow_one_refuses(open_bus):
    """One noisy tenant, always over its own limit, costs the others nothing."""
    bus = await open_bus(
        make_rate("site", on=Ask, limit=10), make_rate("tenant", on=Ask, by="tenant", limit=2)
    )
    noisy = [await bus.check(Ask(tenant="noisy")) for _ in range(50)]
    assert sum(map(bool, noisy)) == 2
    others = [await bus.check(Ask(tenant=f"t{number}")) for number in range(9)]
    assert [bool(decision) for decision in others] == [True] * 8 + [False]
    assert others[-1].policy == "site"


async def test_a_level_without_a_name_is_a_subject_of_its_own(open_bus):
    bus = await open_bus(make_rate(on=Ask, by="tenant", limit=1))
    assert await bus.check(Ask(tenant=None))
    assert not await bus.check(Ask(tenant=None))
    assert await bus.check(Ask(tenant=""))


def mixed(count=30):
    """Make so many policies of every kind, at every level in turn."""
    makers = (
        lambda name, level: make_rate(name, on=Ask, by=by(level), limit=500, cost="tokens"),
        lambda name, level: make_quota(name, on=Ask, by=by(level)),
        lambda name, level: make_slots(name, on=Ask, by=by(level), limit=50),
        lambda name, level: make_breaker(name, on=Ask, by=by(level)),
        lambda name, level: make_rate(
            name, on=Ask, by=by(level), limit=500, algorithm="sliding_window"
        ),
        lambda name, level: make_quota(name, on=Ask, by=by(level), per="month"),
        lambda name, level: make_rate(
            name, on=Ask, by=by(level), limit=500, algorithm="fixed_window"
        ),
    )
    return [makers[n % len(makers)](f"p{n:02}", LEVELS[n % 4]) for n in range(count)]


async def test_thirty_policies_on_one_event_are_one_call_to_admit_veto_and_settle(
    open_shared, server
):
    full = make_slots("full", on=Ask, limit=1)
    bus = await open_shared(*mixed(29), full)
    permit = await bus.admit(ASK)
    await bus.settle(permit)
    with server.counting() as admitting:
        decision = await bus.check(ASK)
    assert len(decision.verdicts) == len(decision.permit.holds) == 30
    before = await snapshot(bus)
    with server.counting() as vetoing:
        vetoed = await bus.check(ASK)
    assert len(vetoed.verdicts) == 30
    assert vetoed.policy == "full"
    assert await snapshot(bus) == before
    with server.counting() as settling:
        settlement = await bus.settle(decision.permit, Outcome.SUCCESS, tokens=20)
    assert settlement
    assert len(settlement.statuses) == 30
    for counted in (admitting, vetoing, settling):
        assert calls_of_scripts(counted) == counted["evalsha"] == 1
    writes = {"hset", "hdel", "zadd", "zrem", "pexpire", "del", "set", "publish"}
    assert not writes & vetoing.keys(), vetoing
    assert await in_use(bus, "full") == 0


async def test_what_a_level_holds_is_told_apart_when_it_is_settled(open_bus):
    bus = await open_bus(*levels("quota", organisation=100, tenant=100, user=100, model=100))
    permit = await bus.admit(ASK)
    bus.unregister("tenant")
    assert (await bus.settle(permit, tokens=70)).statuses == dict.fromkeys(LEVELS, "settled")
    bus.register(MAKERS["quota"]("tenant", "tenant", 100))
    decision = await bus.peek(Ask(tokens=31))
    assert [veto.remaining for veto in decision.vetoes] == [30] * 4
