"""Where in its trace the span of an event belongs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    ToolCalled,
    ToolCompleted,
    WaveCompleted,
    WaveStarted,
)
from stanchion.observers.correlation import span_id, trace_id

if TYPE_CHECKING:
    from stanchion.events import Event


@dataclass(frozen=True, slots=True)
class Place:
    """The span's own id, its trace, its run, and what the event says that it is part of."""

    key: int
    trace: int
    run: int | None
    parent: int | None


class Places:
    """Works out places from what events carry, and from which attempt at a node was the last.

    Events of calls and vetoes name their node, not the attempt at it. Of at most `most` nodes the
    last attempt is remembered; of others it is taken to be the first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._attempts: OrderedDict[tuple[str, str], int] = OrderedDict()

    def begin(self, event: NodeStarted) -> None:
        """Take note of an attempt at a node."""
        if event.run_id is None:
            return
        node = event.run_id, event.node
        self._attempts[node] = max(event.attempt, self._attempts.pop(node, 1))
        if len(self._attempts) > self._most:
            self._attempts.popitem(last=False)

    def of(self, event: Event) -> Place | None:
        """Get where the span of an event belongs; None if its other event could not be found."""
        run = event.run_id
        call = _call(event)
        if run is None:
            if call is None:
                return None
            return Place(span_id("call", call), trace_id(f"call {call}"), None, None)
        key = _key(event, run) if call is None else span_id("call", call)
        root = span_id("run", run)
        return Place(key, trace_id(run), root, None if key == root else self._parent(event, run))

    def node(self, run: str, node: str) -> int:
        """Get the id of the last attempt at a node."""
        return span_id("node", run, node, str(self._attempts.get((run, node), 1)))

    def _parent(self, event: Event, run: str) -> int:
        match event:
            case WaveStarted() | WaveCompleted():
                return span_id("run", run)
            case NodeStarted() | NodeCompleted() | NodeFailed() | NodeSkipped():
                wave = event.wave
                return span_id("run", run) if wave is None else span_id("wave", run, str(wave))
            case _ if event.node is not None:
                return self.node(run, event.node)
            case _:
                return span_id("run", run)


def better(began: Place, ended: Place) -> Place:
    """Get the place that says more: the wave or the node may be named in one of the events only."""
    return ended if began.parent == began.run else began


def alone(event: Event) -> Place:
    """Get the place of what cannot be found again: its end is all that there is of it."""
    return Place(span_id("alone", event.id), trace_id(f"alone {event.id}"), None, None)


def _call(event: Event) -> str | None:
    match event:
        case LLMPromptSent() | ToolCalled():
            return event.id
        case LLMResponseReceived() | ToolCompleted():
            return event.call_id or event.id
        case _:
            return None


def _key(event: Event, run: str) -> int:
    match event:
        case PipelineStarted() | PipelineCompleted() | PipelineFailed():
            return span_id("run", run)
        case WaveStarted() | WaveCompleted():
            return span_id("wave", run, str(event.wave))
        case NodeStarted() | NodeCompleted() | NodeFailed():
            return span_id("node", run, event.node, str(event.attempt))
        case _:
            return span_id("moment", event.id)
