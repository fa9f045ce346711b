"""Policies that ask a service: modes, advice, figures, buses, functions, declarations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stanchion import ConfigError, Mode, PolicyFailed, Reason, Signal, Verdict
from stanchion.events import PolicyFailed as PolicyFailedEvent
from stanchion.events import PolicyVetoed
from stanchion.observers import Recorder
from stanchion.policies.remote import remote_policy
from stanchion.sync import EventBus as SyncEventBus
from tests.remote.asking import CALL, Call, Service, asked, http_policy
from tests.waiting import eventually

# ---- modes, advice, figures


async def test_shadow_reports_what_would_have_happened_and_follows_nothing(in_memory):
    service = Service()
    policy = asked(service, mode="shadow")
    recorder = Recorder(on=(PolicyVetoed, PolicyFailedEvent))
    bus = await in_memory(policy, observers=[recorder])
    service.answer = False
    decision = await bus.check(CALL)
    (verdict,) = decision.verdicts
    assert decision.allowed
    assert (verdict.allowed, verdict.enforced, verdict.reason) == (False, False, "not today")
    service.answer = PolicyFailed("broken")
    decision = await bus.check(CALL)
    (verdict,) = decision.verdicts
    assert decision.allowed
    assert (verdict.allowed, verdict.enforced) == (False, False)
    assert (policy.stats.vetoed, policy.stats.failed) == (1, 1)
    await recorder.wait_for(PolicyFailedEvent)


async def test_off_is_not_asked(in_memory):
    service = Service()
    bus = await in_memory(asked(service, mode=Mode.OFF))
    decision = await bus.check(CALL)
    assert (decision.allowed, decision.verdicts, service.asked) == (True, (), [])


async def test_a_veto_advises_what_is_declared_or_what_the_service_says(in_memory):
    service = Service()
    service.answer = False
    bus = await in_memory(asked(service, on_veto="fallback", advice={"model": "small"}))
    decision = await bus.check(CALL)
    assert (decision.signal, decision.advice) == (Signal.FALLBACK, {"model": "small"})
    service.answer = Verdict("x", allowed=False, signal=Signal.SKIP, advice={"why": "so"})
    decision = await bus.check(CALL)
    assert (decision.signal, decision.advice) == (Signal.SKIP, {"why": "so"})
    service.answer = PolicyFailed("broken")
    assert (await bus.check(CALL)).signal is Signal.FALLBACK


async def test_every_question_is_counted_as_what_became_of_it(in_memory):
    service = Service()
    policy = asked(service, by="model", cache_admit=10)
    bus = await in_memory(policy)
    await bus.check(CALL)
    await bus.check(CALL)
    service.answer = False
    await bus.check(Call(model="m2"))
    service.answer = PolicyFailed("broken")
    await bus.check(Call(model="m2"))
    stats = policy.stats
    assert (stats.asked, stats.admitted, stats.vetoed, stats.failed) == (4, 2, 1, 1)
    assert (stats.cached, stats.shared, stats.timed_out, stats.calls) == (1, 0, 0, 3)
    assert 0 < stats.latency_max <= stats.latency_sum < 1
    with pytest.raises(AttributeError):
        stats.asked = 0  # pyright: ignore[reportAttributeAccessIssue]


# ---- buses


async def test_a_bus_that_closes_lets_another_ones_question_end(in_memory):
    service = Service()
    policy = asked(service, by="model")
    one, two = await in_memory(policy), await in_memory(policy)
    gate = service.hold()
    check = asyncio.create_task(two.check(CALL))
    await eventually(lambda: len(service.asked) == 1)
    closing = asyncio.create_task(one.close())
    await asyncio.sleep(0)
    gate.set()
    assert await check
    await closing
    assert await two.check(CALL), "it can be asked again"


async def test_a_policy_that_is_taken_away_lets_go(in_memory, faulty):
    policy = http_policy(faulty.url)
    bus = await in_memory(policy)
    await bus.check(CALL)
    assert faulty.open == 1
    bus.unregister("http")
    await eventually(lambda: faulty.open == 0, what="the connection to be closed")
    bus.register(policy)
    assert await bus.check(CALL)


def test_it_is_asked_without_a_loop_of_ones_own():
    policy = asked(service := Service(), by="model")
    with SyncEventBus.from_url("memory://", policies=[policy]) as bus:
        assert bus.check(CALL)
        service.answer = False
        assert bus.check(CALL).policy == "remote"
        bus.unregister("remote")
        assert bus.check(CALL)


async def test_an_outage_is_written_down_once_for_many_events(in_memory, caplog):
    service = Service()
    service.answer = PolicyFailed("broken")
    bus = await in_memory(asked(service))
    for _ in range(20):
        await bus.check(CALL)
    told = [record.message for record in caplog.records]
    assert told == [
        "policy remote could not be asked: broken",
        "policy remote could not be asked: has not been answering: broken",
    ]


def test_a_policy_serves_one_loop_after_the_other():
    policy = asked(service := Service(), by="model")
    for _ in range(2):
        assert asyncio.run(_ask_once(policy))
    assert len(service.asked) == 2
    assert policy.stats.admitted == 2


async def _ask_once(policy):
    try:
        return (await policy.evaluate(CALL)).allowed
    finally:
        await policy.close()


async def test_a_copy_shares_neither_answers_nor_figures(in_memory):
    service = Service()
    policy = asked(service, by="model", cache_admit=10)
    await policy.evaluate(CALL)
    copy = policy.model_copy(update={"name": "copy"})
    await copy.evaluate(CALL)
    assert len(service.asked) == 2
    assert (policy.stats.asked, copy.stats.asked) == (1, 1)
    assert copy != policy
    await policy.close()
    await copy.close()


# ---- rewriting


@pytest.mark.parametrize("fields", [{"by": "model", "independent": False}, {}], ids=["by", "alone"])
async def test_an_answer_that_others_may_share_cannot_rewrite_the_event(in_memory, fields):
    service = Service()
    service.answer = Verdict("x", allowed=True, event=Call(tenant="other"))
    bus = await in_memory(asked(service, on_outage="admit", **fields))
    (veto,) = (await bus.check(CALL)).vetoes
    assert "cannot be independent, nor share its answers" in str(veto.detail)


async def test_one_that_is_asked_alone_may_rewrite_the_event(in_memory):
    service, later = Service(), Service()
    service.answer = Verdict("x", allowed=True, event=Call(tenant="other"))
    bus = await in_memory(
        asked(service, independent=False, priority=1), asked(later, "later", priority=2)
    )
    decision = await bus.check(CALL)
    assert decision.event == later.asked[0] == service.answer.event
    shadow = await in_memory(asked(service, independent=False, mode="shadow"))
    assert (await shadow.check(CALL)).event is None


# ---- functions


async def test_a_function_is_a_policy_with_all_of_this(in_memory):
    asked_about: list[Call] = []

    @remote_policy(on=Call, by="model", cache_admit="10s", timeout="250ms", on_veto="skip")
    async def known_model(call: Call) -> bool | str:
        """Say whether the model is known."""
        asked_about.append(call)
        return call.model == "m1" or f"no model {call.model}"

    bus = await in_memory(known_model)
    for _ in range(3):
        assert await bus.check(CALL)
    decision = await bus.check(Call(model="m9"))
    assert (decision.policy, decision.reason) == ("known-model", "no model m9")
    assert decision.signal is Signal.SKIP
    assert len(asked_about) == 2
    assert (known_model.stats.cached, known_model.timeout) == (2, 0.25)
    assert await known_model(CALL) is True
    assert known_model.__doc__ == "Say whether the model is known."


async def test_a_function_that_answers_something_else_or_raises_failed(in_memory):
    answers = iter([7, None, False])

    @remote_policy(on=Call, name="odd")
    async def odd(call: Call) -> Any:
        return next(answers)

    bus = await in_memory(odd)
    decisions = [await bus.check(CALL) for _ in range(4)]
    assert [decision.reason for decision in decisions] == [
        *(Reason.POLICY_FAILED, None),
        *("denied", Reason.POLICY_FAILED),
    ]
    with pytest.raises(ConfigError, match="plain is not an async function"):

        @remote_policy(on=Call)
        def plain(call: Call) -> Any:
            return True


# ---- declarations

MISTAKES = {
    "by": ({"by": "tol"}, r"Asked 'remote': by='tol': Call has no field 'tol'"),
    "cache-without-by": ({"cache_admit": 1}, r"by=None: answers are kept by"),
    "timeout": ({"timeout": 0}, r"timeout=0: expected between"),
    "cache-life": ({"by": "model", "cache_deny": "soon"}, r"cache_deny='soon': expected a"),
    "cache-size": ({"cache_size": 0}, r"cache_size=0: .*greater than or equal to 1"),
    "local": ({"on_outage": "local"}, r"on_outage='local'"),
    "unknown": ({"tmeout": 1}, r"tmeout: no such field; accepted are .*timeout"),
    "name": ({"name": "a b"}, r"name='a b'"),
}


@pytest.mark.parametrize(("fields", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_told_where_it_is_declared(fields, told):
    with pytest.raises(ConfigError, match=told):
        asked(Service(), **fields)
