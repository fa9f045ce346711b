"""The JSONL file as OpenTelemetry's own collector reads it, across rotations."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import otel_collector

from stanchion.observers.sinks.jsonl import JsonlSink
from tests.observers.sinks.appender import lines
from tests.observers.sinks.otlp_receiver import receiver
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARY = Path(otel_collector.__file__).parent / "bin" / "otelcol-contrib_linux_amd64"


@contextlib.contextmanager
def collecting(directory: Path, file: Path, endpoint: str) -> Iterator[None]:
    """Run a collector that follows the file and those that it was rotated into."""
    settings = {
        "receivers": {
            "filelog": {
                "include": [str(file), f"{file}.*Z"],
                "start_at": "beginning",
                "poll_interval": "50ms",
            }
        },
        "exporters": {"otlphttp": {"endpoint": endpoint}},
        "service": {
            "pipelines": {"logs": {"receivers": ["filelog"], "exporters": ["otlphttp"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
    }
    config = directory / "collector.yaml"
    config.write_text(json.dumps(settings))
    with (directory / "collector.log").open("wb") as log:
        process = subprocess.Popen(
            [BINARY, "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def test_a_collector_that_follows_the_file_gets_every_event_once(tmp_path):
    path = tmp_path / "log" / "events.jsonl"
    sink = JsonlSink(path, max_bytes=5_000)
    sink.start()
    events = lines(100, text="two\nlines, Ü")
    async with receiver() as received:
        with collecting(tmp_path, path, received.url):
            for first in range(0, 100, 10):
                sink.handle_batch(events[first : first + 10])
                # So that the collector meets the file in every state, and not all of them at once.
                await eventually(lambda first=first: len(received.documents) >= first + 10, 10)
    sink.close()
    assert len(list(path.parent.iterdir())) > 3
    # It reads several files side by side.
    found = sorted(received.documents, key=lambda document: document["data"]["number"])
    assert found == [event.to_cloudevent() for event in events]
