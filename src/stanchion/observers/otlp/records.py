"""Spans and events as the records that OpenTelemetry's exporters take."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from stanchion.events import matches
from stanchion.observers.correlation import trace_id
from stanchion.observers.log import LEVELS

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from stanchion.events import Event
    from stanchion.observers.spans import Span

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST: Final = 2**64 - 1  # nanoseconds in protobuf: the year 2554
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SEVERITY: Final = {
    logging.ERROR: SeverityNumber.ERROR,
    logging.WARNING: SeverityNumber.WARN,
    logging.INFO: SeverityNumber.INFO,
}


def span_record(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Get a span as the exporter takes it; it has ended already, so no tracer is needed."""
    parent = None
    if span.parent_id is not None:
        parent = SpanContext(span.trace_id, span.parent_id, is_remote=False, trace_flags=_SAMPLED)
    return ReadableSpan(
        span.name,
        context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        events=[
            SpanEvent(note.name, note.attributes, nanoseconds(note.time)) for note in span.notes
        ],
        kind=SpanKind.CLIENT if span.calls_out else SpanKind.INTERNAL,
        status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
        start_time=nanoseconds(span.start),
        end_time=nanoseconds(span.end),
        instrumentation_scope=scope,
    )


def log_record(event: Event, resource: Resource, scope: InstrumentationScope) -> ReadableLogRecord:
    """Get an event as a log record whose body is the CloudEvent, as JSON.

    Raises:
        InvalidEvent: the event cannot be written as JSON.
    """
    document = event.to_cloudevent()
    severity = _SEVERITY[next(level for on, level in LEVELS.items() if matches(on, event))]
    context = INVALID_SPAN_CONTEXT
    if event.run_id is not None:
        context = SpanContext(trace_id(event.run_id), 0, is_remote=False, trace_flags=_SAMPLED)
    attributes = {
        "cloudevents.event_id": event.id,
        "cloudevents.event_source": document["source"],
        "cloudevents.event_spec_version": document["specversion"],
        "cloudevents.event_type": event.event_type,
        "cloudevents.event_subject": document.get("subject"),
    }
    record = LogRecord(
        timestamp=nanoseconds(event.timestamp),
        observed_timestamp=nanoseconds(datetime.now(UTC)),
        context=set_span_in_context(NonRecordingSpan(context)),
        severity_text=severity.name,
        severity_number=severity,
        body=json.dumps(document, separators=(",", ":")),
        attributes={name: value for name, value in attributes.items() if value is not None},
        event_name=event.event_type,
    )
    return ReadableLogRecord(record, resource, scope)


def nanoseconds(moment: datetime) -> int:
    """Get a moment as OpenTelemetry writes it; one that it cannot write as the nearest it can."""
    since = moment - _EPOCH
    exact = (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
    return min(max(exact, 0), _MOST)
