"""Concurrent calls in one process, carried together in one script call."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from stanchion.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Item_contra = TypeVar("Item_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)
# Items that expire this soon after the first of their batch are failed with it.
_TICK = 0.01


class Launch(Protocol[Item_contra, Answer_co]):
    """Sends items in one call and returns at once, with what gives the call up.

    Either `landed` is called with an answer to each, or `failed`; neither once it was given up.
    """

    def __call__(
        self,
        items: Sequence[Item_contra],
        landed: Callable[[Sequence[Answer_co]], None],
        failed: Callable[[BaseException], None],
        /,
    ) -> Callable[[], None]: ...


class Batcher(Generic[Item, Answer]):
    """Sends items in bounded batches as soon as the loop has run everything that was ready.

    A batch has at most `size` items, and no more than fit into `weight` by what `weigh` says of
    each; one that is heavier goes alone. Items wait only while `in_flight` calls are already under
    way, and never past `deadline` seconds: then their callers get StoreUnavailable. `orphaned` is
    told of an answer whose caller is no longer there, so that what it took can be given back.
    """

    def __init__(
        self,
        launch: Launch[Item, Answer],
        *,
        deadline: float,
        size: int = 32,
        in_flight: int = 3,
        weigh: Callable[[Item], int] | None = None,
        weight: int = 0,
        orphaned: Callable[[Item, Answer], None] | None = None,
    ) -> None:
        self._launch = launch
        self._deadline = deadline
        self._size = size
        self._in_flight = in_flight
        self._weigh = weigh
        self._weight = weight
        self.orphaned = orphaned
        self._queue: deque[tuple[Item, asyncio.Future[Answer], float]] = deque()
        self._flights: set[_Flight[Item, Answer]] = set()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._landed: asyncio.Event | None = None

    def submit(self, item: Item) -> asyncio.Future[Answer]:
        """Get the future answer to one item."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        expires = loop.time() + self._deadline
        self._queue.append((item, answer, expires))
        if not self._scheduled and len(self._flights) < self._in_flight:
            self._scheduled = True
            loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = loop.call_at(expires, self._expire)
        return answer

    async def close(self) -> None:
        """Fail what still waits and let calls under way finish within the deadline."""
        for _, answer, _ in self._queue:
            fail(answer, "the bus was closed")
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flights:
            self._landed = asyncio.Event()
            await self._landed.wait()

    def ended(self, flight: _Flight[Item, Answer]) -> None:
        """Note that a call is over; the next one may go."""
        self._flights.discard(flight)
        if self._landed is not None and not self._flights:
            self._landed.set()
        if self._queue and not self._scheduled:
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        queue, size = self._queue, self._size
        while queue and len(self._flights) < self._in_flight:
            items: list[Item] = []
            answers: list[tuple[asyncio.Future[Answer], float]] = []
            room = self._weight
            while queue and len(items) < size:
                item, answer, expires = queue[0]
                if not answer.done():
                    if self._weigh is not None:
                        room -= self._weigh(item)
                        if room < 0 and items:
                            break
                    items.append(item)
                    answers.append((answer, expires))
                queue.popleft()
            if items:
                flight = _Flight(self, items, answers, self._deadline)
                self._flights.add(flight)
                flight.take_off(self._launch)

    def _expire(self) -> None:
        self._timer = None
        loop, queue = asyncio.get_running_loop(), self._queue
        while queue and (queue[0][1].done() or queue[0][2] <= loop.time()):
            fail(queue.popleft()[1], f"no answer within {self._deadline:g} s")
        if queue:
            self._timer = loop.call_at(queue[0][2], self._expire)


class _Flight(Generic[Item, Answer]):
    """One call under way. Its items fail each when it expires: they may have come apart."""

    __slots__ = ("_answers", "_batcher", "_deadline", "_give_up", "_items", "_over", "_timer")

    def __init__(
        self,
        batcher: Batcher[Item, Answer],
        items: Sequence[Item],
        answers: Sequence[tuple[asyncio.Future[Answer], float]],
        deadline: float,
    ) -> None:
        self._batcher = batcher
        self._items = items
        self._answers = answers
        self._deadline = deadline
        self._give_up: Callable[[], None] | None = None
        self._over = False
        self._timer = asyncio.get_running_loop().call_at(answers[0][1], self._overdue)

    def take_off(self, launch: Launch[Item, Answer]) -> None:
        try:
            self._give_up = launch(self._items, self._land, self._fail)
        except Exception as error:  # noqa: BLE001 - the callers get it; the loop must not
            self._fail(error)

    def _land(self, values: Sequence[Answer]) -> None:
        if self._end():
            orphaned = self._batcher.orphaned
            for (answer, _), value, item in zip(self._answers, values, self._items, strict=True):
                if not answer.done():
                    answer.set_result(value)
                elif orphaned is not None:
                    orphaned(item, value)
            self._batcher.ended(self)

    def _fail(self, error: BaseException) -> None:
        if self._end():
            ours = isinstance(error, StoreUnavailable)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            for answer, _ in self._answers:
                fail(answer, text, error.__cause__ if ours else error)
            self._batcher.ended(self)

    def _end(self) -> bool:
        """Whether it was under way until now."""
        was, self._over = not self._over, True
        self._timer.cancel()
        return was

    def _overdue(self) -> None:
        loop = asyncio.get_running_loop()
        now, left = loop.time() + _TICK, 0.0
        for answer, expires in self._answers:
            if expires <= now:
                fail(answer, f"no answer within {self._deadline:g} s")
            elif not left:
                left = expires
        if left:
            self._timer = loop.call_at(left, self._overdue)
        elif self._end():
            if self._give_up is not None:
                self._give_up()
            self._batcher.ended(self)


def fail(answer: asyncio.Future[Answer], text: str, cause: BaseException | None = None) -> None:
    """Have whoever waits for an answer get StoreUnavailable, if it has not come yet."""
    if not answer.done():
        error = StoreUnavailable(text)
        error.__cause__ = cause
        answer.set_exception(error)
