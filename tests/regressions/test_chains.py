"""Several limits on one event: all of them charge, or none does.

bucket4j, limits and others that charge one limit after the other, and rate-limiter-flexible's
union, which charges all even where one refuses, fail the first three of these.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import Outcome
from stanchion.testing import memory_bus
from tests.busses import Call, SettlingCustom, every_kind, quota, rate, slots, snapshot
from tests.regressions.looking import only

if TYPE_CHECKING:
    from tests.busses import Buses


@pytest.mark.parametrize("order", [1, -1], ids=["shared one first", "own one first"])
async def test_a_call_refused_by_its_own_limit_costs_the_shared_one_nothing(
    store_url: str, order: int
):
    """envoyproxy/ratelimit#1060: refused by the user's limit, it still burned the site's."""
    policies = [rate("site", limit=10), rate("user", by="tenant", limit=1)][::order]
    async with memory_bus(*policies, url=store_url) as bus:
        assert await bus.check(Call(tenant="noisy"))
        for _ in range(20):
            assert (await bus.check(Call(tenant="noisy"))).policy == "user"
        for number in range(9):
            assert await bus.check(Call(tenant=f"quiet{number}"))
        assert (await bus.check(Call(tenant="late"))).policy == "site"


async def test_a_call_refused_for_want_of_a_slot_costs_no_rate(store_url: str):
    """BerriAI/litellm#39309: refused by concurrency, it was still charged to the rate."""
    policies = [rate(limit=3), quota(limit=3), slots(limit=1)]
    async with memory_bus(*policies, url=store_url) as bus:
        permit = await bus.admit(Call())
        before = await snapshot(bus)
        for _ in range(5):
            refused = await bus.check(Call())
            assert refused.policy == "slots"
            assert [verdict.remaining for verdict in refused.verdicts] == [2, 2, 0]
        assert await snapshot(bus) == before
        await bus.settle(permit)
        assert await bus.check(Call())


async def test_a_refusal_leaves_no_reservation_of_its_own(store_url: str):
    """BerriAI/litellm#27001 (review): the refused call's own reservation stayed."""
    policies = [*every_kind(), rate("full", limit=1, per="1h")]
    async with memory_bus(*policies, url=store_url) as bus:
        assert await bus.check(Call())
        before = await snapshot(bus)
        for _ in range(3):
            assert (await bus.check(Call(tokens=50))).policy == "full"
        assert await snapshot(bus) == before


async def test_what_a_later_custom_policy_refuses_has_cost_nothing_by_then(store_url: str):
    """litellm#39309, #27001: also where the refusal comes from outside the store."""
    picky = SettlingCustom("picky", priority=200, answer=False)
    before = SettlingCustom("before", priority=150)
    policies = [rate(limit=2), quota(limit=10), slots(limit=1), before, picky]
    async with memory_bus(*policies, url=store_url) as bus:
        for number in range(5):
            # Nothing of the one before is still on its way back.
            assert (await bus.check(Call(tokens=9))).policy == "picky"
            assert before.outcomes == [Outcome.NEUTRAL] * (number + 1)
        picky.answer = True
        admitted = await bus.check(Call(tokens=10))
        assert [verdict.remaining for verdict in admitted.verdicts[:3]] == [1, 0, 0]


async def test_parallel_calls_do_not_all_see_the_same_room(open_shared: Buses):
    """litellm#18730, #27001: parallel calls all read 0 tokens used, and all passed."""
    buses = [await open_shared(quota(limit=1000), deadline=5) for _ in range(3)]
    decisions = await asyncio.gather(
        *(bus.check(Call(tokens=100)) for _ in range(20) for bus in buses)
    )
    assert sum(map(bool, decisions)) == 10


async def test_replicas_share_one_limit(open_shared: Buses):
    """litellm#40291, #33325: a look into local memory first made it the limit times replicas."""
    buses = [await open_shared(rate(limit=10, per="1h"), deadline=5) for _ in range(4)]
    admitted = 0
    for _ in range(5):
        for bus in buses:
            admitted += bool(await bus.check(Call()))
    assert admitted == 10
    # Nor does a replica remember what another one has changed.
    await buses[0].reset("calls")
    assert all([await bus.check(Call()) for bus in buses])


async def test_the_limit_that_refused_is_named():
    """envoyproxy/envoy#43113: which of several limits had refused could not be told."""
    levels = ("organisation", "team", "user", "model")
    policies = [rate(level, limit=1 if level == "user" else 9) for level in levels]
    async with memory_bus(*policies) as bus:
        assert await bus.check(Call())
        refused = await bus.check(Call())
        assert (refused.policy, refused.reason) == ("user", "limit_reached")
        assert [verdict.policy for verdict in refused.vetoes] == ["user"]
        assert [(v.policy, v.allowed) for v in refused.verdicts] == [
            (level, level != "user") for level in levels
        ]


async def test_requests_and_tokens_each_have_a_window_of_their_own(store_url: str):
    """litellm#38523: both shared one window key: refusals without reason at its boundaries."""
    policies = [
        rate("requests", limit=2, algorithm="fixed_window"),
        quota("tokens", limit=100, per="90s"),
    ]
    async with memory_bus(*policies, url=store_url) as bus:

        async def left() -> list[int | None]:
            return [v.remaining for v in (await bus.peek(Call(tokens=0))).verdicts]

        await bus.clock.advance(59)
        assert await bus.check(Call(tokens=50))
        assert await bus.check(Call(tokens=50))
        assert (await bus.check(Call())).retry_after == 31
        await bus.clock.advance(1)
        assert await left() == [1, 0]  # a cost of nothing is a request all the same
        await bus.clock.advance(30)
        assert await bus.check(Call(tokens=70))
        assert await left() == [0, 30]
        await bus.clock.advance(30)
        assert await left() == [1, 30]


async def test_one_key_takes_two_kinds_of_limit_without_mixing_them_up(store_url: str):
    """litellm#38523: the same name under another algorithm reads nothing of the old state."""
    async with memory_bus(rate("one", limit=1), url=store_url) as bus:
        for algorithm in ("fixed_window", "sliding_window", "sliding_log", "gcra"):
            assert await bus.check(Call())
            assert only(await bus.check(Call())).reason == "limit_reached"
            bus.unregister("one")
            bus.register(rate("one", limit=1, algorithm=algorithm))
