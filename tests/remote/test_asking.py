"""How a service is asked: in time, and not at all while it is away."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from stanchion import Event, PolicyFailed, Reason
from stanchion.events import PolicyFailed as PolicyFailedEvent
from stanchion.observers import Recorder
from tests.remote.asking import CALL, Service, asked
from tests.waiting import eventually


async def never():
    await asyncio.Event().wait()


# ---- in time


@pytest.mark.parametrize(
    ("timeout", "deadline"), [(0.1, 5.0), (5.0, 0.1)], ids=["its-own", "the-check's"]
)
async def test_the_shorter_of_timeout_and_deadline_holds_and_the_veto_names_the_policy(
    in_memory, timeout, deadline
):
    service = Service()
    service.wait = never
    policy = asked(service, timeout=timeout)
    bus = await in_memory(policy, deadline=deadline)
    began = time.monotonic()
    decision = await bus.check(CALL)
    assert 0.09 < time.monotonic() - began < 2
    veto = decision.vetoes[0]
    assert (veto.policy, veto.reason) == ("remote", Reason.POLICY_FAILED)
    assert re.fullmatch(r"no answer within 0\.\d+ s", str(veto.detail))
    assert timeout == 5.0 or veto.detail == "no answer within 0.1 s"
    assert service.ended == ["cancelled"], "nobody waits for the answer any more"
    assert (policy.stats.failed, policy.stats.timed_out) == (1, 1)


async def test_services_after_one_that_hangs_have_what_is_left_of_the_deadline(in_memory):
    slow, late = Service(), Service()
    slow.wait = late.wait = never
    bus = await in_memory(
        asked(slow, "slow", timeout=0.1, on_outage="admit", priority=1),
        asked(late, "late", timeout=10, priority=2),
        deadline=0.25,
    )
    began = time.monotonic()
    decision = await bus.check(CALL)
    assert 0.2 < time.monotonic() - began < 2
    assert decision.policy == "late"


async def test_a_check_that_has_no_time_left_does_not_ask(in_memory):
    service = Service()
    policy = asked(service)
    with pytest.raises(PolicyFailed, match="no time was left"):
        await policy.evaluate_by(CALL, asyncio.get_running_loop().time())
    assert service.asked == []


# ---- outages


@pytest.mark.parametrize("error", [PolicyFailed("broken"), ZeroDivisionError("secret")])
@pytest.mark.parametrize("on_outage", ["veto", "admit"])
async def test_an_outage_is_answered_as_declared_and_observers_hear_of_it(
    in_memory, error, on_outage
):
    service = Service()
    service.answer = error
    recorder = Recorder(on=PolicyFailedEvent)
    bus = await in_memory(asked(service, on_outage=on_outage), observers=[recorder])
    decision = await bus.check(CALL)
    assert decision.allowed == (on_outage == "admit")
    (verdict,) = decision.verdicts
    assert verdict.reason == Reason.POLICY_FAILED
    assert verdict.detail == ("broken" if isinstance(error, PolicyFailed) else "ZeroDivisionError")
    assert (await recorder.wait_for(PolicyFailedEvent)).policy == "remote"


async def test_a_mistake_is_no_outage_and_admits_nothing(in_memory):
    service = Service()
    policy = asked(service, on="remote_late:*", by="model", on_outage="admit")

    class Bare(Event, type="remote_late:bare"):
        """Declared after the policy, and without the fields of a call."""

    bus = await in_memory(policy)
    decision = await bus.check(Bare())
    assert (decision.allowed, decision.reason) == (False, Reason.POLICY_FAILED)
    assert "Bare has no field 'model'" in str(decision.vetoes[0].detail)
    assert service.asked == []


async def test_a_service_that_ends_itself_by_cancelling_is_one_that_failed(in_memory):
    service = Service()
    service.answer = asyncio.CancelledError()
    bus = await in_memory(asked(service), asked(service, "other", by="model"))
    assert (await bus.check(CALL)).reason == Reason.POLICY_FAILED


# ---- its breaker


async def test_after_three_failures_it_is_left_alone_then_tried_and_asked_again(in_memory):
    service = Service()
    service.answer = PolicyFailed("broken")
    policy = asked(service)
    bus = await in_memory(policy)
    for _ in range(3):
        await bus.check(CALL)
    for _ in range(10):
        decision = await bus.check(CALL)
        assert decision.vetoes[0].detail == "has not been answering: broken"
        assert decision.retry_after is not None
        assert 0 < decision.retry_after <= 0.25
    assert len(service.asked) == 3
    assert (policy.stats.refused, policy.stats.failed) == (10, 13)
    await asyncio.sleep(decision.retry_after)
    gate = service.hold()
    trial = asyncio.create_task(bus.check(CALL))
    await eventually(lambda: len(service.asked) == 4, what="one to try")
    others = [await bus.check(CALL) for _ in range(5)]
    assert not any(others)
    assert len(service.asked) == 4, "one at a time"
    service.answer = True
    gate.set()
    assert await trial
    assert await bus.check(CALL)


async def test_what_times_out_by_the_deadline_counts_as_well(in_memory):
    service = Service()
    service.wait = never
    policy = asked(service, timeout=0.2)
    bus = await in_memory(policy, deadline=0.05)
    for _ in range(3):
        await bus.check(CALL)
    assert (await bus.check(CALL)).retry_after is not None
    assert (policy.stats.timed_out, policy.stats.refused, len(service.asked)) == (3, 1, 3)


async def test_failures_of_one_moment_are_one(in_memory):
    service = Service()
    gate = service.hold()
    service.answer = PolicyFailed("broken")
    bus = await in_memory(asked(service))
    checks = [asyncio.create_task(bus.check(CALL)) for _ in range(10)]
    await eventually(lambda: len(service.asked) == 10)
    gate.set()
    await asyncio.gather(*checks)
    service.answer = True
    assert await bus.check(CALL)


async def test_who_gives_up_says_nothing_about_the_service(in_memory):
    service = Service()
    service.wait = never
    bus = await in_memory(asked(service))
    for number in range(4):
        check = asyncio.create_task(bus.check(CALL))
        await eventually(lambda number=number: len(service.asked) > number)
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)
    service.wait = None
    assert await bus.check(CALL)
