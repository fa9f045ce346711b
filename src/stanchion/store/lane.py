"""One connection on which calls follow each other at once; replies come back in their order."""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

import hiredis
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    Heard = Callable[[object], None]

Word = str | bytes | int
# Its own annotation has the tuple hold one word.
_pack: Callable[[tuple[Word, ...]], bytes] = cast("Any", hiredis).pack_command


class Dialled(Protocol):
    """A connection of the client's, before it is connected."""

    async def connect(self) -> None:
        """Connect, and log in as the URL says."""
        ...


# The client has no other way to hand over what it has connected.
_READER, _WRITER = "_reader", "_writer"


class Lane(asyncio.Protocol):
    """Sends commands without waiting for the replies to those before, and never sends one again.

    The client connects it, with TLS, login and Sentinel as the URL says; what it carries from then
    on is read and written here, where a call is one write and one callback. What is told of a
    command is its reply, an error reply included, or the `ConnectionLost` that came before.
    """

    def __init__(self, dialled: Dialled) -> None:
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._waiting: deque[Heard] = deque()
        self._lost: ConnectionLost | None = None
        writer: asyncio.StreamWriter | None = getattr(dialled, _WRITER)
        if writer is None:
            raise ConnectionLost("the connection was lost as soon as it was made")
        # The writer closes the transport when it is thrown away, so it stays.
        self._writer = writer
        self._transport: Any = writer.transport
        setattr(dialled, _READER, None)
        setattr(dialled, _WRITER, None)
        self._transport.set_protocol(self)
        self._poll = select.poll()
        self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        if self._transport.is_closing():
            self._lose("the connection was lost as soon as it was made")

    @classmethod
    async def over(cls, connection: Dialled) -> Lane:
        """Get a lane over a connection that the client makes; errors are the client's own."""
        await connection.connect()
        return cls(connection)

    @property
    def alive(self) -> bool:
        """Whether it can still carry anything.

        A server that hung up while nobody asked it anything has not run what is sent now; the loop
        may yet have to tell of it.
        """
        if self._lost is None and not self._waiting and self._poll.poll(0):
            self.abort("Connection closed by server.")
        return self._lost is None

    def send(self, command: tuple[Word, ...], heard: Heard) -> None:
        """Send a command now; `heard` is called once, with what came of it."""
        if self._lost is not None:
            heard(self._lost)
            return
        packed = _pack(command)
        self._waiting.append(heard)
        self._transport.write(packed)

    def send_both(
        self, first: tuple[tuple[Word, ...], Heard], behind: tuple[tuple[Word, ...], Heard]
    ) -> None:
        """Send a command, and another one right behind it, in one write."""
        if self._lost is not None:
            for _, heard in (first, behind):
                heard(self._lost)
            return
        packed = _pack(first[0]) + _pack(behind[0])
        self._waiting += first[1], behind[1]
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        """Tell those who wait, in order, of the replies in what has come."""
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if not self._waiting:
                    self.abort("a reply came that nobody had asked for")
                    return
                self._waiting.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"what came is no reply: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait that their replies will not come."""
        self._lose(str(exc) if exc is not None and str(exc) else "Connection closed by server.")

    def abort(self, why: str) -> None:
        """Let go at once; all who wait are told."""
        self._transport.abort()
        self._lose(why)

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = ConnectionLost(why)
        while self._waiting:
            self._waiting.popleft()(self._lost)
