"""Limits that differ by subject: by plan, and one subject's own, in force everywhere at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stanchion import ConfigError, Event, Reason
from stanchion.testing import memory_bus
from tests.busses import Call, breaker, command, quota, rate, slots, values
from tests.policies.limits import admitted, left, redeclare, seen, two_busses, vetoed
from tests.waiting import eventually


class Planned(Event, type="limits_subjects:planned"):
    """A call of somebody who has a plan."""

    tenant: str
    plan: str | None = None
    tokens: int = 1


KINDS: dict[str, Any] = {
    "gcra": rate,
    "sliding_window": rate,
    "sliding_log": rate,
    "fixed_window": rate,
    "quota": quota,
    "rolling": quota,
    "slots": slots,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
PLANS = {"free": 60, "pro": 600, "*": 30}


def limited(kind: str, **fields: Any) -> Any:
    given: dict[str, Any] = {"on": Planned, "by": "tenant", "cost": "tokens"}
    if KINDS[kind] is rate:
        given["algorithm"] = kind
    if kind == "rolling":
        given["rolling"] = True
    return KINDS[kind]("p", **{**given, **fields})


def call(tenant: str = "a", plan: str | None = None, tokens: int = 0) -> Planned:
    return Planned(tenant=tenant, plan=plan, tokens=tokens)


# ---- by plan


@each_kind
async def test_the_plan_chooses_the_limit_and_all_others_share_the_default(kind):
    async with memory_bus(limited(kind, limit=PLANS, limit_by="plan")) as bus:
        for tenant, (plan, limit) in enumerate(
            [("free", 60), ("pro", 600), ("gold", 30), (None, 30), ("*", 30), ("Free", 30)]
        ):
            event = call(f"t{tenant}", plan)
            assert ((await seen(bus, event)).limit, await left(bus, event)) == (limit, limit)
            decision = await vetoed(bus, call(f"t{tenant}", plan, limit + 1))
            assert decision.reason == Reason.COST_ABOVE_LIMIT
            await admitted(bus, call(f"t{tenant}", plan, limit))
            await vetoed(bus, call(f"t{tenant}", plan, 1))


@each_kind
async def test_a_subject_that_changes_its_plan_keeps_what_it_has_used(kind):
    async with memory_bus(limited(kind, limit=PLANS, limit_by="plan")) as bus:
        await admitted(bus, call(plan="free", tokens=50))
        assert await left(bus, call(plan="pro")) == 550
        await admitted(bus, call(plan="pro", tokens=500))
        await vetoed(bus, call(plan="free", tokens=1))
        assert await left(bus, call(plan="pro")) == 50


async def test_a_bucket_has_one_burst_for_all_plans_where_it_names_one():
    policy = limited("gcra", limit=PLANS, limit_by="plan", per="60s", burst=10)
    async with memory_bus(policy) as bus:
        for plan, gap in (("free", 1.0), ("pro", 0.1)):
            await admitted(bus, call(plan, plan, 10))
            assert (await vetoed(bus, call(plan, plan, 1))).retry_after == gap


async def test_the_plan_may_be_anywhere_in_the_event():
    policy = rate(limit=PLANS, limit_by="metadata.customer.plan")
    async with memory_bus(policy) as bus:
        assert (await seen(bus, Call(metadata={"customer": {"plan": "pro"}}))).limit == 600
        assert (await seen(bus, Call(metadata={"customer": {}}))).limit == 30
        assert (await seen(bus, Call())).limit == 30


async def test_a_guess_is_capped_by_the_limit_of_the_plan():
    class Guessing(Event, type="limits_subjects:guessing"):
        plan: str
        tokens: int = 100

    policy = quota(on=Guessing, limit=PLANS, limit_by="plan")
    async with memory_bus(policy) as bus:
        for plan, held in (("free", 60), ("none", 30), ("pro", 100)):
            permit = await admitted(bus, Guessing(plan=plan))
            assert [hold.reserved for hold in permit.holds] == [held]
            await bus.reset("tokens")


# ---- one subject's own


@each_kind
async def test_ones_own_limit_is_in_force_at_once_in_every_process_and_so_is_its_end(kind, valkey):
    async with two_busses(valkey.url, limited(kind, limit=100)) as (one, two):
        await admitted(two, call(tokens=40))
        await one.override("p", 50, tenant="a")
        verdict = await seen(two, call())
        assert (verdict.limit, verdict.remaining) == (50, 10)
        await vetoed(two, call(tokens=11))
        assert await left(two, call("b")) == 100
        await two.override("p", 1000, tenant="a")
        assert await left(one, call()) == 960
        await admitted(one, call(tokens=900))
        await one.override("p", None, tenant="a")
        assert (await seen(two, call())).limit == 100
        await vetoed(two, call(tokens=1))
        await two.override("p", 2000, tenant="nobody")
        await one.override("p", None, tenant="nobody")


async def test_each_policy_of_one_call_looks_for_a_limit_of_its_own():
    names = ("p", "q", "r")
    policies = [
        *(limited("gcra", limit=100), limited("quota", limit=100).model_copy(update={"name": "q"})),
        limited("slots", limit=100).model_copy(update={"name": "r"}),
    ]
    async with memory_bus(*policies) as bus:
        for name, limit in zip(names, (70, 80, 90), strict=True):
            await bus.override(name, limit, tenant="a")
        decision = await bus.peek(call())
        assert [verdict.limit for verdict in decision.verdicts] == [70, 80, 90]
        await bus.override("q", None, tenant="a")
        decision = await bus.peek(call())
        assert [verdict.limit for verdict in decision.verdicts] == [70, 100, 90]


async def test_ones_own_limit_stands_above_that_of_any_plan():
    async with memory_bus(limited("quota", limit=PLANS, limit_by="plan")) as bus:
        await bus.override("p", 5, tenant="a")
        for plan in ("pro", "free", None):
            assert await left(bus, call(plan=plan)) == 5
            assert await left(bus, call("b", plan)) == PLANS[plan or "*"]


@each_kind
async def test_ones_own_limit_outlives_the_state_and_a_change_of_the_declaration(kind):
    async with memory_bus(limited(kind, limit=100)) as bus:
        await bus.override("p", 7, tenant="a")
        await admitted(bus, call(tokens=7))
        assert await bus.reset("p", tenant="a") == 1
        redeclare(bus, limited(kind, limit=500))
        assert (await left(bus, call()), await left(bus, call("b"))) == (7, 500)


@pytest.mark.parametrize(("burst", "most"), [(None, 20), (3, 3)])
async def test_a_burst_follows_ones_own_limit_unless_it_was_set_apart(burst, most):
    async with memory_bus(limited("gcra", limit=10, per="60s", burst=burst)) as bus:
        await bus.override("p", 20, tenant="a")
        await admitted(bus, call(tokens=most))
        assert (await vetoed(bus, call(tokens=1))).retry_after == 3.0


async def test_what_is_admitted_under_ones_own_limit_is_settled_under_it():
    async with memory_bus(limited("quota", limit=100, overage="clip")) as bus:
        await bus.override("p", 1000, tenant="a")
        permit = await admitted(bus, call(tokens=300))
        assert await bus.settle(permit, tokens=2000)
        assert (await values(bus, "p"))["used"] == "1000"


async def test_a_private_subject_has_one_of_its_own_and_is_not_written_down(valkey):
    policy = limited("quota", limit=100, private=True)
    async with two_busses(valkey.url, policy) as (one, two):
        await one.override("p", 5, tenant="patient-7")
        assert await left(two, call("patient-7")) == 5
        await admitted(two, call("patient-7", tokens=1))
        keys = await command(one, "KEYS", "*")
        texts = [await command(one, "DUMP", key.decode()) for key in keys]
        assert not any(b"patient-7" in text for text in (*keys, *texts))
        await one.override("p", None, tenant="patient-7")


async def test_who_waits_is_admitted_as_soon_as_the_limit_is_raised(open_shared):
    policy = limited("slots", limit=1, lease="30s")
    here, there = await open_shared(policy), await open_shared(policy)
    held = await admitted(here, call(tokens=1))
    waiting = asyncio.create_task(here.admit(call(tokens=1), wait=20))

    async def stands() -> bool:
        return bool(await command(there, "EXISTS", "stanchion:{default}:slots.order:p:a"))

    await eventually(stands)
    began = asyncio.get_running_loop().time()
    await there.override("p", 2, tenant="a")
    second = await waiting
    assert asyncio.get_running_loop().time() - began < 0.5
    for permit in (held, second):
        await here.settle(permit)
    await there.override("p", None, tenant="a")


REFUSED: list[tuple[Any, Any, dict[str, object], str]] = [
    *(
        (limited("quota"), wrong, {"tenant": "a"}, r"limit=.*: expected from 1 to 2\^52")
        for wrong in (0, -1, 1.5, "5", True, 2**53)
    ),
    (limited("gcra"), 0, {"tenant": "a"}, r"RateLimit 'p': limit=0: expected from 1 to 2\^52"),
    (limited("slots"), 0, {"tenant": "a"}, r"Concurrency 'p': limit=0: expected from 1"),
    (limited("quota"), 5, {}, r"counts by \('tenant',\): give \['tenant'\] too"),
    (limited("quota"), 5, {"tennant": "a"}, r"by=.*'tennant'.*expected of \('tenant',\)"),
    (limited("quota"), 5, {"tenant": 1.5}, r"by='tenant': the event holds 1.5; expected text"),
    (rate("other"), 5, {}, r"policy name='p': expected one of \['other'\]"),
    (breaker("p"), 5, {}, r"policy name='p': expected a policy with a limit"),
]


@pytest.mark.parametrize(("policy", "limit", "by", "text"), REFUSED, ids=range(len(REFUSED)))
async def test_what_cannot_be_a_limit_is_refused_and_nothing_is_kept(policy, limit, by, text):
    async with memory_bus(policy) as bus:
        with pytest.raises(ConfigError, match=text):
            await bus.override("p", limit, **by)
        assert not [key for key in await command(bus, "KEYS", "*") if b"override" in key]


PLANLESS: list[tuple[dict[str, Any], str]] = [
    ({"limit": {"free": 1}}, r"limit=\{'free': 1\}: a mapping needs limit_by=.* and a limit for"),
    ({"limit": {"free": 1, "*": 1}}, r"a mapping needs limit_by=\"<event field>\""),
    ({"limit": {"free": 1}, "limit_by": "plan"}, r"a limit for \"\*\": all others"),
    ({"limit": {}, "limit_by": "plan"}, r"limit=\{\}: a mapping needs"),
    ({"limit": {"free": 0, "*": 1}, "limit_by": "plan"}, r"limit\['free'\]'?=0: expected from 1"),
    ({"limit": {"*": 1.5}, "limit_by": "plan"}, r"limit=1.5"),
    ({"limit": 5, "limit_by": "plan"}, r"limit_by='plan': needs a mapping limit"),
    ({"limit": PLANS, "limit_by": "pln"}, r"limit_by='pln': Planned has no field 'pln'; it has"),
]


@pytest.mark.parametrize("kind", ["gcra", "quota", "slots"])
@pytest.mark.parametrize(("fields", "text"), PLANLESS, ids=[text for _, text in PLANLESS])
def test_plans_that_cannot_work_are_refused_where_they_are_declared(kind, fields, text):
    with pytest.raises(ConfigError, match=text):
        limited(kind, **fields)
