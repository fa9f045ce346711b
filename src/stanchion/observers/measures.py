"""What can be counted and timed in the built-in events: one list for every metrics system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import singledispatch
from typing import TYPE_CHECKING, Final

from stanchion.decisions import CircuitState
from stanchion.events import (
    CircuitChanged,
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """How the samples of a measure add up."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Unit(StrEnum):
    """What a measure counts in, in the codes of UCUM that OpenTelemetry uses."""

    SECONDS = "s"
    TOKENS = "{token}"
    DOLLARS = "{dollar}"
    ONE = "1"


class Ending(StrEnum):
    """How a run, a node or a call came to its end."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    SKIPPED = "skipped"


class TokenType(StrEnum):
    """Whose tokens; `other` are those that a provider counts in the total only."""

    INPUT = "input"
    OUTPUT = "output"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric: its dotted name, and the names of its labels in their order."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    unit: Unit = Unit.ONE


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a measure; a label that does not apply is empty."""

    measure: Measure
    values: tuple[str, ...]
    amount: float = 1.0


def _counter(name: str, text: str, *labels: str, unit: Unit = Unit.ONE) -> Measure:
    return Measure(name, Kind.COUNTER, text, labels, unit)


def _duration(name: str, text: str, *labels: str) -> Measure:
    return Measure(name, Kind.HISTOGRAM, text, labels, Unit.SECONDS)


_MOST: Final = 2**53  # a whole number that is larger is no float, and nobody's count

EVENTS: Final = _counter("events", "Events, by type.", "type")
VETOES: Final = _counter("vetoes", "Vetoes.", "policy", "reason", "signal", "mode")
POLICY_FAILURES: Final = _counter(
    "policy.failures", "Policies that could not be asked.", "policy", "error_type"
)
POLICY_CHANGES: Final = _counter(
    "policy.changes", "Changes of policies at run time.", "policy", "change"
)
TRANSITIONS: Final = _counter(
    "circuit.transitions", "Changes of state of circuit breakers.", "policy", "previous", "state"
)
THRESHOLDS: Final = _counter(
    "quota.thresholds", "Thresholds of quotas that were reached.", "policy", "threshold"
)
RUNS_STARTED: Final = _counter("runs.started", "Runs of pipelines that began.", "pipeline")
RUNS: Final = _counter("runs", "Runs of pipelines that ended.", "pipeline", "outcome")
RUN_DURATION: Final = _duration("run.duration", "How long runs took.", "pipeline", "outcome")
WAVE_DURATION: Final = _duration("wave.duration", "How long waves of nodes took.", "pipeline")
NODES_STARTED: Final = _counter("nodes.started", "Attempts at nodes.", "pipeline", "node")
NODES: Final = _counter("nodes", "Attempts at nodes that ended.", "pipeline", "node", "outcome")
NODE_DURATION: Final = _duration(
    "node.duration", "How long attempts at nodes took.", "pipeline", "node", "outcome"
)
LLM_PROMPTS: Final = _counter("llm.prompts", "Prompts sent to models.", "provider", "model")
LLM_CALLS: Final = _counter(
    "llm.calls", "Calls of models that ended.", "provider", "model", "outcome"
)
LLM_DURATION: Final = _duration(
    "llm.call.duration", "How long calls of models took.", "provider", "model", "outcome"
)
LLM_TOKENS: Final = _counter(
    "llm.tokens", "Tokens used.", "provider", "model", "token_type", unit=Unit.TOKENS
)
LLM_DOLLARS: Final = _counter(
    "llm.cost", "What calls of models cost.", "provider", "model", unit=Unit.DOLLARS
)
TOOLS_STARTED: Final = _counter("tool.calls.started", "Calls of tools that began.", "tool")
TOOL_CALLS: Final = _counter("tool.calls", "Calls of tools that ended.", "tool", "outcome")
TOOL_DURATION: Final = _duration(
    "tool.call.duration", "How long calls of tools took.", "tool", "outcome"
)

MEASURES: Final = (
    *(EVENTS, VETOES, POLICY_FAILURES, POLICY_CHANGES, TRANSITIONS, THRESHOLDS),
    *(RUNS_STARTED, RUNS, RUN_DURATION, WAVE_DURATION, NODES_STARTED, NODES, NODE_DURATION),
    *(LLM_PROMPTS, LLM_CALLS, LLM_DURATION, LLM_TOKENS, LLM_DOLLARS),
    *(TOOLS_STARTED, TOOL_CALLS, TOOL_DURATION),
)

CIRCUIT_STATE: Final = "circuit.state"
CIRCUIT_STATE_HELP: Final = (
    "State of a circuit: -1 disabled, 0 closed, 1 half open, 2 open, 3 forced open."
)
SEVERITY: Final[Mapping[CircuitState, int]] = {
    CircuitState.DISABLED: -1,
    CircuitState.CLOSED: 0,
    CircuitState.HALF_OPEN: 1,
    CircuitState.OPEN: 2,
    CircuitState.FORCED_OPEN: 3,
}

# In seconds: a tool that answers at once, a model that thinks, a run that takes an hour.
BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


def samples(event: Event) -> tuple[Sample, ...]:
    """Get what an event adds to the measures; of a type that is not built in, its count only."""
    return (Sample(EVENTS, (event.event_type,)), *_of(event))


@singledispatch
def _of(_event: Event) -> Iterable[Sample]:
    return ()


@_of.register
def _vetoed(event: PolicyVetoed) -> Iterable[Sample]:
    mode = "enforce" if event.enforced else "shadow"
    yield Sample(VETOES, (event.policy, event.reason, event.signal, mode))


@_of.register
def _policy_failed(event: PolicyFailed) -> Iterable[Sample]:
    yield Sample(POLICY_FAILURES, (event.policy, event.error_type or ""))


@_of.register
def _policy_changed(event: PolicyChanged) -> Iterable[Sample]:
    yield Sample(POLICY_CHANGES, (event.policy, event.change))


@_of.register
def _circuit(event: CircuitChanged) -> Iterable[Sample]:
    yield Sample(TRANSITIONS, (event.policy, event.previous, event.state))


@_of.register
def _threshold(event: QuotaThresholdReached) -> Iterable[Sample]:
    yield Sample(THRESHOLDS, (event.policy, f"{event.threshold:g}"))


@_of.register
def _run_started(event: PipelineStarted) -> Iterable[Sample]:
    yield Sample(RUNS_STARTED, (event.pipeline,))


@_of.register(PipelineCompleted)
@_of.register(PipelineFailed)
def _run_ended(event: PipelineCompleted | PipelineFailed) -> Iterable[Sample]:
    ending = Ending.FAILED if isinstance(event, PipelineFailed) else Ending.COMPLETED
    yield Sample(RUNS, (event.pipeline, ending))
    if event.duration is not None:
        yield Sample(RUN_DURATION, (event.pipeline, ending), event.duration)


@_of.register
def _wave_completed(event: WaveCompleted) -> Iterable[Sample]:
    yield Sample(WAVE_DURATION, (event.pipeline or "",), event.duration)


@_of.register
def _node_started(event: NodeStarted) -> Iterable[Sample]:
    yield Sample(NODES_STARTED, (event.pipeline or "", event.node))


@_of.register(NodeCompleted)
@_of.register(NodeFailed)
def _node_ended(event: NodeCompleted | NodeFailed) -> Iterable[Sample]:
    ending = Ending.COMPLETED
    if isinstance(event, NodeFailed):
        ending = Ending.RETRIED if event.will_retry else Ending.FAILED
    values = (event.pipeline or "", event.node, ending)
    yield Sample(NODES, values)
    if event.duration is not None:
        yield Sample(NODE_DURATION, values, event.duration)


@_of.register
def _node_skipped(event: NodeSkipped) -> Iterable[Sample]:
    yield Sample(NODES, (event.pipeline or "", event.node, Ending.SKIPPED))


@_of.register
def _prompt(event: LLMPromptSent) -> Iterable[Sample]:
    yield Sample(LLM_PROMPTS, (event.provider or "", event.model))


@_of.register
def _response(event: LLMResponseReceived) -> Iterable[Sample]:
    whose = (event.provider or "", event.model)
    ending = _ending(event)
    yield Sample(LLM_CALLS, (*whose, ending))
    yield Sample(LLM_DURATION, (*whose, ending), event.duration)
    asked, answered = event.prompt_tokens or 0, event.completion_tokens or 0
    parts = {
        TokenType.INPUT: asked,
        TokenType.OUTPUT: answered,
        TokenType.OTHER: max(0, event.tokens - asked - answered),
    }
    for part, tokens in parts.items():
        if tokens:
            yield Sample(LLM_TOKENS, (*whose, part), float(min(tokens, _MOST)))
    if event.dollars:
        yield Sample(LLM_DOLLARS, whose, event.dollars)


@_of.register
def _tool_called(event: ToolCalled) -> Iterable[Sample]:
    yield Sample(TOOLS_STARTED, (event.tool,))


@_of.register
def _tool_completed(event: ToolCompleted) -> Iterable[Sample]:
    values = (event.tool, _ending(event))
    yield Sample(TOOL_CALLS, values)
    yield Sample(TOOL_DURATION, values, event.duration)


def _ending(event: LLMResponseReceived | ToolCompleted) -> Ending:
    failed = event.error is not None or event.error_type is not None
    return Ending.FAILED if failed else Ending.COMPLETED
