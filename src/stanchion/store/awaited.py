"""A command, and behind it on the same connection the question how many replicas have it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from stanchion.store.lane import Word

_MILLI = 1000


def is_answer(reply: object, nonce: bytes) -> bool:
    """Whether a reply is one to the call of that nonce."""
    rows = cast("list[object]", reply) if isinstance(reply, list) else []
    return bool(rows) and rows[0] == nonce


class Awaited:
    """How many replicas are to acknowledge a command, until when (loop time), and how many did.

    WAIT counts what its own connection wrote, and inside a script it returns at once; so it follows
    the command on that connection, in the same write. `heard` is told of the command's own reply as
    soon as that is there.
    """

    __slots__ = ("_nonce", "acknowledged", "heard", "replicas", "seconds", "until")

    def __init__(self, replicas: int, until: float) -> None:
        self.replicas = replicas
        self.until = until
        self._nonce = b""
        #: For how long the server was told to wait, when it was last asked.
        self.seconds = 0.0
        #: Replicas that have it; -1 while that is not known.
        self.acknowledged = -1
        self.heard: Callable[[list[Any]], None] | None = None

    def expects(self, nonce: bytes) -> None:
        """Take only a reply to the call of this nonce for its reply."""
        self._nonce = nonce

    @property
    def command(self) -> tuple[Word, ...]:
        """WAIT, for what is left now."""
        # Zero would be to wait for ever.
        left = max(1, int(_MILLI * (self.until - asyncio.get_running_loop().time())))
        self.seconds = left / _MILLI
        return "WAIT", self.replicas, left

    def hear(self, reply: object) -> None:
        """Tell of the command's own reply, if it is that and not an error."""
        if self.heard is not None and is_answer(reply, self._nonce):
            self.heard(cast("list[Any]", reply))

    async def over(self, connection: AbstractConnection, *commands: tuple[Word, ...]) -> object:
        """Send commands and WAIT over a connection; get the reply to the last of the commands.

        Errors are the client's own.
        """
        try:
            packed = connection.pack_commands([*commands, self.command])
            await connection.send_packed_command(packed)
            reply: object = None
            for _ in commands:
                reply = cast("object", await connection.read_response())
            self.hear(reply)
            self.acknowledged = cast("int", await connection.read_response())
        except BaseException:
            # The reply to WAIT may be yet to come, and is nobody else's.
            await connection.disconnect(nowait=True)
            raise
        return reply
