"""Sending records over OTLP/HTTP, and keeping those that were not taken."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

R = TypeVar("R")
E = TypeVar("E")

_PER_REQUEST: Final = 512  # records
# To send the same again cannot help. With 401, 403 or 404 it can, once somebody has seen to it.
_FUTILE: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request; `rejected` records of it were refused for good, the others taken."""

    ok: bool
    reason: str = ""
    status: int | None = None
    retry_after: float | None = None
    rejected: int = 0

    @property
    def futile(self) -> bool:
        """Whether to send the same again cannot help."""
        return self.status in _FUTILE

    @property
    def too_large(self) -> bool:
        """Whether fewer records at once may be taken."""
        return self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a receiver; `timeout` is in seconds and for one request with its retries."""

    endpoint: str
    headers: Mapping[str, str]
    timeout: float
    gzip: bool
    certificate: str | None


class _Session(requests.Session):
    """A session whose certificate counts also where the environment names another."""

    def merge_environment_settings(
        self,
        url: str,
        proxies: Any,
        stream: Any,
        verify: Any,
        cert: Any,
    ) -> Any:
        given = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, given, cert)


class _MetricExporter(Protocol):
    """What is used of the exporter, whose own types are incomplete."""

    def export(self, metrics_data: MetricsData) -> MetricExportResult: ...

    def shutdown(self) -> None: ...


class Wire(Generic[R]):
    """One exporter of OpenTelemetry's, and what its receiver last answered."""

    def __init__(
        self,
        session: requests.Session,
        export: Callable[[Sequence[R]], bool],
        close: Callable[[], None],
        rejected: Callable[[bytes], tuple[int, str]],
    ) -> None:
        self._export = export
        self._rejected = rejected
        self._last: requests.Response | None = None
        self.close = close
        # The exporters say no more than yes or no.
        session.hooks["response"].append(self._note)

    def send(self, records: Sequence[R]) -> Answer:
        """Send records, blocking, and get what came of it."""
        self._last = None
        taken = self._export(records)
        if self._last is None:
            return Answer(taken, "" if taken else "no answer")
        if not taken:
            return Answer(
                ok=False,
                reason=f"status {self._last.status_code}",
                status=self._last.status_code,
                retry_after=_seconds(self._last.headers.get("Retry-After")),
            )
        try:
            rejected, reason = self._rejected(self._last.content)
        except DecodeError:
            # A receiver may answer in any form that it likes; it did take the records.
            rejected, reason = 0, ""
        return Answer(ok=True, reason=reason, status=self._last.status_code, rejected=rejected)

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        self._last = response


class Queue(Generic[R]):
    """Records on their way to a receiver; the oldest give way when there are too many."""

    def __init__(self, wire: Wire[R], most: int, per_request: int = _PER_REQUEST) -> None:
        self._wire = wire
        self._most = most
        self._per_request = per_request
        self._waiting: deque[R] = deque()
        self._sending: asyncio.Task[Answer] | None = None
        self.lost = 0

    def put(self, records: Sequence[R]) -> None:
        """Take records; does not send yet."""
        self._waiting.extend(records)
        while len(self._waiting) > self._most:
            self._waiting.popleft()
            self.lost += 1

    async def flush(self) -> Answer:
        """Send all that waits; get the answer to what was not taken, or that all was.

        Who is cancelled while waiting does not interrupt the request; the next call waits for it.
        """
        while self._sending is not None and not self._sending.done():
            await asyncio.wait((self._sending,))
        self._sending = asyncio.create_task(self._send())
        return await asyncio.shield(self._sending)

    def close(self) -> None:
        """Give up what is under way."""
        if self._sending is not None:
            self._sending.cancel()
        self._wire.close()

    async def _send(self) -> Answer:
        answer = Answer(ok=True)
        size = self._per_request
        while self._waiting:
            part = tuple(islice(self._waiting, size))
            given = await asyncio.to_thread(self._wire.send, part)
            if given.too_large and len(part) > 1:
                size = len(part) // 2
                continue
            if not given.ok and not given.futile:
                return given
            # The oldest may have given way in the meantime.
            gone = set(map(id, part))
            while self._waiting and id(self._waiting[0]) in gone:
                self._waiting.popleft()
            self.lost += given.rejected if given.ok else len(part)
            if given.rejected or not given.ok:
                answer = given
        return answer


def spans(settings: Settings) -> Wire[ReadableSpan]:
    """Get the wire for spans."""

    def rejected(content: bytes) -> tuple[int, str]:
        part = ExportTraceServiceResponse.FromString(content).partial_success
        return part.rejected_spans, part.error_message

    session, exporter = _exporter(OTLPSpanExporter, settings)
    return Wire(session, lambda all_: exporter.export(all_).value == 0, exporter.shutdown, rejected)


def logs(settings: Settings) -> Wire[ReadableLogRecord]:
    """Get the wire for log records."""

    def rejected(content: bytes) -> tuple[int, str]:
        part = ExportLogsServiceResponse.FromString(content).partial_success
        return part.rejected_log_records, part.error_message

    session, exporter = _exporter(OTLPLogExporter, settings)
    return Wire(session, lambda all_: exporter.export(all_).value == 0, exporter.shutdown, rejected)


def metrics(settings: Settings) -> Wire[MetricsData]:
    """Get the wire for collected metrics; of those, a request holds one collection."""

    def rejected(content: bytes) -> tuple[int, str]:
        part = ExportMetricsServiceResponse.FromString(content).partial_success
        return part.rejected_data_points, part.error_message

    session, made = _exporter(OTLPMetricExporter, settings)
    exporter = cast("_MetricExporter", made)

    def export(collected: Sequence[MetricsData]) -> bool:
        return all(exporter.export(one).value == 0 for one in collected)

    return Wire(session, export, exporter.shutdown, rejected)


def _exporter(make: Callable[..., E], settings: Settings) -> tuple[_Session, E]:
    session = _Session()
    exporter = make(
        settings.endpoint,
        settings.certificate,
        headers=dict(settings.headers),
        timeout=settings.timeout,
        compression=Compression.Gzip if settings.gzip else Compression.NoCompression,
        session=session,
    )
    return session, exporter


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        # The other form, a date, would need clocks that agree.
        return None
