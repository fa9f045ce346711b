"""Datadog's intake for traces as a collector sees it, and the collector."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.servers import free_port

if TYPE_CHECKING:
    from tests.servers import Reaper

_TEXT, _NUMBER, _SIGNED, _MESSAGE = 9, 4, 3, 11
# The fields of Datadog's messages that the tests look at, by their numbers.
_FIELDS: dict[str, dict[str, tuple[int, int, str]]] = {
    "AgentPayload": {"tracerPayloads": (5, _MESSAGE, "TracerPayload")},
    "TracerPayload": {"chunks": (6, _MESSAGE, "TraceChunk")},
    "TraceChunk": {"spans": (3, _MESSAGE, "Span")},
    "Span": {
        "service": (1, _TEXT, ""),
        "name": (2, _TEXT, ""),
        "resource": (3, _TEXT, ""),
        "traceID": (4, _NUMBER, ""),
        "spanID": (5, _NUMBER, ""),
        "parentID": (6, _NUMBER, ""),
        "start": (7, _SIGNED, ""),
        "duration": (8, _SIGNED, ""),
        "error": (9, 5, ""),
        "meta": (10, _MESSAGE, "Meta"),
    },
    # A map is a list of these.
    "Meta": {"key": (1, _TEXT, ""), "value": (2, _TEXT, "")},
}


def _payload() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="i.proto", package="intake", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, of) in fields.items():
            message.field.add(
                name=field,
                number=number,
                type=kind,
                label=3 if of else 1,
                type_name=f".intake.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("intake.AgentPayload"))


PAYLOAD = _payload()


class Intake:
    """What came."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: set[str] = set()
        self.spans: list[Any] = []

    async def take(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers["dd-api-key"])
        payload = PAYLOAD.FromString(await request.read())
        self.spans += [
            span
            for tracer in payload.tracerPayloads
            for chunk in tracer.chunks
            for span in chunk.spans
        ]
        return web.Response(status=202)


@asynccontextmanager
async def datadog_intake() -> AsyncIterator[Intake]:
    intake = Intake()
    app = web.Application()
    app.router.add_post("/api/v0.2/traces", intake.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    intake.url = f"http://{host}:{port}"
    try:
        yield intake
    finally:
        await runner.cleanup()


@contextmanager
def rotel(intake: str, key: str, reaper: Reaper) -> Iterator[str]:
    """Run a collector that takes OTLP/HTTP and exports to Datadog's `intake`."""
    spec = find_spec("rotel")
    assert spec is not None
    assert spec.origin is not None
    directory = Path(tempfile.mkdtemp(prefix="stanchion-test-"))
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        *(str(Path(spec.origin).with_name("rotel-agent")), "start", "--exporter", "datadog"),
        *("--otlp-http-endpoint", http, "--otlp-grpc-endpoint", grpc, "--batch-timeout", "50ms"),
        *("--datadog-exporter-custom-endpoint", intake, "--datadog-exporter-api-key", key),
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    reaper.watch(process.pid, directory)
    try:
        yield f"http://{http}"
    finally:
        process.kill()
        process.wait(10)
        reaper.forget(process.pid)
        shutil.rmtree(directory)
