"""What the tests of metrics and traces share: runs of a pipeline, with times of our choice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from stanchion.decisions import CircuitState, Signal
from stanchion.events import (
    CircuitClosed,
    CircuitOpened,
    Event,
    LLMPromptSent,
    LLMResponseReceived,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    PipelineCompleted,
    PipelineFailed,
    PipelineStarted,
    PolicyChanged,
    PolicyFailed,
    PolicyVetoed,
    QuotaThresholdReached,
    ToolCalled,
    ToolCompleted,
    WaveCompleted,
    WaveStarted,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds: float, start: datetime = NOON) -> datetime:
    return start + timedelta(seconds=seconds)


def run_events(run_id: str, start: datetime = NOON, pipeline: str = "report") -> list[Event]:
    """Get a run in its order: a wave of two nodes, a call of a model that is refused at first."""
    run: dict[str, Any] = {"pipeline": pipeline, "run_id": run_id}
    ask = LLMPromptSent(
        **run,
        node="ask",
        model="m1",
        provider="acme",
        tokens=300,
        max_tokens=200,
        prompt="what nobody else may read",
        timestamp=at(1.5, start),
    )
    veto = PolicyVetoed(
        **run,
        node="ask",
        policy="calls",
        reason="limit",
        asked_type=ask.event_type,
        asked_id=ask.id,
        signal=Signal.RETRY,
        retry_after=0.5,
        timestamp=at(1.75, start),
    )
    tool = ToolCalled(**run, node="look", tool="search", timestamp=at(1.25, start))
    return [
        PipelineStarted(**run, waves=1, nodes=3, timestamp=at(0, start)),
        WaveStarted(**run, wave=0, nodes=("ask", "look"), timestamp=at(0.5, start)),
        NodeStarted(**run, node="ask", wave=0, timestamp=at(1, start)),
        NodeStarted(**run, node="look", wave=0, timestamp=at(1, start)),
        tool,
        ask,
        veto,
        ToolCompleted(
            **run,
            node="look",
            tool="search",
            call_id=tool.id,
            duration=0.75,
            error="no such page",
            error_type="NotFound",
            timestamp=at(2, start),
        ),
        NodeFailed(
            **run,
            node="look",
            wave=0,
            error="no such page",
            error_type="NotFound",
            duration=1.5,
            timestamp=at(2.5, start),
        ),
        LLMResponseReceived(
            **run,
            node="ask",
            model="m1",
            provider="acme",
            call_id=ask.id,
            duration=2.5,
            tokens=250,
            prompt_tokens=100,
            completion_tokens=150,
            dollars=0.25,
            finish_reason="stop",
            response="what nobody else may read",
            timestamp=at(4, start),
        ),
        NodeCompleted(**run, node="ask", wave=0, duration=3.5, timestamp=at(4.5, start)),
        NodeSkipped(
            **run, node="write", reason="vetoed", policy="calls", timestamp=at(4.75, start)
        ),
        WaveCompleted(**run, wave=0, duration=4.5, timestamp=at(5, start)),
        PipelineCompleted(
            **run,
            duration=6,
            nodes_completed=1,
            nodes_failed=1,
            nodes_skipped=1,
            timestamp=at(6, start),
        ),
    ]


def failed_run(run_id: str, start: datetime = NOON, pipeline: str = "report") -> list[Event]:
    run: dict[str, Any] = {"pipeline": pipeline, "run_id": run_id}
    return [
        PipelineStarted(**run, timestamp=at(0, start)),
        PipelineFailed(
            **run, error="out of luck", error_type="Bad", duration=2, timestamp=at(2, start)
        ),
    ]


def control_events(start: datetime = NOON) -> list[Event]:
    """Get what the control tier tells: a circuit that opens, a quota, a policy that fails."""
    return [
        circuit(CircuitState.OPEN, start=start),
        quota(0.8, start=start),
        PolicyFailed(
            policy="authz",
            error="no answer",
            error_type="TimeoutError",
            asked_type="llm:prompt",
            asked_id="1",
            timestamp=start,
        ),
        PolicyVetoed(
            policy="trial",
            reason="limit",
            asked_type="llm:prompt",
            asked_id="1",
            enforced=False,
            timestamp=start,
        ),
        PolicyChanged(policy="calls", change="registered", timestamp=start),
    ]


def circuit(
    state: CircuitState,
    subject: str = "m1",
    start: datetime = NOON,
    previous: CircuitState = CircuitState.CLOSED,
) -> Event:
    kind = CircuitClosed if state is CircuitState.CLOSED else CircuitOpened
    return kind(
        policy="provider",
        subject=subject,
        previous=previous,
        state=state,
        generation=1,
        seq=1,
        reason="failure_rate",
        timestamp=start,
    )


def quota(
    threshold: float,
    subject: str = "acme",
    start: datetime = NOON,
    window_end: datetime | None = None,
) -> Event:
    return QuotaThresholdReached(
        policy="tokens",
        subject=subject,
        threshold=threshold,
        used=int(1000 * threshold),
        limit=1000,
        seq=1,
        window_end=window_end or at(86400, datetime.now(UTC)),
        timestamp=start,
    )
