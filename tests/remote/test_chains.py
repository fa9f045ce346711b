"""Chains that mix every kind of policy: a late veto has cost nothing, and the deadline holds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from stanchion import CircuitState, Outcome, Reason
from stanchion.policies.content import ContentPolicy
from stanchion.policies.function import policy
from stanchion.policies.kill_switch import KillSwitch
from stanchion.policies.remote import RegoPolicy
from stanchion.policies.rules import Rule, RulePolicy
from stanchion.policies.window import Freeze, WindowPolicy
from tests.busses import (
    Custom,
    SettlingCustom,
    breaker,
    in_use,
    quota,
    rate,
    slots,
    snapshot,
    stored_bytes,
)
from tests.policies.circuits import state
from tests.remote import faulty as deeds
from tests.remote.asking import CALL, Call, authzen_policy, http_policy, opa_policy
from tests.waiting import eventually

REGO = "package test\n\nallow if input.tokens <= 100\n"
FREEZE = Freeze(start="2000-01-01", end="2000-01-02")
RULE = Rule(name="most", when="tokens > 10000", reason="{tokens} tokens")


@policy(on=Call, name="function")
async def plain_function(call: Call) -> bool:
    return call.model != "never"


def built_in():
    return (
        rate(on=Call),
        rate("fixed", on=Call, algorithm="fixed_window", per="1d"),
        rate("sliding", on=Call, algorithm="sliding_window", per="1d"),
        rate("log", on=Call, algorithm="sliding_log", per="1d"),
        quota(on=Call),
        quota("rolling", on=Call, per="1h", rolling=True),
        slots(on=Call, limit=5),
        breaker(on=Call),
    )


def every_kind(opa, faulty, **fields):
    return (
        *built_in(),
        SettlingCustom("own", on=Call),
        KillSwitch(name="stop", on=Call, priority=100),
        WindowPolicy(name="window", on=Call, freezes=(FREEZE,)),
        RulePolicy(name="rules", on=Call, rules=(RULE,)),
        ContentPolicy(name="content", on=Call, priority=100, fields="model", terms=("falcon",)),
        plain_function,
        RegoPolicy(name="rego", on=Call, rego=REGO, path="test/allow", timeout=1),
        opa_policy(opa.url, timeout=1),
        http_policy(faulty.url, **fields),
    )


NOES = {
    "denies": (deeds.answer({"allow": False}), "denied"),
    "hangs": (deeds.hang, Reason.POLICY_FAILED),
    "breaks": (deeds.answer({}, status=500), Reason.POLICY_FAILED),
    "hangs-up": (deeds.hang_up, Reason.POLICY_FAILED),
}


@pytest.mark.parametrize("no", NOES.values(), ids=list(NOES))
async def test_when_the_last_service_vetoes_every_limit_is_as_before(open_valkey, opa, faulty, no):
    deed, reason = no
    opa.load(REGO)
    chain = every_kind(opa, faulty, timeout=0.1)
    bus = await open_valkey(*chain)
    await bus.admit(CALL)
    before = await stored_bytes(bus)
    remaining = [v.remaining for v in (await bus.peek(CALL)).verdicts]
    own: Any = chain[8]
    own.settled.clear()
    for _ in range(3):
        faulty.deed = deed
        decision = await bus.check(CALL)
        assert (decision.policy, decision.reason) == ("http", reason)
        assert decision.permit is None
        assert await stored_bytes(bus) == before
    assert own.outcomes == [Outcome.NEUTRAL] * 3
    faulty.deed = deeds.answer({"allow": True})
    await eventually(lambda: bus.peek(CALL), what="the service to be asked again")
    assert [v.remaining for v in (await bus.peek(CALL)).verdicts] == remaining


VETOED = {
    "rules": Call(tokens=10_001),
    "content": Call(model="falcon"),
    "function": Call(model="never"),
    "rego": Call(tokens=101),
}


@pytest.mark.parametrize("who", VETOED)
async def test_whoever_vetoes_after_the_limits_they_are_as_before(open_valkey, opa, faulty, who):
    opa.load(REGO)
    limits = {"tokens": quota(on=Call, limit=10**9), "rolling": None}
    chain = [limits.get(one.name, one) for one in every_kind(opa, faulty)]
    bus = await open_valkey(*(one for one in chain if one is not None))
    await bus.admit(CALL)
    before = await stored_bytes(bus)
    decision = await bus.check(VETOED[who])
    assert decision.policy == who
    assert await stored_bytes(bus) == before
    assert await in_use(bus) == 1


@pytest.mark.parametrize("no", NOES.values(), ids=list(NOES))
async def test_a_probe_that_a_service_vetoes_is_given_back(open_valkey, faulty, no):
    deed, _ = no
    policies = slots(on=Call, limit=1), breaker(on=Call)
    bus = await open_valkey(*policies, http_policy(faulty.url, timeout=0.1))
    await bus.force("provider", CircuitState.HALF_OPEN)
    before = await stored_bytes(bus)
    for _ in range(2):
        faulty.deed = deed
        assert not await bus.check(CALL)
        assert await state(bus) is CircuitState.HALF_OPEN
        assert await in_use(bus) == 0
    after = await stored_bytes(bus)
    probes = "stanchion:{default}:circuit:provider:-"
    assert {name: after[name] for name in before} == before, probes
    faulty.deed = deeds.answer({"allow": True})
    permit = await eventually(lambda: admitted(bus), what="the probe to be had")
    await bus.settle(permit)
    assert await state(bus) is CircuitState.CLOSED


async def admitted(bus):
    return (await bus.check(CALL)).permit


async def test_a_service_that_is_asked_first_keeps_the_store_from_being_asked(
    open_valkey, opa, faulty
):
    opa.load(REGO)
    bus = await open_valkey(*built_in(), opa_policy(opa.url, priority=1))
    await bus.admit(CALL)
    before = await snapshot(bus)
    decision = await bus.check(Call(tokens=101))
    assert (decision.policy, len(decision.verdicts)) == ("opa", 1)
    assert await snapshot(bus) == before, "byte for byte, and to the moment of expiry"


async def test_every_kind_admits_and_is_told_how_it_ended(open_valkey, opa, faulty, cerbos):
    opa.load(REGO)
    chain = (*every_kind(opa, faulty), authzen_policy(cerbos.url, timeout=2))
    bus = await open_valkey(*chain, deadline=5)
    async with bus.guard(CALL) as permit:
        assert await in_use(bus) == 1
        permit.charge(tokens=7)
    assert await in_use(bus) == 0
    decision = await bus.check(Call(tenant="acme", tokens=50))
    assert [verdict.policy for verdict in decision.verdicts] == [policy.name for policy in chain]
    assert decision.allowed
    assert decision.permit is not None
    assert decision.permit.policies == ("own",)
    vetoed = await bus.check(Call(tokens=101))
    assert (vetoed.policy, vetoed.reason) == ("rego", "undefined")


async def test_a_limit_before_a_service_keeps_it_from_being_asked(open_valkey, faulty):
    bus = await open_valkey(slots(on=Call, limit=1), http_policy(faulty.url))
    permit = await bus.admit(CALL)
    assert (await bus.check(CALL)).policy == "slots"
    assert len(faulty.requests) == 1
    await bus.settle(permit)


async def test_when_the_authorizer_hangs_the_deadline_holds_and_the_veto_names_it(
    open_valkey, opa, faulty
):
    opa.load(REGO)
    faulty.deed = deeds.hang
    bus = await open_valkey(*every_kind(opa, faulty, timeout=30), deadline=0.4)
    began = time.monotonic()
    decision = await bus.check(CALL)
    took = time.monotonic() - began
    assert 0.35 < took < 2
    veto = decision.vetoes[0]
    assert (veto.policy, veto.reason) == ("http", Reason.POLICY_FAILED)
    assert veto.detail is not None
    assert "no answer within 0." in veto.detail

    async def none_left():
        return await in_use(bus) == 0

    await eventually(none_left, what="the slot to be given back")


async def test_cancelling_while_a_service_thinks_gives_everything_back(open_valkey, opa, faulty):
    opa.load(REGO)
    chain = every_kind(opa, faulty, timeout=30)
    bus = await open_valkey(*chain, deadline=30)
    await bus.admit(CALL)
    before = await stored_bytes(bus)
    faulty.deed = deeds.hang
    asked = len(faulty.requests)
    check = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: len(faulty.requests) > asked, what="the service to be asked")
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check

    async def as_before():
        return await stored_bytes(bus) == before

    await eventually(as_before, what="everything to be given back")
    own: Any = chain[8]
    assert own.outcomes[-1:] == [Outcome.NEUTRAL]


async def test_who_waits_in_line_is_admitted_when_the_service_answers_again(open_valkey, faulty):
    faulty.deed = deeds.answer({"allow": False, "wait": 0.05})
    policy = http_policy(faulty.url, retry_after="wait")
    bus = await open_valkey(slots(on=Call, limit=1), policy)
    waiting = asyncio.create_task(bus.admit(CALL, wait=10))
    await eventually(lambda: len(faulty.requests) > 1, what="it to be asked again")
    faulty.deed = deeds.answer({"allow": True})
    permit = await waiting
    assert await in_use(bus) == 1
    await bus.settle(permit)


async def test_a_policy_of_ones_own_between_services_keeps_its_place(in_memory, opa, faulty):
    opa.load(REGO)
    names: list[str] = []

    async def note(event):
        names.append("own")
        return len(faulty.requests) == 0

    bus = await in_memory(
        opa_policy(opa.url), Custom(on=Call, answer=note), http_policy(faulty.url)
    )
    decision = await bus.check(CALL)
    assert [verdict.policy for verdict in decision.verdicts] == ["opa", "custom", "http"]
    assert names == ["own"]
