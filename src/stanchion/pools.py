"""Units of one subject that this process has taken ahead, to be spent without asking the store."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from stanchion.decisions import Outcome
from stanchion.errors import StanchionError
from stanchion.store.protocol import Part, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stanchion.policies.base import Prefetched
    from stanchion.store.protocol import Operation, OpReply, Reply, Store

_log = logging.getLogger("stanchion.bus")
_MICROS = 1_000_000
# Seconds without spending after which what is left goes back.
IDLE = 1.0
# A reservation is settled before its lease ends, by a tenth of it and by so many seconds at most.
_MARGIN = 1.0
# Whoever gives back what is left of a rate does so once, and is not told apart from others.
_NOBODY = ""
_SERIAL_BITS = 52


class Chunk:
    """Units that were charged in one call: how many are left, and until when they may be spent."""

    __slots__ = ("dies", "granted", "holder", "open", "part", "serial", "settling", "told", "units")

    def __init__(self, holder: str, granted: int, dies: float, part: Part) -> None:
        self.holder = holder
        self.granted = granted
        #: Below zero where spendings have really cost more than they took.
        self.units = granted
        self.dies = dies
        self.part = part
        #: No other process has this number.
        self.serial = 1 + secrets.randbits(_SERIAL_BITS)
        #: Spendings whose real cost may yet be told.
        self.settling = 0
        #: Permits whose real cost has been told.
        self.told: set[str] = set()
        self.open = True


class Refill(NamedTuple):
    """What was asked of the store, its answer, and when it was asked (seconds, monotonic)."""

    operation: Operation
    reply: Reply
    asked: float


class Pool:
    """What this process has at hand of one subject's limit.

    Units are charged when they are taken from the store. Those of a rate die `lapse` seconds after
    they were asked for, those of a window with the window, and on death, when nothing was spent for
    a second, and on close, what is left is given back. A process that is killed leaves them
    charged: that is what it can cost.

    `chunks` is where a chunk is found by its number until it is given back, and `emptied` is called
    when there is nothing left in the pool, nor under way.
    """

    def __init__(
        self,
        store: Store,
        operation: Operation,
        terms: Prefetched,
        holder: Callable[[], str],
        chunks: dict[int, tuple[Pool, Chunk]],
        emptied: Callable[[Pool], None],
    ) -> None:
        self._store = store
        self._terms = terms
        self._holder = holder
        self._chunks = chunks
        self._emptied = emptied
        self._low = terms.units // 2
        self._now: Chunk | None = None
        self._next: Chunk | None = None
        self._refill: asyncio.Task[Refill] | None = None
        self._refused_until = 0.0
        self._wanted = 0
        self._waits: set[Chunk] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._spent_at = 0.0
        self._spent_before = 0.0
        self.operation = operation
        self.answer: OpReply | None = None

    # ----------------------------------------------------------------------------- spending

    def spend(self, cost: int) -> Chunk | None:
        """Spend so many units at once, if they are at hand; get the chunk that they were of."""
        chunk = self._now
        now = time.monotonic()
        if chunk is not None and chunk.units >= cost and now < chunk.dies:
            chunk.units -= cost
            self._spent_before, self._spent_at = self._spent_at, now
            if chunk.units < self._low and self._next is None and self._refill is None:
                self._ahead(now)
            return chunk
        return self._spend_of_both(cost, now)

    def _spend_of_both(self, cost: int, now: float) -> Chunk | None:
        alive = [one for one in (self._now, self._next) if one is not None and now < one.dies]
        if sum(chunk.units for chunk in alive) < cost or not alive:
            return None
        left, last = cost, alive[0]
        for chunk in alive:
            last = chunk
            taken = min(left, chunk.units)
            chunk.units -= taken
            left -= taken
            if not left:
                break
        self._spent_before, self._spent_at = self._spent_at, now
        if self._next is last:
            self._turn()
        return last

    def unspend(self, chunk: Chunk, cost: int) -> None:
        """Take back the last spending, which came to nothing."""
        self._spent_at = self._spent_before
        if chunk.open:
            chunk.units = min(chunk.granted, chunk.units + cost)

    @property
    def at_hand(self) -> int:
        """How many units can be spent now; below zero where some are owed."""
        now = time.monotonic()
        return sum(c.units for c in (self._now, self._next) if c is not None and now < c.dies)

    async def fetch(self, cost: int) -> Refill:
        """Get the store's answer to what is missing for a spending of `cost`.

        Who asks at the same time gets the same answer, which may be to having asked for more. When
        it admits, spending may still fail, since others spend as well.

        Raises:
            StoreUnavailable: there was no answer.
        """
        # One that is done, and is yet to be taken note of, would be got at once, again and again.
        if self._refill is None or self._refill.done():
            self._begin(max(1, cost - self.at_hand))
        refill = self._refill
        assert refill is not None
        self._wanted += cost
        try:
            return await asyncio.shield(refill)
        finally:
            self._wanted -= cost

    def _ahead(self, now: float) -> None:
        """Ask for more before the last unit is spent, unless it was refused just now."""
        if now >= self._refused_until:
            self._begin(1)

    def _begin(self, least: int) -> None:
        self._refill = asyncio.create_task(self._take(least))
        self._refill.add_done_callback(self._taken)

    async def _take(self, least: int) -> Refill:
        left = max(0, self._now.units) if self._now else 0
        # What callers wait for is not taken ahead: they are not to be served a handful at a time.
        most = max(least, self._terms.units - left, self._wanted - left)
        operation = self.operation._replace(cost=least, most=most)
        holder, asked = self._holder(), time.monotonic()
        reply = await self._store.admit(Request(holder, (operation,), copies=self._terms.copies))
        answer = self.answer = reply.operations[0]
        if not reply.admitted:
            self._refused_until = asked + max(0, answer.wait_us) / _MICROS
            return Refill(operation, reply, asked)
        part = Part(
            *(operation.kind, operation.key, operation.aux, reply.granted, answer.hold),
            unknown=False,
            subjects=operation.subjects,
        )
        # From when it was asked for, which was before it was charged: it never lives too long.
        chunk = Chunk(holder, reply.granted, asked + self._life(answer, reply.now_us), part)
        self._chunks[chunk.serial] = self, chunk
        if self._now is None:
            self._now = chunk
        else:
            if self._next is not None:
                self._turn()
            self._next = chunk
        self._spent_at = max(self._spent_at, asked)
        self._arm()
        return Refill(operation, reply, asked)

    def _life(self, answer: OpReply, now_us: int) -> float:
        life = self._terms.lapse or answer.reset_us / _MICROS
        if not answer.expires_us:
            return life
        # Its lease, or the lapse where the subject has a limit of its own.
        lease = (answer.expires_us - now_us) / _MICROS
        return min(life, lease - min(_MARGIN, lease / 10) if self._terms.reserves else lease)

    def _taken(self, refill: asyncio.Task[Refill]) -> None:
        if self._refill is refill:
            self._refill = None
        if not refill.cancelled() and (error := refill.exception()) is not None:
            self._refused_until = time.monotonic() + IDLE
            _log.debug("nothing was taken ahead: %s", error)
        self._look()

    # ------------------------------------------------------------------------- giving back

    def _turn(self) -> None:
        """Go on with the next chunk."""
        if self._now is not None:
            self._retire(self._now)
        self._now, self._next = self._next, None

    def _arm(self) -> None:
        """Be woken when there is something to give back."""
        due = [chunk.dies for chunk in self._waits]
        if self._now is not None:
            due.append(min(self._now.dies, self._spent_at + IDLE))
        if not due:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.001, min(due) - time.monotonic())
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        if now >= self._spent_at + IDLE:
            self._turn()
            self._turn()
        elif self._now is not None and now >= self._now.dies:
            self._turn()
        for chunk in [chunk for chunk in self._waits if now >= chunk.dies]:
            self._return(chunk)
        self._arm()
        self._look()

    def _retire(self, chunk: Chunk) -> None:
        """Spend no more of a chunk, and give back the rest once its real cost is known."""
        if chunk.settling and time.monotonic() < chunk.dies:
            self._waits.add(chunk)
            self._arm()
        else:
            self._return(chunk)

    def _return(self, chunk: Chunk) -> None:
        chunk.open = False
        self._waits.discard(chunk)
        self._chunks.pop(chunk.serial, None)
        # A rate that is all spent has nothing to hear; a reservation is told that it is over.
        if chunk.units or self._terms.reserves:
            part = chunk.part._replace(actual=max(0, chunk.granted - chunk.units))
            self._keep(self._settle(chunk.holder if self._terms.reserves else _NOBODY, part))

    async def _settle(self, holder: str, part: Part) -> None:
        try:
            await self._store.settle(holder, Outcome.SUCCESS, (part,))
        except StanchionError as error:
            _log.warning("what was taken ahead was not given back and stays charged: %s", error)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._look()

    def _look(self) -> None:
        if not (self._now or self._next or self._refill or self._waits or self._tasks):
            self._emptied(self)

    # --------------------------------------------------------------------------- real costs

    async def settle(self, chunk: Chunk, permit: str, back: int) -> bool:
        """Take what a spending really cost less than it took, or more; False where it was told."""
        if permit in chunk.told:
            return False
        chunk.told.add(permit)
        try:
            if back >= 0 or not await self._charged(-back):
                chunk.units = min(chunk.granted, chunk.units + back)
                if not chunk.open:
                    _log.warning("permit %s cost %d more, which was not charged", permit, -back)
        finally:
            chunk.settling = max(0, chunk.settling - 1)
            if chunk in self._waits and not chunk.settling:
                self._return(chunk)
        return True

    async def _charged(self, extra: int) -> bool:
        """Charge this as well; False where it is to be told when its chunk is given back."""
        now = time.monotonic()
        for chunk in (self._now, self._next):
            if chunk is not None and chunk.units >= extra and now < chunk.dies:
                chunk.units -= extra
                return True
        holder, operation = self._holder(), self.operation._replace(cost=0, most=0)
        try:
            reply = await self._store.admit(Request(holder, (operation,)))
            if not reply.admitted:
                return False
            hold = reply.operations[0].hold
            part = Part(
                *(operation.kind, operation.key, operation.aux, 0, hold),
                actual=extra,
                unknown=False,
                subjects=operation.subjects,
            )
            return await self._store.settle(holder, Outcome.SUCCESS, (part,)) == ("settled",)
        except StanchionError:
            return False

    def drop(self) -> None:
        """Spend no more of what is at hand: the state that it was charged to is gone."""
        self._refused_until = 0.0
        self._turn()
        self._turn()
        self._look()

    async def close(self) -> None:
        """Give everything back."""
        if self._refill is not None:
            await asyncio.wait([self._refill])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        chunks = (self._now, self._next, *self._waits)
        self._now = self._next = None
        for chunk in chunks:
            if chunk is not None:
                self._return(chunk)
        if self._tasks:
            await asyncio.wait(self._tasks)
