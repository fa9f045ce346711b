"""An orchestrator that does what vetoes advise: skip, retry, fall back, or fail.

    python examples/orchestrator.py

Every signal comes from a policy: the orchestrator knows none of them, and reads only
`decision.signal`, `decision.retry_after` and `decision.advice`.
"""

from __future__ import annotations

import asyncio

from stanchion import Decision, Event, EventBus, Outcome, RateLimit, Signal
from stanchion.policies.function import policy


class ModelCall(Event, type="llm:call"):
    node: str
    model: str = "large"
    purpose: str = "answer"
    attempt: int = 1


# Too fast: come back when there is room, which `retry_after` says.
PACE = RateLimit(name="pace", on=ModelCall, limit=2, per="300ms", on_veto="retry")


@policy(on=ModelCall, priority=5, on_veto="skip")
async def no_small_talk(call: ModelCall) -> str | None:
    return "small talk needs no model" if call.purpose == "small talk" else None


@policy(on=ModelCall, priority=10, on_veto="fallback", advice={"model": "small"})
async def large_is_for_answers(call: ModelCall) -> str | None:
    if call.model == "large" and call.purpose != "answer":
        return "the large model is for answers"
    return None


@policy(on=ModelCall, on_veto="fail")
async def no_third_attempt(call: ModelCall) -> str | None:
    return "two attempts are enough" if call.attempt > 2 else None


async def complete(call: ModelCall) -> str:
    await asyncio.sleep(0.01)  # your model client
    if call.node == "flaky":
        raise TimeoutError("the provider did not answer")
    return f"a word from {call.model}"


class Failed(Exception):
    """A node cannot be run, and the pipeline ends."""


def changed(call: ModelCall, decision: Decision) -> ModelCall:
    """Get the call as a fallback advises; what it advises is data, and is checked as such."""
    model = decision.advice.get("model")
    if not isinstance(model, str):
        raise Failed(f"{call.node}: told to fall back, and not to which model")
    return call.model_copy(update={"model": model})


async def attempted(bus: EventBus, call: ModelCall, decision: Decision) -> str | None:
    """Get the result of one admitted attempt, None where it failed; settled either way."""
    assert decision.permit is not None, "what is admitted has one"
    try:
        result = await complete(call)
    except TimeoutError as error:
        print(f"{call.node}: attempt {call.attempt} failed: {error}")
        await bus.settle(decision.permit, Outcome.FAILURE)
        return None
    await bus.settle(decision.permit, Outcome.SUCCESS)
    return result


async def run_node(bus: EventBus, call: ModelCall) -> str | None:
    """Get a node's result, None where it is to be skipped."""
    while True:
        decision = await bus.check(call)
        match decision.signal:
            case Signal.PROCEED:
                result = await attempted(bus, call, decision)
                if result is not None:
                    return result
                call = call.model_copy(update={"attempt": call.attempt + 1})
            case Signal.SKIP:
                print(f"{call.node}: skipped: {decision.reason}")
                return None
            case Signal.RETRY if decision.retry_after is not None:
                print(f"{call.node}: waits: {decision.reason}")
                await asyncio.sleep(decision.retry_after)
            case Signal.FALLBACK:
                before, call = call, changed(call, decision)
                print(f"{call.node}: {before.model} -> {call.model}: {decision.reason}")
            case _:
                raise Failed(f"{call.node}: {decision.policy}: {decision.reason}")


PIPELINE = [
    ModelCall(node="greeting", purpose="small talk"),
    ModelCall(node="outline", purpose="draft"),
    ModelCall(node="answer"),
    ModelCall(node="review", purpose="draft"),
    ModelCall(node="flaky"),
    ModelCall(node="never reached"),
]


async def main() -> None:
    policies = [PACE, no_small_talk, large_is_for_answers, no_third_attempt]
    async with EventBus.from_url("memory://", policies=policies) as bus:
        try:
            for call in PIPELINE:
                result = await run_node(bus, call)
                if result is not None:
                    print(f"{call.node}: {result}")
        except Failed as error:
            print(f"pipeline failed: {error}")


if __name__ == "__main__":
    asyncio.run(main())
