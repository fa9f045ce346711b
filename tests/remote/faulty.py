"""An HTTP server that does one thing, wrong or right, to every request."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_BOMB = gzip.compress(b" " * 50_000_000)


@dataclass
class Request:
    """What a request was."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


Deed = Callable[[asyncio.StreamWriter], Awaitable[None]]


class FaultyServer:
    """Answers as `deed` says; `requests` is what came, `connections` how often somebody came;
    `open` of these are there.
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Request] = []
        self.connections = self.open = 0
        self.peers: list[Any] = []
        self.deed: Deed = answer({"allow": True})
        self._secure = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._secure else 'http'}://127.0.0.1:{self.port}"

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._secure = context is not None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self.open += 1
        if (tls := writer.get_extra_info("ssl_object")) is not None:
            self.peers.append(tls.getpeercert())
        try:
            while True:
                self.requests.append(await _read(reader))
                await self.deed(writer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError, TimeoutError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(_header(line) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0].split(" ")[1], headers, body)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name.lower(), value


# ---- what can be done


def answer(document: Any, status: int = 200, **headers: str) -> Deed:
    """Answer with JSON, as it should be."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    async def deed(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(status, {"Content-Length": str(len(body)), **headers}) + body)
        await writer.drain()

    return deed


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def hang(writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    del writer
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time, for ever."""
    writer.write(_head(200, {"Content-Length": "60000"}))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(writer: asyncio.StreamWriter) -> None:
    """Answer with a body that has no end."""
    writer.write(_head(200, {"Transfer-Encoding": "chunked"}))
    while True:
        writer.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        await writer.drain()


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Answer with a few bytes that become many."""
    headers = {"Content-Length": str(len(_BOMB)), "Content-Encoding": "gzip"}
    writer.write(_head(200, headers) + _BOMB)
    await writer.drain()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection without a word."""
    writer.close()
    await writer.wait_closed()


async def break_off(writer: asyncio.StreamWriter) -> None:
    """Close the connection in the middle of the answer."""
    writer.write(_head(200, {"Content-Length": "1000"}) + b'{"allow": true')
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def babble(writer: asyncio.StreamWriter) -> None:
    """Answer with what is no HTTP."""
    writer.write(b"\x00\x01\x02 hello\r\n\r\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
