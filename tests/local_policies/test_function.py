"""`policy`: an async function as a policy."""

from __future__ import annotations

import pytest

from stanchion import ConfigError, EventBus, Policy, Reason, Signal, Verdict
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from stanchion.policies.function import policy
from tests.busses import Call, Other, SpecialCall, rate


@policy(priority=5, on_veto="fallback", advice={"model": "small"})
async def small_models_only(event: Call) -> str | None:
    """Refuse what is large."""
    return f"{event.model} is too large" if event.model == "large" else None


async def test_a_plain_async_function_is_a_policy(open_bus):
    assert isinstance(small_models_only, Policy)
    assert (small_models_only.name, small_models_only.on) == ("small-models-only", Call)
    assert small_models_only.__doc__ == "Refuse what is large."
    bus = await open_bus(rate(), small_models_only)
    assert await bus.check(Call())
    assert await bus.check(Other()), "it was not asked"
    decision = await bus.check(SpecialCall(model="large"))
    assert (decision.policy, decision.reason) == ("small-models-only", "large is too large")
    assert (decision.signal, decision.advice) == (Signal.FALLBACK, {"model": "small"})
    assert [verdict.policy for verdict in decision.verdicts] == ["small-models-only"]


async def test_the_function_can_still_be_called():
    assert await small_models_only(Call(model="large")) == "large is too large"


@pytest.mark.parametrize(
    ("answer", "allowed", "reason"),
    [
        (None, True, "ok"),
        (True, True, "ok"),
        (False, False, "denied"),
        ("", False, "denied"),
        ("why", False, "why"),
        (Verdict("x", allowed=False, reason="own", retry_after=2.0), False, "own"),
        (42, False, Reason.POLICY_FAILED),
        (ZeroDivisionError(), False, Reason.POLICY_FAILED),
    ],
)
async def test_what_it_answers_is_the_verdict(answer, allowed, reason):
    @policy(on="busses:*", name="mine")
    async def mine(event):
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with EventBus.from_url("memory://", policies=[mine]) as bus:
        (verdict,) = (await bus.check(Call())).verdicts
    assert (verdict.policy, verdict.allowed, verdict.reason) == ("mine", allowed, reason)


async def test_a_verdict_of_its_own_has_its_own_signal_and_advice():
    @policy(on=Call, on_veto="skip", advice={"a": 1})
    async def mine(event):
        return Verdict("x", allowed=False, signal=Signal.RETRY, advice={"b": 2}, retry_after=1.0)

    async with EventBus.from_url("memory://", policies=[mine]) as bus:
        decision = await bus.check(Call())
        assert (decision.signal, decision.advice, decision.retry_after) == ("retry", {"b": 2}, 1.0)


async def test_in_shadow_it_is_reported_and_failing_is_as_on_outage_says():
    @policy(on=Call, mode="shadow")
    async def shadow(event):
        return "no"

    @policy(on=Call, on_outage="admit")
    async def broken(event):
        raise ZeroDivisionError

    async with EventBus.from_url("memory://", policies=[shadow, broken]) as bus:
        decision = await bus.check(Call())
        assert decision
        assert [verdict.reason for verdict in decision.verdicts] == ["no", Reason.POLICY_FAILED]


def test_what_is_no_policy_is_refused_where_it_is_decorated():
    with pytest.raises(ConfigError, match="blocking is not an async function"):

        @policy(on=Call)  # pyright: ignore[reportArgumentType]
        def blocking(event):
            return None

    with pytest.raises(ConfigError, match="give on="):

        @policy()
        async def untyped(event):
            return None

    with pytest.raises(ConfigError, match="priorities: no such field"):

        @policy(on=Call, priorities=1)  # pyright: ignore[reportCallIssue]
        async def misspelt(event):
            return None


async def test_what_observers_are_told_of_a_failure_does_not_quote_the_event() -> None:
    @policy(name="broken")
    async def broken(event: Call) -> bool:
        raise ValueError(f"cannot read {event.tenant}")

    recorder = Recorder(on=PolicyFailed)
    async with EventBus.from_url("memory://", policies=[broken], observers=[recorder]) as bus:
        assert not await bus.check(Call(tenant="secret"))
        told = await recorder.wait_for(PolicyFailed)
    assert told.error.startswith("ValueError at test_function.py:")
    assert told.error_type == "ValueError"
