"""Concurrent calls in one process, carried together in one script call."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from stanchion.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Item = TypeVar("Item")
Answer = TypeVar("Answer")
# Items that expire this soon after the first of their batch are failed with it.
_TICK = 0.01


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]
    expires: float


class Batcher(Generic[Item, Answer]):
    """Sends items in bounded batches as soon as the loop has run everything that was ready.

    Items wait only while `in_flight` calls are already under way, and never past `deadline`
    seconds: then their callers get StoreUnavailable. `send` gets the items and the loop time at
    which it must have given up. `orphaned` is told of an answer whose caller is no longer there,
    so that what it took can be given back.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item], float], Awaitable[Sequence[Answer]]],
        *,
        deadline: float,
        size: int = 32,
        in_flight: int = 3,
        orphaned: Callable[[Item, Answer], None] | None = None,
    ) -> None:
        self._send = send
        self._deadline = deadline
        self._size = size
        self._in_flight = in_flight
        self._orphaned = orphaned
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._flying: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, item: Item) -> asyncio.Future[Answer]:
        """Get the future answer to one item."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Item, Answer](item, loop.create_future(), loop.time() + self._deadline)
        self._queue.append(waiting)
        if not self._scheduled and len(self._flying) < self._in_flight:
            self._scheduled = True
            loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = loop.call_at(waiting.expires, self._expire)
        return waiting.answer

    async def close(self) -> None:
        """Fail what still waits and let calls under way finish within the deadline."""
        for waiting in self._queue:
            _fail(waiting.answer, "the bus was closed")
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flying:
            await asyncio.wait(self._flying)

    def _flush(self) -> None:
        self._scheduled = False
        while self._queue and len(self._flying) < self._in_flight:
            batch: list[_Waiting[Item, Answer]] = []
            while self._queue and len(batch) < self._size:
                waiting = self._queue.popleft()
                if not waiting.answer.done():
                    batch.append(waiting)
            if batch:
                task = asyncio.get_running_loop().create_task(self._carry(batch))
                self._flying.add(task)
                task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        if self._queue and not self._scheduled:
            self._flush()

    async def _carry(self, batch: Sequence[_Waiting[Item, Answer]]) -> None:
        overdue = _Overdue(batch, f"no answer within {self._deadline:g} s")
        try:
            answers = await self._send([waiting.item for waiting in batch], batch[-1].expires)
        except StoreUnavailable as error:
            for waiting in batch:
                _fail(waiting.answer, str(error))
        except BaseException as error:
            for waiting in batch:
                _fail(waiting.answer, f"{type(error).__name__}: {error}", error)
            if not isinstance(error, Exception):
                raise
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
                elif self._orphaned is not None:
                    self._orphaned(waiting.item, answer)
        finally:
            overdue.timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._queue and (
            self._queue[0].answer.done() or self._queue[0].expires <= loop.time()
        ):
            _fail(self._queue.popleft().answer, f"no answer within {self._deadline:g} s")
        if self._queue:
            self._timer = loop.call_at(self._queue[0].expires, self._expire)


class _Overdue(Generic[Item, Answer]):
    """Fails the items of one call under way, each when it expires: they may have come apart."""

    def __init__(self, batch: Sequence[_Waiting[Item, Answer]], text: str) -> None:
        self._left = deque(batch)
        self._text = text
        self.timer = asyncio.get_running_loop().call_at(batch[0].expires, self._fail)

    def _fail(self) -> None:
        loop = asyncio.get_running_loop()
        while self._left and self._left[0].expires <= loop.time() + _TICK:
            _fail(self._left.popleft().answer, self._text)
        if self._left:
            self.timer = loop.call_at(self._left[0].expires, self._fail)


def _fail(answer: asyncio.Future[Answer], text: str, cause: BaseException | None = None) -> None:
    if not answer.done():
        error = StoreUnavailable(text)
        error.__cause__ = cause
        answer.set_exception(error)
