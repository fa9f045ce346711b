"""What spans are called and what they say, in the words of OpenTelemetry's conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from stanchion.events import (
    LLMPromptSent,
    LLMResponseReceived,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    NodeStarted,
    PipelineCompleted,
    PipelineFailed,
    PipelineStarted,
    PolicyFailed,
    PolicyVetoed,
    ToolCalled,
    ToolCompleted,
    WaveCompleted,
    WaveStarted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.events import Event

Value: TypeAlias = str | int | float | bool | tuple[str, ...]
Attributes: TypeAlias = dict[str, Value]

ERROR_TYPE: Final = "error.type"
_LONGEST: Final = 4096  # characters
_MOST: Final = 2**63 - 1  # of a whole number in protobuf
_UNKNOWN_ERROR: Final = "_OTHER"  # the conventions' word for one without a type


def span_name(event: Event) -> str:
    """Get the name of the span that an event begins or ends."""
    match event:
        case PipelineStarted() | PipelineCompleted() | PipelineFailed():
            name = f"pipeline {event.pipeline}"
        case WaveStarted() | WaveCompleted():
            name = f"wave {event.wave}"
        case NodeStarted() | NodeCompleted() | NodeFailed() | NodeSkipped():
            name = f"node {event.node}"
        case LLMPromptSent() | LLMResponseReceived():
            name = f"chat {event.model}"
        case ToolCalled() | ToolCompleted():
            name = f"execute_tool {event.tool}"
        case PolicyVetoed():
            name = f"veto {event.policy}"
        case _:
            name = event.event_type
    return name[:_LONGEST]


def attributes(event: Event) -> Attributes:
    """Get what an event says of its span; what was said to models and tools is not in it."""
    return _given(
        {
            "stanchion.pipeline": event.pipeline,
            "stanchion.run_id": event.run_id,
            "stanchion.node": event.node,
            "stanchion.tenant": event.tenant,
            **_own(event),
        }
    )


def failure(event: Event) -> tuple[str, str] | None:
    """Get the error's type and its text, where an event tells of one."""
    match event:
        case PipelineFailed() | NodeFailed():
            return event.error_type or _UNKNOWN_ERROR, event.error[:_LONGEST]
        case LLMResponseReceived() | ToolCompleted() if event.error or event.error_type:
            return event.error_type or _UNKNOWN_ERROR, (event.error or "")[:_LONGEST]
        case _:
            return None


def _own(event: Event) -> Mapping[str, Value | None]:
    own: Mapping[str, Value | None] = {}
    match event:
        case NodeStarted() | NodeCompleted() | NodeFailed():
            own = {"stanchion.attempt": event.attempt}
        case NodeSkipped():
            own = {"stanchion.skipped": event.reason, "stanchion.policy": event.policy}
        case PipelineCompleted():
            own = {
                "stanchion.nodes.completed": event.nodes_completed,
                "stanchion.nodes.failed": event.nodes_failed,
                "stanchion.nodes.skipped": event.nodes_skipped,
            }
        case PolicyVetoed():
            own = {
                "stanchion.policy": event.policy,
                "stanchion.veto.reason": event.reason,
                "stanchion.veto.signal": str(event.signal),
                "stanchion.veto.enforced": event.enforced,
                "stanchion.veto.retry_after": event.retry_after,
                "stanchion.asked.type": event.asked_type,
            }
        case PolicyFailed():
            own = {"stanchion.policy": event.policy, ERROR_TYPE: event.error_type}
        case LLMPromptSent() | LLMResponseReceived():
            own = _of_model(event)
        case ToolCalled() | ToolCompleted():
            own = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": event.tool,
                "stanchion.attempt": event.attempt if isinstance(event, ToolCalled) else None,
            }
        case _:
            pass
    return own


def _of_model(event: LLMPromptSent | LLMResponseReceived) -> Mapping[str, Value | None]:
    said: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": event.provider,
        "gen_ai.request.model": event.model,
    }
    if isinstance(event, LLMPromptSent):
        return {
            **said,
            "gen_ai.request.max_tokens": event.max_tokens,
            "stanchion.attempt": event.attempt,
        }
    return {
        **said,
        "gen_ai.usage.input_tokens": event.prompt_tokens,
        "gen_ai.usage.output_tokens": event.completion_tokens,
        "gen_ai.response.finish_reasons": event.finish_reason and (event.finish_reason,),
        "http.response.status_code": event.status,
        "stanchion.tokens": event.tokens,
        "stanchion.dollars": event.dollars,
    }


def _given(said: Mapping[str, Value | None]) -> Attributes:
    return {
        name: _fitting(value) for name, value in said.items() if value is not None and value != ""
    }


def _fitting(value: Value) -> Value:
    match value:
        case str():
            return value[:_LONGEST]
        case int():
            return min(value, _MOST)
        case _:
            return value
