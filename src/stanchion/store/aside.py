"""Connections on which replicas are waited for, away from every other call."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import NoScriptError, RedisError, ResponseError

from stanchion.store.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.store.awaited import Awaited
    from stanchion.store.clients import Connections
    from stanchion.store.lane import Dialled, Word


class Aside:
    """Runs calls with the wait behind them, one at a time on each connection.

    A call that waits blocks its connection, on the server's side. On a cluster the client finds
    the node; elsewhere connections are lanes, of which there are as many as calls at a time.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._free: list[Lane] = []
        self._busy: set[Lane] = set()

    async def run(self, awaited: Awaited, *command: Word) -> object:
        """Run a command, once, and wait for replicas behind it; errors are the client's own."""
        dial = self._connections.dial
        if dial is None:
            client = cast("Any", self._connections.client)
            return await client.execute_command(*command, awaited=awaited)
        lane = await self._take(dial)
        loop = asyncio.get_running_loop()
        replied: asyncio.Future[object] = loop.create_future()
        counted: asyncio.Future[object] = loop.create_future()
        try:
            lane.send_both(
                (command, partial(_hear, awaited, replied)),
                (awaited.command, partial(_put, counted)),
            )
            reply = _checked(await replied)
            awaited.acknowledged = _number(_checked(await counted))
        except BaseException:
            # The reply to WAIT may be yet to come, and is nobody else's.
            lane.abort("a call on this connection was given up")
            raise
        else:
            self._free.append(lane)
            return reply
        finally:
            self._busy.discard(lane)

    async def _take(self, dial: Callable[[], Dialled]) -> Lane:
        while self._free:
            lane = self._free.pop()
            if lane.alive:
                break
        else:
            dialled = dial()
            try:
                lane = await Lane.over(dialled)
            except BaseException:
                # Given up while it logs in, it would stay.
                await cast("Any", dialled).disconnect(nowait=True)
                raise
        self._busy.add(lane)
        return lane

    async def drop(self) -> None:
        """Have the next call start on a fresh connection, and find its server anew."""
        self._abort("the connection was dropped")
        with suppress(RedisError, OSError):
            await self._connections.drop()

    async def close(self) -> None:
        """Let go of every connection."""
        self._abort("the bus was closed")
        with suppress(RedisError, OSError):
            await self._connections.close()

    def _abort(self, why: str) -> None:
        lanes, self._free = [*self._free, *self._busy], []
        for lane in lanes:
            lane.abort(why)


def _hear(awaited: Awaited, replied: asyncio.Future[object], reply: object) -> None:
    awaited.hear(reply)
    _put(replied, reply)


def _put(answer: asyncio.Future[object], reply: object) -> None:
    if not answer.done():
        answer.set_result(reply)


def _checked(reply: object) -> object:
    if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
        raise NoScriptError(str(reply))
    if isinstance(reply, Exception):
        raise reply
    return reply


def _number(reply: object) -> int:
    return reply if isinstance(reply, int) else -1
