"""Waiting for admission: when it ends, what wakes it, and what it leaves behind."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from stanchion import (
    CircuitOpen,
    CircuitState,
    ConcurrencyLimited,
    Outcome,
    QuotaExceeded,
    RateLimited,
    Verdict,
    Vetoed,
)
from tests.busses import (
    Call,
    Custom,
    breaker,
    in_use,
    quota,
    rate,
    slots,
)
from tests.policies.lines import CALL, SOON, in_line, standing, taking

# ---- what ends a wait


async def test_what_is_free_is_had_at_once(open_bus):
    bus = await open_bus(slots(limit=1), rate())
    async with taking(0, SOON), bus.guard(CALL, wait=30):
        pass
    assert await standing(bus) == 0
    assert await bus.admit(CALL, wait=30)


async def test_a_release_wakes_the_waiter(open_shared):
    one, two = await open_shared(slots(limit=1)), await open_shared(slots(limit=1))
    async with asyncio.TaskGroup() as group, one.guard(CALL):
        waiting = group.create_task(two.admit(CALL, wait=30))
        await in_line(one, 1)
        # Right after a try: the next one, unless it is woken, comes a second later.
        await asyncio.sleep(0.1)
        released = time.monotonic()
        group.create_task(noted(waiting, woken := []))
    assert woken[0] - released < SOON
    assert await in_use(one) == 1
    assert await standing(one) == 0


async def noted(waiting, when):
    await waiting
    when.append(time.monotonic())


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_log"])
async def test_a_waiter_for_a_rate_is_let_in_at_the_exact_time(open_valkey, algorithm):
    bus = await open_valkey(rate(limit=1, per="300ms", algorithm=algorithm))
    stamps = [(await bus.admit(CALL, wait=5)).admitted_us for _ in range(3)]
    gaps = [(after - before) / 1e6 for before, after in pairwise(stamps)]
    assert all(0.3 <= gap < 0.3 + 0.3 for gap in gaps), gaps


async def test_a_waiter_for_a_slot_has_it_when_the_lease_of_a_lost_holder_ends(open_valkey):
    one, two = [await open_valkey(slots(limit=1, lease="300ms")) for _ in range(2)]
    lost = await one.admit(CALL)
    permit = await two.admit(CALL, wait=5)
    took = (permit.admitted_us - lost.admitted_us) / 1e6
    assert 0.3 <= took < 0.3 + 0.3, took


async def test_a_waiter_for_a_circuit_is_its_first_probe_when_the_open_time_ends(open_valkey):
    bus = await open_valkey(breaker(consecutive_failures=1, open_for="400ms"))
    await bus.settle(tripping := await bus.admit(CALL), Outcome.FAILURE)
    probe = await bus.admit(CALL, wait=5)
    took = (probe.admitted_us - tripping.admitted_us) / 1e6
    assert 0.4 <= took < 0.4 + 0.3, took
    assert (await bus.peek(CALL)).reason == "probes_in_use"


async def test_a_probe_that_is_given_back_goes_to_the_next_waiter_at_once(open_valkey):
    bus = await open_valkey(breaker())
    await bus.force("provider", CircuitState.HALF_OPEN)
    probe = await bus.admit(CALL)
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, "stanchion:{default}:circuit.order:provider:-")
    async with taking(0, SOON):
        await bus.settle(probe, Outcome.NEUTRAL)
        assert await waiting


async def test_an_override_lets_waiters_try_again_under_it(open_valkey):
    bus = await open_valkey(slots(limit=1))
    await bus.admit(CALL)
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1)
    async with taking(0, SOON):
        await bus.override("slots", 2)
        assert await waiting


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (rate(limit=1), RateLimited),
        (quota(limit=1), QuotaExceeded),
        (slots(limit=1), ConcurrencyLimited),
    ],
    ids=["rate", "quota", "slots"],
)
async def test_a_wait_too_short_ends_with_a_veto_at_its_deadline(open_valkey, policy, error):
    bus = await open_valkey(policy)
    await bus.admit(CALL)
    async with taking(0.15, 0.15 + SOON):
        with pytest.raises(error) as caught:
            async with bus.guard(CALL, wait=0.15):
                pytest.fail("entered without a permit")
    assert caught.value.decision.retry_after > 1
    for order in ("rate.order:calls", "quota.order:tokens", "slots.order:slots"):
        await in_line(bus, 0, f"stanchion:{{default}}:{order}:-")


@pytest.mark.parametrize(
    ("policy", "error", "reason"),
    [
        (slots(limit=2, cost="tokens"), ConcurrencyLimited, "cost_above_limit"),
        (rate(limit=2, cost="tokens"), RateLimited, "cost_above_limit"),
        (quota(limit=2), QuotaExceeded, "cost_above_limit"),
        (Custom(answer=False), Vetoed, "not today"),
        (Custom(answer=ZeroDivisionError()), Vetoed, "policy_failed"),
    ],
    ids=["slots", "rate", "quota", "custom", "failing"],
)
async def test_what_can_never_pass_is_vetoed_at_once(open_valkey, policy, error, reason):
    bus = await open_valkey(slots("others"), policy)
    async with taking(0, SOON):
        with pytest.raises(error) as caught:
            await bus.admit(Call(tokens=3), wait=30)
    assert caught.value.decision.reason == reason
    used = [state.values["in_use"] async for state in bus.inspect("others")]
    assert used in ([], ["0"])


async def test_a_circuit_forced_open_ends_every_wait(open_valkey):
    bus = await open_valkey(breaker(consecutive_failures=1))
    await bus.settle(await bus.admit(CALL), Outcome.FAILURE)
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, "stanchion:{default}:circuit.order:provider:-")
    async with taking(0, SOON):
        await bus.force("provider", CircuitState.FORCED_OPEN)
        with pytest.raises(CircuitOpen):
            await waiting


# ---- several policies


async def test_a_waiter_holds_up_nobody_at_what_it_could_have_had(open_bus):
    bus = await open_bus(slots("wide", limit=2, priority=1), slots(limit=1, by="tenant"))
    order = "stanchion:{default}:slots.order:slots:acme"
    first = await bus.admit(CALL)
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, order)
    other = await bus.check(Call(tenant="other"))
    assert other, "the wide cap has room, and whoever waits does so for another"
    assert await bus.settle(other.permit)
    assert await bus.settle(first)
    assert await waiting


async def test_vetoes_of_a_custom_policy_are_waited_out_and_cost_nothing(open_bus):
    answers = [Verdict("custom", allowed=False, reason="busy", retry_after=0.01)] * 4
    custom = Custom(answer=lambda event: asyncio.sleep(0, answers.pop() if answers else True))
    policies = [
        *(
            rate("gcra"),
            rate("log", algorithm="sliding_log"),
            rate("w", algorithm="sliding_window"),
        ),
        *(rate("fixed", algorithm="fixed_window"), quota(), slots(limit=1), custom),
    ]
    bus = await open_bus(*policies)
    permit = await bus.admit(CALL, wait=30)
    assert len(custom.asked) == 5
    peeked = {verdict.policy: verdict.remaining for verdict in (await bus.peek(CALL)).verdicts}
    # What was admitted, and one more that a peek would take; the rates hold five.
    assert {name: peeked[name] for name in ("gcra", "log", "w", "fixed")} == dict.fromkeys(
        ("gcra", "log", "w", "fixed"), 4
    )
    assert (peeked["tokens"], peeked["slots"]) == (999, 0)
    settlement = await bus.settle(permit, tokens=10)
    assert settlement, settlement.statuses


async def test_one_refused_by_another_cap_than_before_leaves_both_lines(open_valkey):
    first, second = slots("first", limit=1, priority=1), slots("second", limit=1, priority=3)
    bus = await open_valkey(first, Custom(priority=2), second)
    firsts, seconds = (
        f"stanchion:{{default}}:slots.order:{name}:-" for name in ("first", "second")
    )
    alone = await open_valkey(second)
    held = await alone.admit(CALL)
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, seconds)
    # A try of the waiter's may hold the first for as long as it takes to be refused the second.
    taken = await (await open_valkey(first)).admit(CALL, wait=5)
    # It tries again when the second is free; now the first is in its way.
    await alone.settle(held)
    await in_line(bus, 1, firsts)
    async with taking(0, SOON):
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await in_line(bus, 0, firsts)
        await in_line(bus, 0, seconds)
    assert await alone.check(CALL), "nothing of it stands in the way of anybody"
    # Nor in the way of the next one on its own bus, who is woken as if it had never been.
    waiting = asyncio.create_task(bus.admit(CALL, wait=30))
    await in_line(bus, 1, firsts)
    async with taking(0, SOON):
        await bus.settle(taken)
        await in_line(bus, 1, seconds)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
