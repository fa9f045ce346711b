"""Custom policies in the chain: their turn, what their vetoes give back, and what becomes of them.

A custom policy vetoes for many reasons, and none of them may cost anything: neither its own no,
nor an error, nor an answer that is none, nor time.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from stanchion import (
    CircuitState,
    EventBus,
    Outcome,
    Policy,
    Reason,
    Signal,
    StoreUnavailable,
    Verdict,
    Vetoed,
)
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from stanchion.testing import memory_bus
from tests.busses import (
    Call,
    Custom,
    SettlingCustom,
    breaker,
    every_kind,
    quota,
    rate,
    slots,
    snapshot,
)
from tests.policies.circuits import state
from tests.waiting import eventually

CALL = Call(tenant="acme", tokens=100)


def in_memory(*policies, **options):
    """Make a bus with a deadline of its own."""
    return EventBus.from_url("memory://", policies=policies, **options)


async def never(event):
    await asyncio.Event().wait()


NOES = {
    "says-no": (False, "not today"),
    "raises": (ZeroDivisionError("secret"), Reason.POLICY_FAILED),
    "store": (StoreUnavailable("its own"), Reason.POLICY_FAILED),
    "no-verdict": ("yes", Reason.POLICY_FAILED),
    "nothing": (None, Reason.POLICY_FAILED),
    "hangs": (never, Reason.POLICY_FAILED),
}


@pytest.fixture(params=NOES.values(), ids=list(NOES))
def no(request):
    """What a custom policy answers in order to veto, and the reason that a decision then gives."""
    return request.param


# ---- their turn


async def test_priority_comes_first_and_registration_second_built_in_or_not(open_bus):
    asked: list[str] = []

    def noting(name, **options):
        async def note(event):
            asked.append(name)
            return True

        return Custom(name, answer=note, **options)

    bus = await open_bus(
        *(noting("c1"), rate("r1"), noting("last", priority=200), slots("s0", priority=50)),
        *(quota("q1"), noting("c2"), noting("first", priority=-5), breaker("b1")),
    )
    bus.register(noting("c0", priority=50))
    decision = await bus.check(CALL)
    order = ["first", "s0", "c0", "c1", "r1", "q1", "c2", "b1", "last"]
    assert [policy.name for policy in bus.policies] == order
    assert [verdict.policy for verdict in decision.verdicts] == order
    assert asked == ["first", "c0", "c1", "c2", "last"]


async def test_asking_stops_at_the_first_veto(open_bus):
    late = Custom("late")
    bus = await open_bus(rate(), Custom("no", answer=False), slots(), late)
    decision = await bus.check(CALL)
    assert [verdict.policy for verdict in decision.verdicts] == ["calls", "no"]
    assert late.asked == []
    full = await open_bus(slots("none-left", limit=1, cost="tokens"), rate(), late)
    decision = await full.check(CALL)
    assert [verdict.policy for verdict in decision.verdicts] == ["none-left", "calls"], (
        "built-in policies of one call all report"
    )
    assert late.asked == []


async def test_a_veto_before_a_built_in_policy_keeps_it_from_being_asked(open_shared, server):
    bus = await open_shared(Custom(answer=False, priority=1), *every_kind())
    with server.counting() as counted:
        assert not await bus.check(CALL)
    assert not counted, "nothing was sent"


async def test_a_custom_policy_is_whatever_has_the_shape_of_one():
    class Filter:
        name = "filter"
        on = "busses:*"
        priority = 10
        on_veto = Signal.SKIP

        async def evaluate(self, event):
            return Verdict(self.name, allowed=event.tokens < 50, reason="long", retry_after=1.5)

    assert isinstance(Filter(), Policy)
    async with memory_bus(Filter(), rate()) as bus:
        assert await bus.check(Call(tokens=49))
        decision = await bus.check(Call(tokens=50))
        assert (decision.policy, decision.reason, decision.signal, decision.retry_after) == (
            *("filter", "long"),
            *(Signal.SKIP, 1.5),
        )


# ---- what a veto gives back


async def test_a_later_veto_has_cost_nothing_when_the_decision_is_there(open_valkey, valkey, no):
    answer, reason = no
    custom = Custom(answer=answer)
    bus = await open_valkey(*every_kind(), custom, deadline=0.2)
    onlooker = await open_valkey(*every_kind())
    before = [verdict.remaining for verdict in (await onlooker.peek(CALL)).verdicts]
    for _ in range(3):
        decision = await bus.check(CALL)
        assert not decision
        assert (decision.policy, decision.reason) == ("custom", reason)
        assert decision.permit is None
        if answer is never:
            # The deadline was spent on waiting; what is under way then follows at once.
            await drained(onlooker)
        seen = [verdict.remaining for verdict in (await onlooker.peek(CALL)).verdicts]
        assert seen == before
    assert not [key for key in valkey.control.scan_iter("*") if ":epoch" not in key], (
        "nothing was there before"
    )


async def drained(bus):
    """Wait until no slot is in use."""

    async def none():
        return not [state async for state in bus.inspect("slots") if state.values["in_use"] != "0"]

    await eventually(none, what="every slot to be given back", interval=0.002)


async def test_a_probe_is_given_back_to_a_half_open_circuit(open_valkey, no):
    answer, _ = no
    custom = Custom(answer=True)
    policy = breaker(consecutive_failures=1, open_for="10ms")
    bus = await open_valkey(slots(limit=1), policy, custom, deadline=0.5)
    await bus.force("provider", CircuitState.HALF_OPEN)
    custom.answer = answer
    for _ in range(2):
        assert not await bus.check(CALL)
        if answer is never:
            await drained(bus)
    assert await state(bus) is CircuitState.HALF_OPEN, "it has neither passed nor failed"
    custom.answer = True
    permit = await bus.admit(CALL)
    assert (await bus.check(CALL)).reason == "no_free_slot"
    await bus.settle(permit)
    assert await state(bus) is CircuitState.CLOSED


async def test_charges_of_every_call_before_the_veto_are_given_back():
    noes = {"third"}

    def custom(name):
        return SettlingCustom(name, answer=lambda event: asyncio.sleep(0, name not in noes))

    customs = [custom(name) for name in ("first", "second", "third")]
    chain = [rate(), customs[0], slots(), customs[1], quota(), breaker(), customs[2]]
    async with memory_bus(*chain) as bus:
        fresh = [verdict.remaining for verdict in (await bus.peek(CALL)).verdicts]
        for custom_policy in customs:
            custom_policy.settled.clear()
        assert not await bus.check(CALL)
        assert customs[0].settled == customs[1].settled == [(CALL, Outcome.NEUTRAL, {})]
        assert customs[2].settled == [], "who vetoes has nothing to give back"
        seen = [verdict.remaining for verdict in (await bus.peek(CALL)).verdicts]
        assert seen == fresh
        noes.clear()
        assert await bus.check(CALL)


async def test_a_veto_by_a_built_in_policy_undoes_an_earlier_custom_one(open_bus):
    early = SettlingCustom("early", priority=1)
    bus = await open_bus(early, slots(limit=1))
    assert await bus.check(CALL)
    assert not await bus.check(CALL)
    assert early.outcomes == [Outcome.NEUTRAL]


async def test_cancelling_while_a_custom_policy_thinks_gives_everything_back(open_bus):
    thinking = asyncio.Event()

    async def think(event):
        thinking.set()
        await asyncio.Event().wait()

    early = SettlingCustom("early", priority=1)
    bus = await open_bus(early, slots(limit=1), Custom(answer=think))
    task = asyncio.create_task(bus.check(CALL))
    await thinking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await drained(bus)
    assert early.outcomes == [Outcome.NEUTRAL]


async def test_peek_asks_a_custom_policy_and_keeps_nothing(open_bus):
    custom = SettlingCustom()
    bus = await open_bus(*every_kind(), custom)
    before = await snapshot(bus)
    decision = await bus.peek(CALL)
    assert decision.verdicts[-1].policy == "custom"
    assert await snapshot(bus) == before
    assert custom.outcomes == [Outcome.NEUTRAL], "what it may have taken for a look, it gets back"


# ---- failing


async def test_who_fails_vetoes_and_observers_learn_of_it(no):
    answer, reason = no
    recorder = Recorder(on=PolicyFailed)
    async with in_memory(Custom(answer=answer), deadline=0.1, observers=[recorder]) as bus:
        decision = await bus.check(CALL)
        assert (decision.allowed, decision.reason) == (False, reason)
        assert decision.retry_after is None
        if reason != Reason.POLICY_FAILED:
            assert recorder.events == ()
            return
        told = await recorder.wait_for(PolicyFailed)
        assert (told.policy, told.asked_type, told.asked_id) == ("custom", "busses:call", CALL.id)
        assert told.tenant == "acme"
        kinds = {"ZeroDivisionError", "StoreUnavailable", "PolicyFailed", "TimeoutError"}
        assert told.error_type in kinds
        with pytest.raises(Vetoed) as caught:
            await bus.admit(CALL)
        assert type(caught.value) is Vetoed


async def test_one_deadline_is_for_all_of_them_together():
    async def slow(event):
        await asyncio.sleep(0.15)
        return True

    customs = [Custom(f"slow-{number}", answer=slow) for number in range(4)]
    async with in_memory(slots(limit=1), *customs, deadline=0.4) as bus:
        began = time.monotonic()
        decision = await bus.check(CALL)
        took = time.monotonic() - began
    assert 0.4 <= took < 0.6, took
    assert (decision.policy, decision.reason) == ("slow-2", Reason.POLICY_FAILED)


async def test_a_policy_that_works_again_is_asked_again(open_bus):
    custom = Custom(answer=ZeroDivisionError())
    bus = await open_bus(slots(limit=1), custom)
    for _ in range(3):
        assert not await bus.check(CALL)
    custom.answer = True
    assert await bus.check(CALL)


# ---- being told how it ended


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_it_is_told_the_event_the_outcome_and_the_costs(open_bus, outcome):
    custom, silent = SettlingCustom(), Custom("silent")
    bus = await open_bus(quota(), custom, silent)
    permit = await bus.admit(CALL)
    settlement = await bus.settle(permit, outcome, tokens=42)
    assert settlement.statuses == {"tokens": "settled", "custom": "settled"}
    assert custom.settled == [(CALL, outcome, {"tokens": 42})]


async def test_it_is_told_in_whatever_process_the_permit_is_settled(open_shared):
    here, there = SettlingCustom(), SettlingCustom()
    one, two = await open_shared(here), await open_shared(there)
    permit = type(await one.admit(CALL)).parse(str(await one.admit(CALL)))
    assert await two.settle(permit, Outcome.FAILURE, whatever=3)
    assert there.settled == [(CALL, Outcome.FAILURE, {"whatever": 3})]
    assert here.settled == []
    stranger = await open_shared()
    assert (await stranger.settle(permit)).statuses == {"custom": "unknown"}


@pytest.mark.parametrize("hangs", [False, True], ids=["raises", "hangs"])
async def test_one_that_fails_to_settle_is_told_of_and_keeps_nothing(hangs):
    async def broken():
        if hangs:
            await asyncio.Event().wait()
        raise ZeroDivisionError

    custom, other = SettlingCustom(), SettlingCustom("other")
    custom.on_settle = broken
    recorder = Recorder(on=PolicyFailed)
    policies = (slots(limit=1), custom, other)
    async with in_memory(*policies, deadline=0.1, observers=[recorder]) as bus:
        async with bus.guard(CALL):
            pass
        assert (await recorder.wait_for(PolicyFailed)).policy == "custom"
        assert other.outcomes == [Outcome.SUCCESS]
        settlement = await bus.settle(await bus.admit(CALL))
        assert settlement.statuses == {"slots": "settled", "custom": "failed", "other": "settled"}
