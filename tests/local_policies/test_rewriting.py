"""An event that a policy rewrote: who sees which, what is held under it, and what is called."""

from __future__ import annotations

from typing import Any, cast

import pytest

import stanchion.sync
from stanchion import Event, EventBus, Outcome, Permit, Reason, Verdict
from stanchion.events import PolicyVetoed
from stanchion.policies.content import ContentPolicy
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, SettlingCustom, every_kind, quota, rate, stored_bytes


class Prompt(Event, type="rewriting:prompt"):
    tenant: str = "acme"
    prompt: str
    tokens: int = 10


MAIL = Prompt(prompt="write to jo@example.com")
CLEAN = "write to [email]"


def redactor(**fields: Any) -> ContentPolicy:
    given: dict[str, Any] = {"name": "content", "on": Prompt, "fields": "prompt", "priority": 100}
    given |= {"personal": ["email"], "redact": ["personal_data"]}
    return ContentPolicy(**{**given, **fields})


def asked(policy: Custom) -> list[str]:
    return [event.prompt for event in policy.asked if isinstance(event, Prompt)]


async def test_those_asked_later_and_the_caller_get_the_redacted_event(open_bus):
    early, late = Custom("early", on=Prompt, priority=1), Custom("late", on=Prompt, priority=200)
    bus = await open_bus(early, redactor(), late)
    for ask in (bus.check, bus.peek):
        decision = await ask(MAIL)
        assert decision
        assert isinstance(decision.event, Prompt)
        assert (decision.event.prompt, decision.event.id) == (CLEAN, MAIL.id)
    assert (asked(early), asked(late)) == ([MAIL.prompt] * 2, [CLEAN] * 2)


async def test_an_event_that_nobody_rewrote_is_not_given_back(open_bus):
    bus = await open_bus(redactor(), rate(on=Prompt))
    decision = await bus.check(Prompt(prompt="hello"))
    assert decision
    assert decision.event is None


async def test_two_that_rewrite_do_so_one_after_the_other(open_bus):
    second = redactor(name="second", personal=[], terms=["write"], redact=["term"], priority=150)
    bus = await open_bus(second, redactor())
    decision = await bus.check(MAIL)
    assert decision.event.prompt == "[term] to [email]"
    assert [verdict.reason for verdict in decision.verdicts] == ["redacted", "redacted"]


async def test_a_policy_of_somebodys_own_can_rewrite_and_what_comes_later_costs_what_it_says():
    async def halve(event):
        return Verdict("halve", allowed=True, event=event.model_copy(update={"tokens": 5}))

    policies = [quota("before", on=Prompt, priority=1), Custom("halve", on=Prompt, answer=halve)]
    policies.append(quota("after", on=Prompt, priority=200))
    async with EventBus.from_url("memory://", policies=policies) as bus:
        decision = await bus.check(Prompt(prompt="x", tokens=10))
        left = {verdict.policy: verdict.remaining for verdict in decision.verdicts}
        assert (left["before"], left["after"]) == (990, 995)


async def test_an_event_of_another_kind_in_its_place_is_a_veto():
    async def swap(event):
        return Verdict("swap", allowed=True, event=Call())

    async with EventBus.from_url(
        "memory://", policies=[Custom("swap", on=Prompt, answer=swap)]
    ) as bus:
        decision = await bus.check(MAIL)
        assert (decision.allowed, decision.reason) == (False, Reason.POLICY_FAILED)


@pytest.mark.parametrize("who", ["content", "another"])
async def test_a_later_veto_leaves_every_byte_in_the_store_as_it_was(server, who):
    chain: list[Any] = [
        cast("Any", kind).model_copy(update={"on": Prompt}) for kind in every_kind()
    ]
    last: list[Any] = [redactor(priority=200, redact=[] if who == "content" else ["personal_data"])]
    another = Custom("another", on=Prompt, priority=300, answer=who == "content")
    last.append(another)
    async with memory_bus(*chain, *last, url=server.url) as bus:
        assert not await bus.check(MAIL)
        assert not await stored_bytes(bus), "what was not there before is not there after it"
        another.answer = True
        assert await bus.check(Prompt(prompt="hello"))
        another.answer = who == "content"
        before = await stored_bytes(bus)
        assert len(before) >= len(chain)
        for _ in range(3):
            decision = await bus.check(MAIL)
            assert (decision.policy, decision.event, decision.permit) == (who, None, None)
        assert await stored_bytes(bus) == before
        told = await bus.recorder.wait_for(PolicyVetoed)
        assert "example.com" not in str(told.to_cloudevent())
        assert "[email]" not in str(told.to_cloudevent())


async def test_a_permit_carries_the_redacted_event_also_as_text(open_bus):
    settling = SettlingCustom("settling", on=Prompt, priority=1)
    bus = await open_bus(settling, redactor())
    permit = Permit.parse(str((await bus.check(MAIL)).permit))
    assert "example.com" not in str(permit.event)
    assert Prompt.from_cloudevent(dict(permit.event or {})).prompt == CLEAN
    assert await bus.settle(permit, Outcome.SUCCESS)
    (settled,) = settling.settled
    assert isinstance(settled[0], Prompt)
    assert settled[0].prompt == CLEAN
    async with bus.guard(MAIL) as held:
        assert Prompt.from_cloudevent(dict(held.event or {})).prompt == CLEAN


async def test_a_guarded_function_is_called_with_what_was_admitted(open_bus):
    bus = await open_bus(redactor())

    @bus.guarded(Prompt, tokens=3)
    async def ask(system: str, prompt: str = "write to jo@example.com", *more: str) -> Any:
        return system, prompt, more

    assert await ask("s") == ("s", CLEAN, ())
    assert await ask("jo@example.com", MAIL.prompt, "x") == ("jo@example.com", CLEAN, ("x",))
    assert await ask("s", prompt="hello") == ("s", "hello", ())


def test_so_is_one_of_the_blocking_bus():
    with stanchion.sync.EventBus.from_url("memory://", policies=[redactor()]) as bus:

        @bus.guarded(Prompt)
        def ask(prompt: str) -> str:
            return prompt

        assert ask(MAIL.prompt) == CLEAN
        assert ask(prompt="hello") == "hello"


async def test_in_shadow_the_function_gets_what_it_was_given(open_bus):
    bus = await open_bus(redactor(mode="shadow"))

    @bus.guarded(Prompt)
    async def ask(prompt: str) -> str:
        return prompt

    assert await ask(MAIL.prompt) == MAIL.prompt


@pytest.mark.parametrize("wait", [0, 5])
async def test_who_waits_in_line_gets_the_redacted_event_too(open_bus, wait):
    bus = await open_bus(redactor(), rate(on=Prompt, limit=100))
    permit = await bus.admit(MAIL, wait=wait)
    assert Prompt.from_cloudevent(dict(permit.event or {})).prompt == CLEAN
