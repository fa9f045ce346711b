"""Services that stand next to each other: asked at the same time, heard in their order."""

from __future__ import annotations

import asyncio
import time

import pytest

from stanchion import Outcome, PolicyFailed, Verdict
from tests.busses import Custom, SettlingCustom, rate
from tests.remote.asking import CALL, Call, Service, asked
from tests.waiting import eventually


def names(decision):
    return [verdict.policy for verdict in decision.verdicts]


class Independent(SettlingCustom):
    """A policy of somebody's own that may be asked beside others."""

    independent = True


async def test_neighbours_of_one_priority_are_asked_at_the_same_time(in_memory):
    services = [Service() for _ in range(4)]
    gates = [service.hold() for service in services]
    bus = await in_memory(*(asked(one, f"s{number}") for number, one in enumerate(services)))
    check = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: all(service.asked for service in services), what="all to be asked")
    for gate in reversed(gates):
        gate.set()
        await asyncio.sleep(0)
    assert names(await check) == ["s0", "s1", "s2", "s3"], "the order is the declared one"


async def test_it_takes_as_long_as_the_slowest(in_memory):
    services = [Service() for _ in range(5)]
    for service in services:
        service.wait = lambda: asyncio.sleep(0.1)
    bus = await in_memory(*(asked(one, f"s{number}") for number, one in enumerate(services)))
    began = time.monotonic()
    assert await bus.check(CALL)
    assert time.monotonic() - began < 0.4, "and not as long as all together"


@pytest.mark.parametrize("first", ["priority", "built-in", "dependent", "custom"])
async def test_who_does_not_stand_beside_another_is_asked_after_it(in_memory, first):
    one, two = Service(), Service()
    gate = one.hold()
    between = {
        "priority": (asked(one, "one", priority=1), asked(two, "two", priority=2)),
        "built-in": (asked(one, "one"), rate(on=Call), asked(two, "two")),
        "dependent": (asked(one, "one"), asked(two, "two", independent=False)),
        "custom": (asked(one, "one"), Custom(on=Call), asked(two, "two")),
    }
    bus = await in_memory(*between[first])
    check = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: one.asked)
    for _ in range(5):
        await asyncio.sleep(0)
    assert two.asked == []
    gate.set()
    assert await check
    assert two.asked == [CALL]


async def test_the_first_veto_in_order_decides_however_late_it_comes(in_memory):
    one, two, three = Service(), Service(), Service()
    gate = one.hold()
    one.answer = two.answer = False
    late = Service()
    bus = await in_memory(
        *(asked(one, "one"), asked(two, "two"), asked(three, "three")),
        asked(late, "late", priority=200),
    )
    check = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: two.ended and three.ended)
    assert not check.done(), "nobody knows yet what the first one says"
    gate.set()
    decision = await check
    assert names(decision) == ["one"]
    one.answer, one.wait = True, None
    decision = await bus.check(CALL)
    assert (names(decision), decision.policy) == (["one", "two"], "two")
    assert late.asked == []


async def test_a_veto_ends_the_questions_after_it(in_memory):
    one, two = Service(), Service()
    one.answer = False
    two.hold()
    bus = await in_memory(asked(one, "one"), asked(two, "two", timeout=30), deadline=30)
    began = time.monotonic()
    assert (await bus.check(CALL)).policy == "one"
    assert time.monotonic() - began < 1
    await eventually(lambda: two.ended == ["cancelled"], what="the other question to end")


async def test_a_veto_that_is_only_reported_ends_nothing(in_memory):
    one, two = Service(), Service()
    one.answer = False
    bus = await in_memory(asked(one, "one", mode="shadow"), asked(two, "two"))
    decision = await bus.check(CALL)
    assert decision.allowed
    assert names(decision) == ["one", "two"]


async def test_one_that_fails_is_one_that_vetoes_and_the_others_are_heard(in_memory):
    one, two, three = Service(), Service(), Service()
    two.answer = PolicyFailed("broken")
    bus = await in_memory(asked(one, "one"), asked(two, "two"), asked(three, "three"))
    decision = await bus.check(CALL)
    assert (names(decision), decision.policy) == (["one", "two"], "two")


async def test_what_others_admitted_in_vain_is_undone(in_memory):
    early, late = Independent("early", on=Call), Independent("late", on=Call)
    service = Service()
    service.answer = False
    bus = await in_memory(early, asked(service), late)
    assert not await bus.check(CALL)
    assert (early.outcomes, late.outcomes) == ([Outcome.NEUTRAL], [Outcome.NEUTRAL])


async def test_what_is_admitted_after_the_veto_is_undone_as_well(in_memory):
    stubborn = asyncio.Event()

    async def admits_anyway(event):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await stubborn.wait()
        return True

    late = Independent("late", on=Call, answer=admits_anyway)
    service = Service()
    service.answer = False
    bus = await in_memory(asked(service), late)
    assert not await bus.check(CALL)
    assert late.outcomes == []
    stubborn.set()
    await eventually(lambda: late.outcomes == [Outcome.NEUTRAL], what="it to be undone")


async def test_cancelling_ends_every_question_and_undoes_what_was_admitted(in_memory):
    early, thinking = Independent("early", on=Call), Service()
    thinking.hold()
    bus = await in_memory(early, asked(thinking, "thinking"), asked(Service(), "quick"))
    check = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: thinking.asked)
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    await eventually(lambda: thinking.ended == ["cancelled"])
    await eventually(lambda: early.outcomes == [Outcome.NEUTRAL])


async def test_who_is_to_hear_of_the_outcome_hears_of_it_in_order(in_memory):
    heard: list[str] = []

    class Hearing(Independent):
        async def settle(self, event, outcome, costs):
            heard.append(self.name)

    async def slow(event):
        await asyncio.sleep(0.02)
        return Verdict("slow", allowed=True)

    bus = await in_memory(Hearing("slow", on=Call, answer=slow), Hearing("quick", on=Call))
    permit = await bus.admit(CALL)
    assert permit.policies == ("slow", "quick")
    await bus.settle(permit)
    assert heard == ["slow", "quick"]


async def test_peeking_asks_them_as_well(in_memory):
    one, two = Service(), Service()
    two.answer = False
    bus = await in_memory(asked(one, "one"), asked(two, "two"))
    assert names(await bus.peek(CALL)) == ["one", "two"]


async def test_those_that_are_asked_together_cannot_rewrite_the_event(in_memory):
    async def rewrite(event):
        return Verdict("early", allowed=True, event=Call(tenant="other"))

    early = Independent("early", on=Call, answer=rewrite)
    bus = await in_memory(early, asked(Service(), "beside"))
    (veto,) = (await bus.check(CALL)).vetoes
    assert (veto.policy, veto.detail) == (
        "early",
        "rewrites the event, and so cannot be independent",
    )
    assert early.outcomes == [Outcome.NEUTRAL]
