"""A broker that speaks Pulsar's protocol and keeps what it stores over a restart."""

from __future__ import annotations

import asyncio
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulsar
import pulsar.asyncio
import pulsar_lite

from tests.observers.sinks.daemons import Daemon

if TYPE_CHECKING:
    from collections.abc import Sequence


class PulsarLite(Daemon):
    """pulsar-lite, a broker in Rust; started here, since its own launcher picks its port."""

    @property
    def url(self) -> str:
        return f"pulsar://{self.host}:{self.port}"

    def command(self) -> Sequence[str | Path]:
        program = Path(str(files(pulsar_lite))) / "bin" / "pulsar-lite"
        address = f"{self.host}:{self.port}"
        return [program, "--addr", address, "--db-path", "db", "--log-level", "warn"]


def client(url: str) -> pulsar.asyncio.Client:
    """Make a client that the test must close."""
    quiet = pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull)
    return pulsar.asyncio.Client(url, operation_timeout_seconds=5, logger=quiet)


async def messages(url: str, topic: str, number: int) -> list[pulsar.Message]:
    """Get that many messages of a topic from its beginning, and see that no other follows."""
    reading = client(url)
    try:
        reader = await reading.create_reader(topic, pulsar.MessageId.earliest)
        found = [await asyncio.wait_for(reader.read_next(), 5) for _ in range(number)]
        while await reader.has_message_available():
            found.append(await asyncio.wait_for(reader.read_next(), 5))
        return found
    finally:
        await reading.close()


def document(message: pulsar.Message) -> dict[str, Any]:
    """Read a message as an event, binary or structured."""
    properties = dict(message.properties())
    content_type = properties.pop("content-type", None)
    if content_type and content_type.startswith("application/cloudevents"):
        return json.loads(message.data())
    read: dict[str, Any] = {name.removeprefix("ce_"): text for name, text in properties.items()}
    if content_type is not None:
        read["datacontenttype"] = content_type
    if message.data():
        read["data"] = json.loads(message.data())
    return read
