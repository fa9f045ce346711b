"""The program that the README shows, as a user who checks types strictly would write it."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

from stanchion import (
    CircuitBreaker,
    Concurrency,
    Decision,
    Event,
    EventBus,
    Outcome,
    Permit,
    Quota,
    RateLimit,
    Settlement,
    Signal,
    Verdict,
    Vetoed,
)


class ModelCall(Event, type="llm:call"):
    tenant: str
    model: str
    tokens: int = 1


POLICIES = [
    RateLimit(name="calls", on=ModelCall, by=("tenant", "model"), limit=600, per="1m", burst=100),
    Quota(name="tokens", on=ModelCall, by=("tenant",), limit=2_000_000, per="day", cost="tokens"),
    Concurrency(name="in-flight", on=ModelCall, by=("model",), limit=8, lease="30s"),
    CircuitBreaker(
        name="provider",
        on=ModelCall,
        by=("model",),
        failure_rate=0.5,
        minimum_calls=20,
        window="30s",
        open_for="10s",
        half_open_calls=2,
    ),
]


async def complete(call: ModelCall) -> int:
    return call.tokens


async def main() -> None:
    async with EventBus.from_url("memory://", policies=POLICIES) as bus:
        assert_type(bus, EventBus)
        call = ModelCall(tenant="acme", model="m1", tokens=900)
        await decide(bus, call)
        await guard(bus, call)
        await guarded(bus)


async def decide(bus: EventBus, call: ModelCall) -> None:
    decision = await bus.check(call)
    assert_type(decision, Decision)
    assert_type(decision.allowed, bool)
    assert_type(decision.signal, Signal)
    assert_type(decision.policy, str | None)
    assert_type(decision.reason, str | None)
    assert_type(decision.retry_after, float | None)
    assert_type(decision.verdicts, tuple[Verdict, ...])
    assert_type(decision.vetoes, tuple[Verdict, ...])
    assert_type(decision.decided_at, datetime | None)
    assert_type([verdict.remaining for verdict in decision.verdicts], list[int | None])
    if decision.permit is not None:
        assert_type(decision.permit, Permit)
        text = str(decision.permit)
        permit = Permit.parse(text)
        assert_type(await bus.settle(permit, Outcome.FAILURE, tokens=120), Settlement)


async def guard(bus: EventBus, call: ModelCall) -> None:
    try:
        async with bus.guard(call, wait=30) as permit:
            assert_type(permit, Permit)
            permit.charge(tokens=await complete(call))
            assert_type(permit.lost, bool)
            assert_type(permit.expires_at, datetime | None)
    except Vetoed as veto:
        assert_type(veto.decision, Decision)


async def guarded(bus: EventBus) -> None:
    @bus.guarded(ModelCall)
    async def ask(tenant: str, model: str, prompt: str) -> bytes:
        return f"{tenant} {model} {prompt}".encode()

    reply = await ask("acme", model="m1", prompt="hello")
    assert_type(reply, bytes)
