"""Answers that are kept, and questions that are asked once for many."""

from __future__ import annotations

import asyncio

import pytest

from stanchion import Event, PolicyFailed, Verdict
from tests.remote.asking import CALL, Call, Service, asked
from tests.waiting import eventually

# ---- answers that are kept


async def test_admissions_and_denials_are_kept_for_a_time_of_their_own(in_memory):
    service = Service()
    policy = asked(service, by="model", cache_admit="10s", cache_deny="300ms")
    bus = await in_memory(policy)
    for _ in range(3):
        assert await bus.check(CALL)
    assert len(service.asked) == 1
    service.answer = False
    for _ in range(3):
        assert (await bus.check(Call(model="m2"))).reason == "not today"
    assert len(service.asked) == 2
    assert policy.stats.cached == 4
    service.answer = True

    async def forgotten():
        return await bus.check(Call(model="m2"))

    await eventually(forgotten, what="the denial to be forgotten")
    assert await bus.check(CALL)
    assert len(service.asked) == 3


async def test_what_is_not_to_be_kept_is_asked_each_time(in_memory):
    service = Service()
    bus = await in_memory(asked(service, by="model", cache_deny="10s"))
    for _ in range(3):
        assert await bus.check(CALL)
    assert len(service.asked) == 3


async def test_a_failure_is_never_kept(in_memory):
    service = Service()
    bus = await in_memory(asked(service, by="model", cache_admit=10, cache_deny=10))
    service.answer = PolicyFailed("broken")
    assert not await bus.check(CALL)
    service.answer = True
    assert await bus.check(CALL)


async def test_no_more_answers_are_kept_than_declared(in_memory):
    service = Service()
    bus = await in_memory(asked(service, by="model", cache_admit=10, cache_size=2))
    for model in ("a", "b", "a", "c", "a", "b"):
        await bus.check(Call(model=model))
    assert [event.model for event in service.asked if isinstance(event, Call)] == [
        *("a", "b"),
        *("c", "b"),
    ], "who was not asked for the longest time goes first"


class Odd(Event, type="remote:odd"):
    """A field that may hold anything."""

    one: bool | int | str | None = None


async def test_values_that_look_alike_are_different_questions(in_memory):
    service = Service()
    bus = await in_memory(asked(service, on=Odd, by=("one", "metadata.more"), cache_admit=10))
    for value in (1, True, "1", "True", None, "None"):
        await bus.check(Odd(one=value))
        await bus.check(Odd(one=value, metadata={"more": [1]}))
        await bus.check(Odd(one=value, metadata={"more": [1]}))
    assert len(service.asked) == 12


async def test_a_kept_denial_counts_down_and_ends_when_it_said(in_memory):
    service = Service()
    service.answer = Verdict("x", allowed=False, reason="later", retry_after=0.3)
    bus = await in_memory(asked(service, by="model", cache_deny=10))
    assert (await bus.check(CALL)).retry_after == 0.3
    again = await bus.check(CALL)
    assert again.retry_after is not None
    assert 0 < again.retry_after < 0.3
    assert len(service.asked) == 1
    await asyncio.sleep(again.retry_after)
    service.answer = True
    assert await bus.check(CALL)


async def test_what_was_kept_can_be_forgotten(in_memory):
    service = Service()
    policy = asked(service, by="model", cache_admit=10)
    bus = await in_memory(policy)
    await bus.check(CALL)
    policy.forget()
    await bus.check(CALL)
    assert len(service.asked) == 2


# ---- one question for many


async def test_the_same_question_is_asked_once_for_all_who_want_to_know(in_memory):
    service = Service()
    gate = service.hold()
    policy = asked(service, by="model")
    bus = await in_memory(policy)
    checks = [asyncio.create_task(bus.check(CALL)) for _ in range(20)]
    other = asyncio.create_task(bus.check(Call(model="m2")))
    await eventually(lambda: policy.stats.shared == 19)
    gate.set()
    assert all(await asyncio.gather(*checks, other))
    assert len(service.asked) == 2
    assert await bus.check(CALL)
    assert len(service.asked) == 3, "an answer is not kept unless that is declared"


@pytest.mark.parametrize("who", [0, 3], ids=["who-asked-first", "who-joined"])
async def test_who_gives_up_does_not_disturb_the_others(in_memory, who):
    service = Service()
    gate = service.hold()
    policy = asked(service, by="model")
    bus = await in_memory(policy)
    checks = [asyncio.create_task(bus.check(CALL)) for _ in range(5)]
    await eventually(lambda: policy.stats.shared == 4)
    checks[who].cancel()
    await asyncio.wait([checks[who]])
    assert service.ended == []
    gate.set()
    done = await asyncio.gather(*checks, return_exceptions=True)
    assert isinstance(done.pop(who), asyncio.CancelledError)
    assert all(done)
    assert len(service.asked) == 1


async def test_a_question_that_all_gave_up_is_not_asked_further(in_memory):
    service = Service()
    service.hold()
    policy = asked(service, by="model", timeout=30)
    bus = await in_memory(policy, deadline=30)
    checks = [asyncio.create_task(bus.check(CALL)) for _ in range(3)]
    await eventually(lambda: policy.stats.shared == 2)
    for check in checks:
        check.cancel()
    await asyncio.gather(*checks, return_exceptions=True)
    await eventually(lambda: service.ended == ["cancelled"], what="the question to end")
    service.wait = None
    assert await bus.check(CALL), "who asks next starts anew"


async def test_a_failure_is_everybodys(in_memory):
    service = Service()
    gate = service.hold()
    service.answer = PolicyFailed("broken")
    policy = asked(service, by="model")
    bus = await in_memory(policy)
    checks = [asyncio.create_task(bus.check(CALL)) for _ in range(4)]
    await eventually(lambda: policy.stats.shared == 3)
    gate.set()
    details = {decision.vetoes[0].detail for decision in await asyncio.gather(*checks)}
    assert details == {"broken"}
    assert policy.stats.failed == 4


async def test_who_is_in_a_hurry_waits_no_longer_and_who_is_patient_gets_the_answer():
    service = Service()
    gate = service.hold()
    policy = asked(service, by="model", timeout=5)
    now = asyncio.get_running_loop().time()
    hasty = asyncio.create_task(policy.evaluate_by(CALL, now + 0.05))
    patient = asyncio.create_task(policy.evaluate_by(CALL, now + 5))
    with pytest.raises(PolicyFailed, match="no answer within"):
        await hasty
    assert asyncio.get_running_loop().time() - now < 2
    gate.set()
    assert (await patient).allowed
    assert len(service.asked) == 1
    await policy.close()
