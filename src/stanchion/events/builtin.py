"""The built-in events: what an orchestrator reports, and what the control tier says of itself."""

from typing import Annotated

from pydantic import Field

from stanchion.decisions import CircuitState, Signal, Verdict
from stanchion.events import cloudevents
from stanchion.events.base import Event
from stanchion.events.fields import JsonObject, JsonValue, UtcTime, no_members

Count = Annotated[int, Field(ge=0)]
Attempt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class PipelineStarted(Event, type="pipeline:started", defer_build=True):
    """A run of a pipeline begins; `waves` and `nodes` are how many it is planned to have."""

    pipeline: str
    waves: Count | None = None
    nodes: Count | None = None


class PipelineCompleted(Event, type="pipeline:completed", defer_build=True):
    """A run came to its end after `duration` seconds; how many nodes ended which way."""

    pipeline: str
    duration: Seconds
    nodes_completed: Count | None = None
    nodes_failed: Count | None = None
    nodes_skipped: Count | None = None


class PipelineFailed(Event, type="pipeline:failed", defer_build=True):
    """A run was given up after `duration` seconds; `node` is the node whose failure ended it."""

    pipeline: str
    error: str
    error_type: str | None = None
    duration: Seconds | None = None


class WaveStarted(Event, type="wave:started", defer_build=True):
    """A wave, a set of nodes that run side by side, begins; waves count from 0."""

    wave: Count
    nodes: tuple[str, ...] = ()


class WaveCompleted(Event, type="wave:completed", defer_build=True):
    """Every node of a wave has ended, after `duration` seconds."""

    wave: Count
    duration: Seconds
    nodes: tuple[str, ...] = ()


class NodeStarted(Event, type="node:started", defer_build=True):
    """A node is about to run; `attempt` counts from 1, `dependencies` are names of nodes."""

    node: str
    wave: Count | None = None
    attempt: Attempt = 1
    dependencies: tuple[str, ...] = ()


class NodeCompleted(Event, type="node:completed", defer_build=True):
    """A node ended well after `duration` seconds; `result` is a JSON value, where it is told."""

    node: str
    duration: Seconds
    wave: Count | None = None
    attempt: Attempt = 1
    result: JsonValue = None


class NodeFailed(Event, type="node:failed", defer_build=True):
    """An attempt of a node failed after `duration` seconds; `will_retry`: another follows."""

    node: str
    error: str
    error_type: str | None = None
    duration: Seconds | None = None
    wave: Count | None = None
    attempt: Attempt = 1
    will_retry: bool = False


class NodeSkipped(Event, type="node:skipped", defer_build=True):
    """A node was passed over; `policy` names the policy that advised it, if one did."""

    node: str
    reason: str
    policy: str | None = None
    wave: Count | None = None


class LLMPromptSent(Event, type="llm:prompt", defer_build=True):
    """A prompt is about to go to a model.

    `tokens` is the estimate for the whole call, prompt and answer, and what a quota or a rate
    limit reserves with `cost="tokens"`; `prompt_tokens` is the prompt's part of it, `max_tokens`
    the most that the answer may have, `dollars` the estimated price.
    """

    model: str
    provider: str | None = None
    tokens: Count = 1
    prompt_tokens: Count | None = None
    max_tokens: Count | None = None
    dollars: Amount | None = None
    attempt: Attempt = 1
    prompt: str | None = None


class LLMResponseReceived(Event, type="llm:response", defer_build=True):
    """A model answered or failed after `duration` seconds; the counts are the provider's own.

    `call_id` is the `id` of the `LLMPromptSent` that this answers. On a failure `error` says why
    and `status` is the HTTP status, where there is one.
    """

    model: str
    duration: Seconds
    provider: str | None = None
    call_id: str | None = None
    tokens: Count = 0
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    dollars: Amount | None = None
    finish_reason: str | None = None
    status: Count | None = None
    error: str | None = None
    error_type: str | None = None
    response: str | None = None


class ToolCalled(Event, type="tool:called", defer_build=True):
    """A tool is about to be called with JSON `arguments`."""

    tool: str
    arguments: JsonObject = Field(default_factory=no_members)
    attempt: Attempt = 1


class ToolCompleted(Event, type="tool:completed", defer_build=True):
    """A tool returned, or failed with `error`, after `duration` seconds.

    `call_id` is the `id` of the `ToolCalled` that this answers.
    """

    tool: str
    duration: Seconds
    call_id: str | None = None
    result: JsonValue = None
    error: str | None = None
    error_type: str | None = None


class ControlEvent(Event):
    """What the control tier says of itself; select this class to hear of every policy."""

    policy: str

    def _subject(self) -> str | None:
        # Not the policy's own subject: that may name a tenant, and attributes are often logged.
        return cloudevents.path("policies", self.policy)


class PolicyVetoed(ControlEvent, type="policy:vetoed", defer_build=True):
    """A policy refused an event, whose type and id are `asked_type` and `asked_id`.

    `signal` is what the veto advises, `retry_after` is in seconds, and None where waiting will not
    help. `enforced` is False for a veto in shadow mode, which was not followed.
    """

    reason: str
    asked_type: str
    asked_id: str
    signal: Signal = Signal.FAIL
    retry_after: Seconds | None = None
    enforced: bool = True
    verdicts: tuple[Verdict, ...] = ()


class PolicyFailed(ControlEvent, type="policy:failed", defer_build=True):
    """A policy could not be asked about the event whose type and id are given."""

    error: str
    asked_type: str
    asked_id: str
    error_type: str | None = None


class CircuitChanged(ControlEvent):
    """A circuit breaker changed its state for one subject; select this class for all three.

    `generation` rises with every round, `seq` with every message about this key, so that a gap
    tells of a lost one. `open_until` is when probes begin, where that is known.
    """

    subject: str
    previous: CircuitState
    state: CircuitState
    generation: Count
    seq: Count
    open_until: UtcTime | None = None
    reason: str = ""


class CircuitOpened(CircuitChanged, type="circuit:opened", defer_build=True):
    """A circuit breaker refuses calls from now on."""


class CircuitHalfOpened(CircuitChanged, type="circuit:halfopened", defer_build=True):
    """A circuit breaker lets a few probes through."""


class CircuitClosed(CircuitChanged, type="circuit:closed", defer_build=True):
    """A circuit breaker lets calls through again."""


class QuotaThresholdReached(ControlEvent, type="quota:threshold", defer_build=True):
    """A quota's use crossed `threshold`, a fraction of `limit`, in the window up to `window_end`.

    `seq` rises with every message about this key.
    """

    subject: str
    threshold: Amount
    used: Count
    limit: Count
    seq: Count
    window_end: UtcTime


class StateLost(Event, type="store:state_lost", defer_build=True):
    """All shared state of a namespace, or of one of its shards, turned out to have been lost.

    The server had come back empty, was flushed, or an empty replica took its place; from then on
    limits begin by their `cold_start`. `tag` is the hash tag of the keys that are gone: the
    namespace, or one shard of it. `epoch` names what has begun since, and `previous` what was
    before. `lost_at` is when it was noticed, by the server's clock. Every process that was there
    before tells of it, with the same id.
    """

    namespace: str
    tag: str
    epoch: str
    previous: str
    lost_at: UtcTime


class PolicyChanged(ControlEvent, type="policy:changed", defer_build=True):
    """A policy was changed at run time; `change` says how, such as "registered" or "forced"."""

    change: str
