"""What an event costs: fields with weights, whole numbers without drift, and guesses kept small."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import BaseModel

from stanchion import Event, EventBus, Outcome, Reason
from stanchion.testing import memory_bus
from tests.busses import Call, quota, rate, slots
from tests.policies.limits import admitted, left, redeclare, seen, vetoed
from tests.servers import free_port


class Usage(BaseModel):
    """Figures inside a figure."""

    total: int = 700


class Completion(Event, type="policies:completion"):
    """A call to a model, with guesses of what it will use."""

    tenant: str | None = None
    input: int = 400
    output: int = 1000
    micros: int = 0
    usage: Usage = Usage()


def tokens(**fields: Any) -> Any:
    """Make a quota in which a token of output counts five-fold."""
    return quota(on=Completion, cost={"input": 1, "output": 5}, **fields)


# ---- several metrics


async def test_each_metric_counts_with_its_weight():
    async with memory_bus(tokens(limit=10_000)) as bus:
        permit = await admitted(bus, Completion(input=300, output=100))
        assert await left(bus, Completion(input=0, output=0)) == 10_000 - 300 - 5 * 100
        assert await bus.settle(permit, input=310, output=40)
        assert await left(bus, Completion(input=0, output=0)) == 10_000 - 310 - 5 * 40


async def test_a_metric_of_which_nothing_is_reported_stays_as_estimated():
    async with memory_bus(tokens(limit=10_000, unsettled="refund")) as bus:
        permit = await admitted(bus, Completion(input=300, output=100))
        assert await bus.settle(permit, Outcome.FAILURE, output=10)
        assert await left(bus, Completion(input=0, output=0)) == 10_000 - 300 - 5 * 10


async def test_policies_that_count_the_same_metric_each_settle_it_at_their_own_weight():
    plain = quota("plain", on=Completion, cost="output", limit=10_000)
    async with memory_bus(tokens(limit=10_000), plain) as bus:
        permit = await admitted(bus, Completion(input=0, output=100))
        assert await bus.settle(permit, output=7)
        verdicts = (await bus.peek(Completion(input=0, output=0))).verdicts
        assert [verdict.remaining for verdict in verdicts] == [10_000 - 35, 10_000 - 7]


async def test_a_metric_may_weigh_nothing():
    policy = quota(on=Completion, cost={"input": 0, "output": 1}, limit=1000)
    async with memory_bus(policy) as bus:
        await admitted(bus, Completion(input=10**15, output=400))
        assert await left(bus, Completion(output=0)) == 600


# ---- money


@pytest.mark.parametrize(
    "fields", [{}, {"rolling": True}, {"rolling": True, "slices": 13}], ids=repr
)
async def test_money_in_millionths_never_drifts(fields):
    chance = random.Random(6)
    limit, largest = 2**52, 2 * 10**13
    policy = quota(on=Completion, cost="micros", limit=limit, **fields)
    spent = 0
    async with memory_bus(policy) as bus:
        for _ in range(100):
            # A tenth, or a third, of a dollar has no exact float.
            real = chance.choice([1, 100_000, 333_333, chance.randrange(largest)])
            permit = await admitted(bus, Completion(micros=real + chance.randrange(1000)))
            assert await bus.settle(permit, micros=real)
            spent += real
        assert spent > 5 * largest
        assert await left(bus, Completion(micros=0)) == limit - spent
        await vetoed(bus, Completion(micros=limit - spent + 1))
        await admitted(bus, Completion(micros=limit - spent))


@pytest.mark.parametrize("rolling", [False, True], ids=["fixed", "rolling"])
async def test_no_real_cost_is_too_large_to_be_written_down(rolling):
    policy = quota(on=Completion, cost={"micros": 5}, limit=1000, rolling=rolling)
    async with memory_bus(policy) as bus:
        permits = [await admitted(bus, Completion(micros=1)) for _ in range(3)]
        for permit in permits:
            assert await bus.settle(permit, micros=2**53 - 1)
        decision = await vetoed(bus, Completion(micros=1))
        assert (decision.reason, decision.verdicts[0].remaining) == (Reason.QUOTA_EXHAUSTED, 0)


# ---- guesses


async def test_a_guess_is_capped_by_the_limit_and_a_figure_never_is():
    async with memory_bus(quota(on=Completion, cost="output", limit=600)) as bus:
        decision = await vetoed(bus, Completion(output=1000))
        assert (decision.reason, decision.retry_after) == (Reason.COST_ABOVE_LIMIT, None)
        permit = await admitted(bus, Completion())
        assert [hold.reserved for hold in permit.holds] == [600]
        assert await bus.settle(permit, output=1000), "what it really cost is never capped"
        assert (await seen(bus, Completion(output=0))).remaining == 0


async def test_a_guess_is_capped_by_the_smallest_limit_for_every_policy():
    policies = [
        quota("day", on=Completion, cost="output", limit=5000),
        quota("hour", on=Completion, cost={"output": 2}, limit=600, per="hour"),
        rate("minute", on=Completion, cost="output", limit=900, burst=400),
        slots("slots", on=Completion, limit=2),
    ]
    async with memory_bus(*policies) as bus:
        permit = await admitted(bus, Completion())
        assert {hold.policy: hold.reserved for hold in permit.holds} == {
            "day": 300,
            "hour": 600,
            "minute": 300,
            "slots": 1,
        }


@pytest.mark.parametrize(
    ("given", "held"),
    [
        # 400 and 5 x 1000 are 5400: of each, the part that fits into 1000.
        ({}, 400 * 1000 // 5400 + 5 * (1000 * 1000 // 5400)),
        ({"input": 300}, 300 + 5 * 140),
        ({"output": 100}, 400 + 5 * 100),
        ({"output": 150}, 250 + 5 * 150),
        ({"input": 0, "output": 200}, 1000),
    ],
    ids=repr,
)
async def test_several_guesses_together_are_capped_by_what_the_figures_leave(given, held):
    async with memory_bus(tokens(limit=1000)) as bus:
        permit = await admitted(bus, Completion(**given))
        assert [hold.reserved for hold in permit.holds] == [held]
        assert held <= 1000


async def test_figures_that_are_too_much_are_refused_whatever_was_guessed_beside_them():
    async with memory_bus(tokens(limit=1000)) as bus:
        decision = await vetoed(bus, Completion(output=201))
        assert decision.reason == Reason.COST_ABOVE_LIMIT


@pytest.mark.parametrize(
    ("event", "allowed"),
    [
        (Completion(), True),
        (Completion(usage=Usage()), True),
        (Completion(usage=Usage(total=700)), False),
        (Completion(usage=Usage(total=500)), True),
    ],
    ids=["no usage", "usage by default", "a figure too large", "a figure"],
)
async def test_what_is_given_inside_a_field_is_a_figure_too(event, allowed):
    async with memory_bus(quota(on=Completion, cost="usage.total", limit=500)) as bus:
        assert (await bus.check(event)).allowed is allowed


async def test_what_metadata_hold_is_a_figure():
    async with memory_bus(quota(cost="metadata.tokens", limit=500)) as bus:
        decision = await vetoed(bus, Call(metadata={"tokens": 501}))
        assert decision.reason == Reason.COST_ABOVE_LIMIT
        await admitted(bus, Call(metadata={"tokens": 500}))


@pytest.mark.parametrize("kind", [quota, rate])
async def test_a_limit_of_ones_own_caps_guesses_too(kind):
    policy = kind("p", on=Completion, by="tenant", cost="output", limit=5000)
    async with memory_bus(policy) as bus:
        await bus.override("p", 250, tenant="small")
        for tenant, held in (("small", 250), ("big", 1000)):
            permit = await admitted(bus, Completion(tenant=tenant))
            assert [hold.reserved for hold in permit.holds] == [held]
        await bus.reset("p", tenant="small")
        decision = await vetoed(bus, Completion(tenant="small", output=251))
        assert decision.reason == Reason.COST_ABOVE_LIMIT


async def test_a_policy_in_shadow_caps_nobody_elses_guess():
    shadow = quota("shadow", on=Completion, cost="output", limit=10, mode="shadow")
    async with memory_bus(quota(on=Completion, cost="output", limit=5000), shadow) as bus:
        permit = await admitted(bus, Completion())
        assert {hold.policy: hold.reserved for hold in permit.holds} == {
            "tokens": 1000,
            "shadow": 10,
        }


async def test_a_process_on_its_own_caps_guesses_by_its_share():
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    policy = quota(on=Completion, cost="output", limit=4000, on_outage="local")
    async with EventBus.from_url(nowhere, policies=[policy], processes=8) as bus:
        permit = await admitted(bus, Completion())
        assert [hold.reserved for hold in permit.holds] == [500]
        await vetoed(bus, Completion(output=1))


async def test_a_guess_follows_a_limit_that_is_declared_anew():
    async with memory_bus(quota(on=Completion, cost="output", limit=5000)) as bus:
        redeclare(bus, quota(on=Completion, cost="output", limit=20))
        assert [hold.reserved for hold in (await admitted(bus, Completion())).holds] == [20]
