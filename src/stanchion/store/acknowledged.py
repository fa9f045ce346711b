"""Admissions that count only once replicas have what was charged."""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from stanchion.errors import StoreUnavailable
from stanchion.store import codec
from stanchion.store.awaited import Awaited
from stanchion.store.batch import Batcher, fail
from stanchion.store.outage import OutageGate
from stanchion.store.protocol import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The share of a deadline that is left for the way there and back, and the seconds by which servers
# are late to say that nobody acknowledged: they look ten times a second. Never more than half.
_WAY, _LATE, _MOST = 0.05, 0.1, 0.5
# Bytes of keys and declarations that one call carries, give or take what is short.
_WEIGHT = 64 * 1024
_weigh = attrgetter("request.weight")


class Send(Protocol):
    """Sends requests in one call, as `batch.Launch`, and asks behind it who has acknowledged it."""

    def __call__(
        self,
        requests: Sequence[Request],
        landed: Callable[[Sequence[Reply]], None],
        failed: Callable[[BaseException], None],
        awaited: Awaited,
        /,
    ) -> Callable[[], None]: ...


class Pending:
    """A request, when it expires (loop time), and whether its caller has had an answer."""

    __slots__ = ("answer", "expires", "request", "told")

    def __init__(self, request: Request, expires: float) -> None:
        self.request = request
        self.expires = expires
        self.answer: asyncio.Future[Reply] | None = None
        self.told = False


class Acknowledged:
    """Admissions that count once so many replicas have them; one for each number of replicas.

    What is denied is told at once. What was admitted and not acknowledged in time is handed to
    `orphaned`, which gives it back, and its caller gets StoreUnavailable. After three such rounds
    in a row only one call at a time tries again, and all others are refused at once.
    """

    def __init__(
        self,
        replicas: int,
        send: Send,
        *,
        deadline: float,
        size: int,
        in_flight: int,
        orphaned: Callable[[Request, Reply], None],
    ) -> None:
        self._replicas = replicas
        self._send = send
        self._deadline = deadline
        self._spare = min(_LATE + _WAY * deadline, _MOST * deadline)
        self._orphaned = orphaned
        self._gate = OutageGate(what="replicas have not been acknowledging")
        self._batcher = Batcher[Pending, Reply](
            self._launch,
            deadline=deadline,
            size=size,
            in_flight=in_flight,
            weigh=_weigh,
            weight=_WEIGHT,
            orphaned=self._late,
        )

    def submit(self, request: Request) -> asyncio.Future[Reply]:
        """Get the future answer to one request."""
        expires = asyncio.get_running_loop().time() + self._deadline
        pending = Pending(request, expires)
        pending.answer = answer = self._batcher.submit(pending)
        return answer

    async def close(self) -> None:
        """Fail what still waits, and let calls under way finish within the deadline."""
        await self._batcher.close()

    def _launch(
        self,
        items: Sequence[Pending],
        landed: Callable[[Sequence[Reply]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        awaited = Awaited(self._replicas, items[0].expires - self._spare)
        trip = _Trip(items, awaited, self._gate, self._orphaned, landed, failed)
        requests = [item.request for item in items]
        try:
            give_up = self._send(requests, trip.land, trip.fail, awaited)
        except Exception as error:  # noqa: BLE001 - the callers get it
            trip.fail(error)
            return _nothing

        def give_up_all() -> None:
            give_up()
            trip.give_up(self._deadline)

        return give_up_all

    def _late(self, item: Pending, reply: Reply) -> None:
        """Give back what has been acknowledged for a caller who is not there any more."""
        if not item.told:
            self._orphaned(item.request, reply)


def _nothing() -> None:
    return None


class _Trip:
    """One call under way."""

    __slots__ = (
        *("_awaited", "_entered", "_failed", "_gate", "_items", "_landed", "_orphaned"),
        "_replies",
    )

    def __init__(
        self,
        items: Sequence[Pending],
        awaited: Awaited,
        gate: OutageGate,
        orphaned: Callable[[Request, Reply], None],
        landed: Callable[[Sequence[Reply]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._items = items
        self._awaited = awaited
        self._gate = gate
        self._orphaned = orphaned
        self._landed = landed
        self._failed = failed
        self._replies: Sequence[Reply] = ()
        self._entered = gate.enter()
        awaited.heard = self.hear

    def hear(self, raw: list[Any]) -> None:
        """Take the replies; what is denied has nothing to wait for."""
        self._replies = replies = codec.decode_replies(raw)
        for item, reply in zip(self._items, replies, strict=True):
            if not reply.admitted and item.answer is not None and not item.answer.done():
                item.told = True
                item.answer.set_result(reply)

    def land(self, replies: Sequence[Reply]) -> None:
        """Let the admissions count, if there were enough acknowledgements."""
        asked, self._replies = self._awaited, replies
        if asked.acknowledged >= asked.replicas:
            self._gate.succeeded()
        else:
            text = (
                f"{asked.acknowledged} of {asked.replicas} replicas acknowledged "
                f"within {asked.seconds:.2g} s"
            )
            self._gate.failed(text, self._entered)
            self._refuse(StoreUnavailable(text))
        self._landed(replies)

    def give_up(self, deadline: float) -> None:
        """Let none of the admissions count: nothing was heard of them by the deadline."""
        if self._replies:
            count = self._awaited.replicas
            text = f"fewer than {count} replicas acknowledged within {deadline:g} s"
            self._gate.failed(text, self._entered)
            self._refuse(StoreUnavailable(text))
        else:
            self._gate.abandoned(self._entered)

    def fail(self, error: BaseException) -> None:
        """Let none of the admissions count: who has them is not known."""
        self._gate.abandoned(self._entered)
        self._refuse(error)
        self._failed(error)

    def _refuse(self, error: BaseException) -> None:
        replies, self._replies = self._replies, ()
        for item, reply in zip(self._items, replies, strict=False):
            if item.told:
                continue
            item.told = True
            self._orphaned(item.request, reply)
            if item.answer is not None:
                fail(item.answer, str(error), error.__cause__)
