"""Traces, metrics and logs over OTLP/HTTP: OpenTelemetry, and by it Datadog and New Relic."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import Context
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast
from urllib.parse import urlsplit

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import InvalidEvent, Selector, check_selector
from stanchion.observers.arguments import choice, count, delay
from stanchion.observers.containment import summary
from stanchion.observers.delivery import Undelivered
from stanchion.observers.journal import Journal
from stanchion.observers.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import timedelta

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

    from stanchion.events import Event
    from stanchion.observers.otlp.sending import Answer, Queue
    from stanchion.observers.spans import Span

_SCOPE: Final = "stanchion"
_INSTALL: Final = "OtlpSink needs OpenTelemetry's SDK and exporter: pip install 'stanchion[otlp]'"
_SLICE: Final = 20  # events taken in, in a few milliseconds, before the loop has a turn
_REMEMBERED: Final = 100_000  # events whose ids are remembered, so that none counts twice
_COLLECTIONS: Final = 16  # of metrics that may wait for a receiver


class Signal(StrEnum):
    """What is sent, and the last part of the path that it is sent to."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class OtlpSink:
    """Sends spans, metrics and logs to a receiver of OTLP over HTTP.

    A run is a trace: spans for the pipeline, its waves, the attempts at its nodes, and the calls of
    models and tools, with the times of the events. Ids follow from `run_id`, so that several
    processes can report parts of one run. Vetoes are events of the span that they met. Every event
    is a log record, its body the CloudEvent as JSON. The metrics are those of `PrometheusSink`.
    Attributes follow the GenAI conventions where these fit.

    Prompts and answers are in the logs only; leave these out, or redact the fields in the manager.

    No global provider is set or used. The standard variables `OTEL_EXPORTER_OTLP_HEADERS`,
    `OTEL_EXPORTER_OTLP_CERTIFICATE` and `OTEL_RESOURCE_ATTRIBUTES` add to the arguments. An event
    that is handed over again is not counted again, and makes spans with the same ids.
    """

    idempotent: ClassVar[bool] = True
    batch_size = 500

    def __init__(
        self,
        endpoint: str = "http://localhost:4318",
        *,
        headers: Mapping[str, str] | None = None,
        signals: Collection[Signal | str] = tuple(Signal),
        resource: Mapping[str, str | int | float | bool] | None = None,
        service: str = "stanchion",
        delta: bool = False,
        metrics_every: timedelta | float | str = 30.0,
        timeout: timedelta | float | str = 4.0,
        gzip: bool = True,
        certificate: str | Path | None = None,
        batch_delay: timedelta | float | str = 1.0,
        max_open: int = 10_000,
        max_pending: int = 10_000,
        max_values: int = 100,
        max_series: int = 1000,
        on: Selector = "*",
    ) -> None:
        """Prepare to send; nothing is sent before `start`.

        Args:
            endpoint: the receiver's base URL; `/v1/traces`, `/v1/metrics` and `/v1/logs` are added.
            headers: sent with every request, such as an API key; never shown.
            signals: which of `traces`, `metrics` and `logs` to send.
            resource: attributes of this process, such as `deployment.environment.name`.
            service: the resource attribute `service.name`.
            delta: metrics as differences, as Datadog and New Relic want them, not as totals.
            metrics_every: seconds between two sendings of metrics.
            timeout: seconds for one request, its retries included.
            gzip: compress requests.
            certificate: a file with the CA certificates that the receiver's is held against.
            batch_delay: seconds that events may wait for others.
            max_open: spans that wait for their end, and those that wait for their start or parent.
            max_pending: spans, and log records, that wait for the receiver; the oldest give way.
            max_values: the most values that a label of a metric has.
            max_series: the most combinations of labels that a metric has.
            on: the events to send.

        Raises:
            ConfigError: an argument cannot work, or OpenTelemetry's SDK is not installed.
        """
        check_selector(on)
        self.on: Selector = on
        self.batch_delay = delay("batch_delay", batch_delay)
        self._every = seconds(metrics_every, field="metrics_every")
        self._journal = Journal()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._spans = Spans(count("max_open", max_open))
        count("max_pending", max_pending)
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            from stanchion.observers.otlp import meters, records, sending
        except ImportError as error:
            raise ConfigError(_INSTALL) from error
        self._records = records
        base = _url(endpoint)
        wanted = _signals(signals)

        def settings(signal: Signal) -> sending.Settings:
            return sending.Settings(
                f"{base}/v1/{signal}",
                _headers(headers or {}),
                seconds(timeout, field="timeout"),
                gzip,
                _file(certificate),
            )

        self._resource = Resource.create({"service.name": service, **(resource or {})})
        self._scope = InstrumentationScope(_SCOPE)
        self._traces: Queue[ReadableSpan] | None = None
        self._logs: Queue[ReadableLogRecord] | None = None
        self._metrics: Queue[MetricsData] | None = None
        self._meters = meters.Meters(
            self._resource, _SCOPE, delta=delta, max_values=max_values, max_series=max_series
        )
        if Signal.TRACES in wanted:
            self._traces = sending.Queue(sending.spans(settings(Signal.TRACES)), max_pending)
        if Signal.LOGS in wanted:
            self._logs = sending.Queue(sending.logs(settings(Signal.LOGS)), max_pending)
        if Signal.METRICS in wanted:
            wire = sending.metrics(settings(Signal.METRICS))
            self._metrics = sending.Queue(wire, _COLLECTIONS, per_request=1)
        self._ticking: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        """How many records the receiver refused for good, or had to give way to newer ones."""
        return sum(queue.lost for queue in self._queues)

    # -------------------------------------------------------------------------------- the observer

    async def start(self) -> None:
        """Begin to send metrics at their interval; calling it twice is harmless."""
        if self._metrics is not None and self._ticking is None:
            loop = asyncio.get_running_loop()
            self._ticking = loop.create_task(
                self._tick(), name="stanchion otlp metrics", context=Context()
            )

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Take events in, and send what is complete.

        Raises:
            Undelivered: the receiver did not take it all; what is left is kept, and sent with the
                next events or when these are handed over again.
        """
        unwritable: list[Event] = []
        for number, event in enumerate(events, 1):
            if self._is_new(event) and not self._take(event):
                unwritable.append(event)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        queues = (self._traces, self._logs)
        answers = await asyncio.gather(*(queue.flush() for queue in queues if queue is not None))
        self._check(events, answers)
        if unwritable:
            raise Undelivered(unwritable, "they cannot be written as JSON", permanent=True)

    async def close(self) -> None:
        """End the spans that are open, send what is left, and let go of the connections."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
            self._ticking = None
        try:
            if self._traces is not None:
                self._put_spans(self._spans.close())
            self._collect()
            answers = await asyncio.gather(*(queue.flush() for queue in self._queues))
        finally:
            for queue in self._queues:
                queue.close()
            self._meters.close()
        for answer in answers:
            self._report(answer, "the rest")

    # ---------------------------------------------------------------------------------------- work

    @property
    def _queues(
        self,
    ) -> Sequence[Queue[ReadableSpan] | Queue[ReadableLogRecord] | Queue[MetricsData]]:
        queues = (self._traces, self._logs, self._metrics)
        return tuple(queue for queue in queues if queue is not None)

    def _is_new(self, event: Event) -> bool:
        if event.id in self._seen:
            return False
        self._seen[event.id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _take(self, event: Event) -> bool:
        if self._metrics is not None:
            self._meters.take(event)
        if self._traces is not None:
            self._put_spans(self._spans.take(event))
        if self._logs is not None:
            try:
                record = self._records.log_record(event, self._resource, self._scope)
            except InvalidEvent:
                return False
            self._logs.put((record,))
        return True

    def _put_spans(self, spans: Sequence[Span]) -> None:
        if self._traces is not None:
            self._traces.put(
                [self._records.span_record(span, self._resource, self._scope) for span in spans]
            )

    def _collect(self) -> None:
        if self._metrics is not None:
            collected = self._meters.collect()
            if collected is not None:
                self._metrics.put((collected,))

    async def _tick(self) -> None:
        while self._metrics is not None:
            await asyncio.sleep(self._every)
            try:
                self._collect()
                answer = await self._metrics.flush()
            except Exception as error:  # noqa: BLE001 - the next interval is another chance
                self._say("metrics", "metrics could not be sent: %s", summary(error))
            else:
                self._report(answer, "metrics")

    def _report(self, answer: Answer, what: str) -> None:
        if not answer.ok:
            self._say(what, f"{what} could not be sent: %s", answer.reason)
        elif answer.rejected:
            text = f"of {what}, %d records were refused for good: %s"
            self._say(what, text, answer.rejected, answer.reason)

    def _say(self, kind: str, text: str, *values: object) -> None:
        self._journal.say(logging.WARNING, kind, "OtlpSink", f"OtlpSink: {text}", *values)

    def _check(self, events: Sequence[Event], answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.ok:
                self._report(answer, "the events")
        # What can still be delivered comes first: the manager tries that again.
        failed = sorted((one for one in answers if not one.ok), key=lambda one: one.futile)
        for answer in failed:
            raise Undelivered(
                events, answer.reason, retry_after=answer.retry_after, permanent=answer.futile
            )


def _url(endpoint: str) -> str:
    parts = urlsplit(endpoint) if isinstance(cast("object", endpoint), str) else None
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError.of("endpoint", endpoint, "expected a URL such as http://localhost:4318")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("endpoint: expected a URL without credentials or query; use `headers`")
    return endpoint.rstrip("/")


def _signals(signals: Collection[Signal | str]) -> frozenset[Signal]:
    if isinstance(signals, str) or not signals:
        raise ConfigError.of("signals", signals, f"expected some of {', '.join(Signal)}")
    return frozenset(choice(Signal, "signals", signal) for signal in signals)


def _headers(headers: object) -> dict[str, str]:
    # What is wrong is not shown: it may be a key.
    if not isinstance(headers, Mapping):
        raise ConfigError("headers: expected names and values of headers")
    checked: dict[str, str] = {}
    for name, value in cast("Mapping[object, object]", headers).items():
        if not isinstance(name, str) or not name.isascii() or not name.isprintable():
            raise ConfigError("headers: expected names in ASCII")
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigError(f"headers: {name!r} has to be a line of text")
        checked[name] = value
    return checked


def _file(certificate: str | Path | None) -> str | None:
    if certificate is None:
        return None
    if not Path(certificate).is_file():
        raise ConfigError.of("certificate", str(certificate), "expected a file that is there")
    return str(certificate)
