"""A receiver of OTLP over HTTP that decompresses, checks and keeps what it is sent."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

KINDS = {
    "traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}


@dataclass(frozen=True)
class Reply:
    """How to answer one request instead of taking it."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    kind: str
    headers: Mapping[str, str]
    message: Any
    size: int


class Receiver:
    """What came, and how to answer what comes next."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Request] = []
        self.refused: list[Request] = []
        self.replies: dict[str, deque[Reply]] = {kind: deque() for kind in KINDS}
        self.rejecting = 0
        self.largest: int | None = None

    async def take(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            # aiohttp decompresses by itself.
            assert not body.startswith(b"\x1f\x8b")
        asked, answered = KINDS[kind]
        message = asked.FromString(body)
        taken = Request(kind, request.headers, message, len(body))
        if self.replies[kind]:
            reply = self.replies[kind].popleft()
            self.refused.append(taken)
            return web.Response(status=reply.status, headers=reply.headers)
        if self.largest is not None and len(body) > self.largest:
            self.refused.append(taken)
            return web.Response(status=413)
        self.requests.append(taken)
        answer = answered()
        if kind == "traces" and self.rejecting:
            answer.partial_success.rejected_spans = self.rejecting
            answer.partial_success.error_message = "no such thing"
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")

    def of(self, kind: str) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.of("traces")
            for resource in request.message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def span(self, name: str) -> Span:
        (found,) = (span for span in self.spans if span.name == name)
        return found

    @property
    def logs(self) -> list[LogRecord]:
        return [
            record
            for request in self.of("logs")
            for resource in request.message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(record.body.string_value) for record in self.logs]

    @property
    def metrics(self) -> list[Metric]:
        return [
            metric
            for request in self.of("metrics")
            for resource in request.message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/{kind}", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    try:
        yield made
    finally:
        await runner.cleanup()


def values(attributes: list[KeyValue] | Any) -> dict[str, Any]:
    """Get attributes as a dict."""
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
