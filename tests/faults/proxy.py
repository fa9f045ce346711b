"""A TCP relay in front of a server, to do to its connections what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Link:
    """One connection through the relay. `requests` and `replies` count the chunks seen so far."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.requests = 0
        self.replies = 0
        #: While set, replies are read and thrown away.
        self.mute = False

    def cut(self, *, reset: bool = False) -> None:
        """End it at once on both sides, with a RST instead of a FIN if `reset`."""
        for writer in (self.client, self.server):
            if reset and not writer.transport.is_closing():
                end: socket.socket = writer.get_extra_info("socket")
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
            writer.close()

    def half_close(self) -> None:
        """Tell the client that no more replies will come; its requests still go through."""
        self.mute = True
        self.client.write_eof()


class Proxy:
    """Relays to one port; how it misbehaves may be changed at any time, for new data.

    `delay`        seconds that each chunk is held back, in both directions
    `slice`        replies are sent in pieces of so many bytes, the loop running in between
    `on_request`   gets the link and each chunk before it is forwarded; what it returns is sent on
    `on_reply`     the same for replies
    `refuse`       new connections are reset
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = port
        self.host = host
        self.port = 0
        self.links: list[Link] = []
        self.accepted = 0
        self.delay = 0.0
        self.slice = 0
        self.refuse = False
        self.on_request: Callable[[Link, bytes], bytes] | None = None
        self.on_reply: Callable[[Link, bytes], bytes] | None = None
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self, *, reset: bool = False) -> None:
        """End every connection."""
        for link in self.links:
            link.cut(reset=reset)

    def half_close(self) -> None:
        """Half-close every connection."""
        for link in self.links:
            link.half_close()

    def heal(self) -> None:
        """Behave, from now on and for new connections; those that suffered are ended."""
        self.delay, self.slice, self.refuse = 0.0, 0, False
        self.on_request = self.on_reply = None
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            Link(writer, writer).cut(reset=True)
            return
        try:
            answers, server = await asyncio.open_connection(self.host, self.target)
        except OSError:
            Link(writer, writer).cut(reset=True)
            return
        link = Link(writer, server)
        self.links.append(link)
        pumps = {
            asyncio.create_task(self._pump(link, reader, server, up=True)),
            asyncio.create_task(self._pump(link, answers, writer, up=False)),
        }
        self._pumps |= pumps
        await asyncio.wait(pumps)
        self._pumps -= pumps
        self.links.remove(link)
        link.cut()
        for end in (writer, server):
            with contextlib.suppress(OSError):
                await end.wait_closed()

    async def _pump(
        self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                data = self._changed(link, data, up=up)
                size = self.slice
                if up or not size:
                    sink.write(data)
                    await sink.drain()
                    continue
                for first in range(0, len(data), size):
                    sink.write(data[first : first + size])
                    await asyncio.sleep(0)
        if not sink.transport.is_closing():
            sink.close()

    def _changed(self, link: Link, data: bytes, *, up: bool) -> bytes:
        if up:
            link.requests += 1
            return data if self.on_request is None else self.on_request(link, data)
        link.replies += 1
        if link.mute:
            return b""
        return data if self.on_reply is None else self.on_reply(link, data)
