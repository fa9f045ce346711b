"""Events that begin and end something, put together to spans with their parents."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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
from stanchion.observers.attributes import ERROR_TYPE, Attributes, attributes, failure, span_name
from stanchion.observers.correlation import span_id
from stanchion.observers.places import Place, Places, alone, better

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stanchion.events import Event

_NOTES: Final = 128  # of one span, the default limit of OpenTelemetry
_INCOMPLETE: Final = "stanchion.incomplete"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_Begins: TypeAlias = PipelineStarted | WaveStarted | NodeStarted | LLMPromptSent | ToolCalled
_Ends: TypeAlias = (
    PipelineCompleted
    | PipelineFailed
    | WaveCompleted
    | NodeCompleted
    | NodeFailed
    | LLMResponseReceived
    | ToolCompleted
)
_Notes: TypeAlias = PolicyVetoed | PolicyFailed


class Incomplete(StrEnum):
    """Which of its two events a span had to do without."""

    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened during a span."""

    name: str
    time: datetime
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Span:
    """What took from `start` to `end`; `parent_id` is None for what nothing else caused.

    `calls_out` is True for a call to another service. `error` is the text of its failure.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    start: datetime
    end: datetime
    attributes: Attributes
    notes: tuple[Note, ...] = ()
    calls_out: bool = False
    error: str | None = None


@dataclass(slots=True)
class _Open:
    place: Place
    start: datetime
    name: str
    attributes: Attributes
    calls_out: bool
    notes: list[Note] = field(default_factory=list[Note])


class Spans:
    """Makes spans of events, which may be late, missing, repeated or out of order.

    Ids follow from the events, so processes that report parts of one run need not know each other.
    A span whose start was not seen begins its duration before its end. One whose parent is not
    known here although its run is waits for the run's end, and is then part of the run itself. At
    most `max_open` spans are kept open; the oldest beyond them end with the last event that was
    seen, and say so in `stanchion.incomplete`. Not safe to be called from several threads at once.
    """

    def __init__(self, max_open: int = 10_000) -> None:
        self._max = max_open
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._unbegun: OrderedDict[int, tuple[Place, Span]] = OrderedDict()
        self._held: OrderedDict[int, list[Span]] = OrderedDict()
        self._held_count = 0
        # The latest that were heard of, whether they have ended, also when they are not open.
        self._known: OrderedDict[int, bool] = OrderedDict()
        self._places = Places(max_open)
        self._latest = _EPOCH

    @property
    def pending(self) -> int:
        """How many spans are not complete yet."""
        return len(self._open) + len(self._unbegun) + self._held_count

    def take(self, event: Event) -> list[Span]:
        """Get the spans that are complete with this event; mostly none or one."""
        self._latest = max(self._latest, event.timestamp)
        match event:
            case PipelineStarted() | WaveStarted() | NodeStarted() | LLMPromptSent() | ToolCalled():
                return list(self._begin(event))
            case (
                PipelineCompleted()
                | PipelineFailed()
                | WaveCompleted()
                | NodeCompleted()
                | NodeFailed()
                | LLMResponseReceived()
                | ToolCompleted()
            ):
                return list(self._end(event))
            case NodeSkipped() if event.run_id is not None:
                return list(self._moment(event))
            case PolicyVetoed() | PolicyFailed() if event.run_id is not None:
                return list(self._note(event, event.run_id))
            case _:
                return []

    def close(self) -> list[Span]:
        """Get what is not complete, ended at the last event that was seen."""
        left: list[Span] = []
        # The innermost began last; whoever waits for a run to end is there when it does.
        while self._open:
            left.extend(self._cut(self._open.popitem()[1]))
        while self._unbegun:
            left.extend(self._finish(*self._unbegun.popitem()[1]))
        for run in list(self._held):
            left.extend(self._release(run))
        return left

    # ------------------------------------------------------------------------- beginning and ending

    def _begin(self, event: _Begins) -> Iterator[Span]:
        place = self._places.of(event)
        if place is None or place.key in self._open or self._known.get(place.key):
            return
        self._know(place.key, ended=False)
        if isinstance(event, NodeStarted):
            self._places.begin(event)
        if place.key in self._unbegun:
            its_place, span = self._unbegun.pop(place.key)
            said = {**attributes(event), **span.attributes}
            del said[_INCOMPLETE]
            start = min(event.timestamp, span.end)
            span = replace(span, start=start, attributes=said)
            yield from self._finish(better(place, its_place), span)
            return
        calls_out = isinstance(event, LLMPromptSent)
        self._open[place.key] = _Open(
            place, event.timestamp, span_name(event), attributes(event), calls_out
        )
        if len(self._open) > self._max:
            yield from self._cut(self._open.popitem(last=False)[1])

    def _end(self, event: _Ends) -> Iterator[Span]:
        place = self._places.of(event)
        if place is None:
            place = alone(event)
        if self._known.get(place.key):
            return
        span = _of_end(event, place)
        began = self._open.pop(place.key, None)
        if began is not None:
            place = better(began.place, place)
            span = replace(
                span,
                start=began.start,
                # The clocks of two processes may differ.
                end=max(began.start, span.end),
                attributes={**began.attributes, **span.attributes},
                notes=tuple(began.notes),
            )
        elif event.duration is None:
            said = {**span.attributes, _INCOMPLETE: Incomplete.START}
            self._unbegun[place.key] = place, replace(span, attributes=said)
            if len(self._unbegun) > self._max:
                yield from self._finish(*self._unbegun.popitem(last=False)[1])
            return
        yield from self._finish(place, span)

    def _moment(self, event: NodeSkipped | _Notes) -> Iterator[Span]:
        place = self._places.of(event)
        if place is not None and not self._known.get(place.key):
            yield from self._finish(place, _span(event, place, event.timestamp))

    def _note(self, event: _Notes, run: str) -> Iterator[Span]:
        nodes = () if event.node is None else (self._places.node(run, event.node),)
        for key in (span_id("call", event.asked_id), *nodes, span_id("run", run)):
            found = self._open.get(key)
            if found is not None:
                note = Note(event.event_type, event.timestamp, attributes(event))
                found.notes.append(note)
                # The newest tell more about how it ended.
                del found.notes[:-_NOTES]
                return
        yield from self._moment(event)

    # ------------------------------------------------------------------------------------- parents

    def _finish(self, place: Place, span: Span) -> Iterator[Span]:
        self._know(place.key, ended=True)
        span = replace(span, trace_id=place.trace, parent_id=place.parent)
        run = place.run
        if place.parent is None or run is None or self._heard_of(place.parent):
            yield span
        elif not self._heard_of(run):
            # Another process reports the run, and what this is part of.
            yield span
        elif run not in self._open:
            yield replace(span, parent_id=run)
        else:
            self._held.setdefault(run, []).append(span)
            self._held_count += 1
            if self._held_count > self._max:
                yield from self._release(next(iter(self._held)))
        yield from self._release(place.key)

    def _release(self, run: int) -> list[Span]:
        spans = self._held.pop(run, [])
        self._held_count -= len(spans)
        return [
            span
            if span.parent_id is None or self._heard_of(span.parent_id)
            else replace(span, parent_id=run)
            for span in spans
        ]

    def _heard_of(self, key: int) -> bool:
        return key in self._open or key in self._known

    # -------------------------------------------------------------------------------------- memory

    def _know(self, key: int, *, ended: bool) -> None:
        self._known[key] = ended
        self._known.move_to_end(key)
        if len(self._known) > 4 * self._max:
            self._known.popitem(last=False)

    def _cut(self, began: _Open) -> Iterator[Span]:
        place = began.place
        yield from self._finish(
            place,
            Span(
                began.name,
                place.trace,
                place.key,
                place.parent,
                began.start,
                max(began.start, self._latest),
                {**began.attributes, _INCOMPLETE: Incomplete.END},
                tuple(began.notes),
                began.calls_out,
            ),
        )


def _span(event: Event, place: Place, start: datetime) -> Span:
    said = attributes(event)
    error = failure(event)
    if error is not None:
        said[ERROR_TYPE] = error[0]
    return Span(
        span_name(event),
        place.trace,
        place.key,
        place.parent,
        start,
        event.timestamp,
        said,
        calls_out=isinstance(event, LLMResponseReceived),
        error=None if error is None else error[1],
    )


def _of_end(event: _Ends, place: Place) -> Span:
    since_epoch = max(0.0, (event.timestamp - _EPOCH).total_seconds())
    before = timedelta(seconds=min(event.duration or 0.0, since_epoch))
    return _span(event, place, event.timestamp - before)
