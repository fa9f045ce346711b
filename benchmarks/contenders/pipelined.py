"""What a client costs at the least: one connection, written and read by hand, calls in a pipeline.

It has no pool, no retry, no deadline and no second server. What is asked in one turn of the event
loop is written together, and the answers are parsed in C and handed out in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import hiredis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Pipeline(asyncio.Protocol):
    """One connection. Whoever asks gets a future of the reply."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[object]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def ask(self, *words: str) -> asyncio.Future[object]:
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(hiredis.pack_command(words))  # pyright: ignore[reportArgumentType]
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _send(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Pipeline]:
    """Get a pipeline to the server of a `redis://` URL."""
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    loop = asyncio.get_running_loop()
    transport, pipeline = await loop.create_connection(Pipeline, place.hostname, place.port)
    yield pipeline
    transport.close()
