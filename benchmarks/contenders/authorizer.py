"""A service that admits everything as fast as it can, in a process of its own; and who asks it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp

from stanchion import Event, EventBus
from stanchion.policies.remote import HttpPolicy, OpaPolicy, RegoPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence

    Ask = Callable[[], Awaitable[object]]

# What OPA, AuthZEN and plain JSON look for.
ANSWER = b'{"result":true,"decision":true,"allow":true}'
REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + str(len(ANSWER)).encode() + b"\r\n\r\n" + ANSWER
)
REGO = "package bench\n\nallow if input.tokens <= 1000\n"


class Call(Event, type="bench:authorized"):
    """What is asked about."""

    subject: str = "hot"
    model: str = "m1"
    tokens: int = 100


class _Admits(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(REPLY)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Admits, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.connect_read_pipe(partial(_Ends, server), sys.stdin)
    await server.wait_closed()


class _Ends(asyncio.Protocol):
    """Ends the service with whoever started it."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._server.close()
        self._server.close_clients() if sys.version_info >= (3, 13) else None


@contextmanager
def running() -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def http(url: str, name: str = "http", **fields: Any) -> HttpPolicy:
    given: dict[str, Any] = {
        "dialect": "json",
        "request": {"who": "{subject}", "model": "{model}", "tokens": "{tokens}"},
        "allow": "allow",
        "timeout": 5,
    }
    return HttpPolicy(
        **{"name": name, "on": Call, "url": url, "connections": 64, **given, **fields}
    )


def opa(url: str) -> OpaPolicy:
    return OpaPolicy(name="opa", on=Call, url=url, path="bench/allow", timeout=5, connections=64)


def rego() -> RegoPolicy:
    return RegoPolicy(name="rego", on=Call, rego=REGO, path="bench/allow", timeout=5)


@asynccontextmanager
async def checked(make: Callable[[], Sequence[Any]]) -> AsyncIterator[Ask]:
    """Check an event made anew, on a bus that has these policies and no other."""
    async with EventBus.from_url("memory://", policies=make(), deadline=10) as bus:
        yield lambda: bus.check(Call())


@asynccontextmanager
async def bare(url: str, calls: int = 1, *, together: bool = False) -> AsyncIterator[Ask]:
    """Ask the same with aiohttp and nothing around it."""
    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one() -> bool:
            call = Call()
            question = {"who": call.subject, "model": call.model, "tokens": call.tokens}
            async with session.post(url, data=json.dumps(question).encode()) as response:
                return json.loads(await response.read())["allow"] is True

        async def several() -> bool:
            if together:
                return all(await asyncio.gather(*(one() for _ in range(calls))))
            return all([await one() for _ in range(calls)])

        yield one if calls == 1 else several


if __name__ == "__main__":
    asyncio.run(serve())
