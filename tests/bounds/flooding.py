"""Floods, and what they may leave behind: bytes of this process, and of a server."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion import Event

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.servers import RealServer

MIB = 2**20


class Flood(Event, type="bounds:flood"):
    """One of very many."""

    user: str | None = None
    tokens: int = 1


@dataclass
class Grown:
    """How many bytes of Python objects a block has left behind."""

    bytes: int = 0


@contextmanager
def measured() -> Generator[Grown]:
    """Measure what is still held at the end of a block that was not held at its beginning."""
    grown = Grown()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield grown
        gc.collect()
        grown.bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def used_memory(server: RealServer) -> int:
    """Get how many bytes a server has allocated, its clients' buffers left out."""
    info = server.execute("INFO", "memory")
    fields = (
        info
        if isinstance(info, dict)
        else dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    )
    return int(fields["used_memory"]) - int(fields.get("mem_clients_normal", 0))
