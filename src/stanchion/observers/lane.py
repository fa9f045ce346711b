"""One observer's lane: its queue, its workers, and what becomes of its events."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, retry_if_result, wait_random_exponential

from stanchion.events import matches
from stanchion.observers.calls import Calls, ended, error_of
from stanchion.observers.containment import Containment, summary
from stanchion.observers.courier import Courier
from stanchion.observers.gate import Gate
from stanchion.observers.inbox import Inbox, Overflow
from stanchion.observers.parcel import Parcel
from stanchion.observers.stats import ObserverState, ObserverStats, Tally, Unfinished

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine

    from stanchion.events import Event
    from stanchion.observers.journal import Journal
    from stanchion.observers.target import Step, Target
    from stanchion.observers.terms import Terms
    from stanchion.observers.threads import Threads


class Lane:
    """An inbox and the workers that empty it, for one observer; all but `inbox` is the loop's."""

    def __init__(
        self,
        name: str,
        target: Target,
        terms: Terms,
        *,
        lock: threading.RLock,
        threads: Threads,
        journal: Journal,
        redaction: Callable[[Event], Event] | None,
    ) -> None:
        self.name = name
        self.block_for = terms.block_for
        self._lock = lock
        self._tally = Tally()
        # One worker alone hands everything over in its order.
        by_run = terms.concurrency > 1
        self.inbox = Inbox(terms.queue, terms.overflow, self._tally, by_run=by_run)
        self._target = target
        self._terms = terms
        self._size = terms.batch_size or 1
        self._journal = journal
        self._gate = Gate(terms.patience.quarantine)
        self._calls = Calls(f"stanchion observer {name}", threads)
        self._courier = Courier(
            name, target, terms, calls=self._calls, gate=self._gate, tally=self._tally, lock=lock,
            journal=journal, redaction=redaction, changed=self._change,
        )  # fmt: skip
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_hand: set[Parcel] = set()
        self._filling = False
        self._draining = 0
        self._started = False
        self._closed = False

    def is_urgent(self, event: Event) -> bool:
        """Get whether this observer is to have an event before others, by its `priority`."""
        priority = self._terms.priority
        return priority is not None and matches(priority, event)

    @property
    def stats(self) -> ObserverStats:
        """The counters as they are now; from any thread."""
        with self._lock:
            tally, oldest = self._tally, self.inbox.oldest()
            moments = [parcel.rest[0].at for parcel in self._in_hand if parcel.rest]
            if oldest is not None:
                moments.append(oldest.at)
            return ObserverStats(
                delivered=tally.delivered,
                dropped=tally.dropped,
                failed=tally.failed,
                timed_out=tally.timed_out,
                queued=len(self.inbox),
                received=tally.received,
                retried=tally.retried,
                in_hand=tally.in_hand,
                lag=max(0.0, monotonic() - min(moments)) if moments else 0.0,
                state=self._state,
            )

    @property
    def _state(self) -> ObserverState:
        if self._closed:
            return ObserverState.CLOSED
        if not self._started:
            return ObserverState.STARTING
        if self._courier.all_hang:
            return ObserverState.HANGING
        if self._gate.quarantined:
            return ObserverState.QUARANTINED
        return ObserverState.RETRYING if self._courier.repeating else ObserverState.RUNNING

    def show(self, manager: object) -> None:
        """Give the observer the manager that serves it, if it wants to watch what that counts."""
        if self._target.watch is None:
            return
        with Containment() as held:
            self._target.watch(manager)
        if held.error is not None:
            text = "observer %r cannot watch its manager: %s"
            self._say(logging.ERROR, "watch", text, summary(held.error))

    @property
    def closed(self) -> bool:
        """Whether nothing more is delivered."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.inbox and not self._in_hand

    def wake(self) -> None:
        """Let the workers see what is in the inbox."""
        # One that waits for a batch to fill has seen what there is; it has set its own alarm.
        if not self._filling or self.inbox.ripe(self._size):
            self._wake.set()

    def report(self) -> None:
        """Log the burst of drops that has begun since the last call, if any."""
        with self._lock:
            kind = self.inbox.first_dropped()
        if kind is not None:
            self._say(
                logging.WARNING,
                "overflow",
                "observer %r is too slow: %d events wait, the %s are dropped, a %s first",
                self.inbox.capacity,
                "oldest" if self.inbox.overflow is Overflow.DROP_OLDEST else "newest",
                kind,
            )

    # ------------------------------------------------------------------------------- delivering

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the observer and, once that has worked, its workers."""
        if not self._closed:
            self._spawn(loop, self._open())

    async def _open(self) -> None:
        if self._target.start is not None:
            await AsyncRetrying(
                wait=wait_random_exponential(multiplier=0.1, max=30.0),
                retry=retry_if_result(lambda started: not started),
            )(self._start, self._target.start)
        self._started = True
        loop = asyncio.get_running_loop()
        for _ in range(self._terms.concurrency):
            self._spawn(loop, self._work())

    async def _start(self, step: Step) -> bool:
        call = self._calls.begin(step, Context())
        if await ended(call, self._terms.timeout):
            error = error_of(call)
            if error is None:
                return True
        else:
            error = TimeoutError()
            await self._courier.stop(call)
        text = "observer %r could not start and is tried again: %s"
        self._say(logging.ERROR, "start", text, summary(error))
        return False

    async def _work(self) -> None:
        while True:
            # Most of the time there is something already.
            if self._terms.batch_delay or not self.inbox.ready:
                await self._something()
            if not self._gate.shut:
                await self._handle(self._take())
                continue
            await self._gate.enter()
            try:
                # Only now: meanwhile newer events may have taken the place of the oldest.
                parcel = self._take()
                await self._handle(parcel, probe=True)
            finally:
                self._gate.leave()

    async def _something(self) -> None:
        """Wait until there is something to take and, if it is to fill a batch, enough of it."""
        while True:
            self._wake.clear()
            left: float | None = None
            if self.inbox.ready:
                left = self._time_to_fill()
                if left <= 0:
                    return
            else:
                with self._lock:
                    self.inbox.caught_up()
            self._filling = left is not None
            try:
                # When the time is up, another worker may have taken what it was about.
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()
            finally:
                self._filling = False

    def _time_to_fill(self) -> float:
        delay = self._terms.batch_delay
        if not delay or self._draining or self.inbox.ripe(self._size):
            return 0.0
        with self._lock:
            since = self.inbox.since()
        return 0.0 if since is None else since + delay - monotonic()

    def _take(self) -> Parcel | None:
        with self._lock:
            taken = self.inbox.take(self._size)
            if not taken.notices:
                self.inbox.release(taken.runs)
                return None
            parcel = Parcel(taken)
            self._in_hand.add(parcel)
            return parcel

    async def _handle(self, parcel: Parcel | None, *, probe: bool = False) -> None:
        if parcel is None:
            return
        try:
            await self._courier.deliver(parcel, probe=probe)
        except Exception as error:  # noqa: BLE001 - a worker that ends leaves a queue to nobody
            text = "observer %r: what it raised cannot be understood, %d events are dropped: %s"
            self._say(logging.ERROR, "worker", text, len(parcel.rest), summary(error))
        finally:
            with self._lock:
                self._courier.give_up(parcel)
                self._in_hand.discard(parcel)
                resumed = self.inbox.release(parcel.runs)
            if resumed:
                self._wake.set()
            self._change()

    def _change(self) -> None:
        self._changed.set()

    # ---------------------------------------------------------------------------------- the end

    async def drain(self, until: float, *, patient: bool = True) -> bool:
        """Wait until the lane is idle; False at `until` (loop time).

        Without patience, also False as soon as there is nothing to wait for: only calls that hang,
        or an observer that fails and has no time left to recover.
        """
        self._draining += 1
        self._wake.set()
        try:
            async with asyncio.timeout_at(until):
                while not self.idle:
                    if not patient and self._is_hopeless(until):
                        return False
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._draining -= 1
        return True

    def _is_hopeless(self, until: float) -> bool:
        if self._courier.all_hang or self._courier.despairs:
            return True
        return self._gate.asked > until - asyncio.get_running_loop().time()

    def abandon(self) -> int:
        """Count what waits and what is in hand as dropped: there is no loop any more."""
        self._closed = True
        before = self._tally.dropped
        self.inbox.clear()
        for parcel in tuple(self._in_hand):
            self._courier.give_up(parcel)
        return self._tally.dropped - before

    async def close(self, until: float) -> Unfinished:
        """Deliver what is queued, cancel the rest, and close the observer, all before `until`."""
        self._closed = True
        # What is kept for the handlers that must be cancelled, and for the observer's own close.
        reserve = min(1.0, (until - asyncio.get_running_loop().time()) / 4)
        dropped = self._given_up
        self._gate.hurry()
        try:
            if self._tasks:
                await self.drain(until - reserve, patient=False)
        finally:
            with self._lock:
                self.inbox.clear()
            for task in self._tasks:
                task.cancel()
        hanging = await self._calls.abandon(until - reserve / 2)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if lost := self._given_up - dropped:
            text = "observer %r is closed and %d of its events are lost"
            self._say(logging.WARNING, "lost", text, lost)
        if hanging:
            text = "observer %r is closed and %d of its calls are left behind: they do not return"
            self._say(logging.ERROR, "left", text, hanging)
        error = None
        if self._started and self._target.close is not None:
            self._started = False
            error = await self._close(self._target.close, until)
        return Unfinished(lost, hanging, error)

    @property
    def _given_up(self) -> int:
        # What comes after the end was never taken on.
        return self._tally.dropped - self.inbox.refused

    async def _close(self, step: Step, until: float) -> str | None:
        call = self._calls.begin(step, Context())
        if await ended(call, until - asyncio.get_running_loop().time()):
            error = error_of(call)
        else:
            error = TimeoutError()
            await self._calls.abandon(until)
        if error is None:
            return None
        self._say(logging.WARNING, "close", "observer %r did not close: %s", summary(error))
        return summary(error)

    def _say(self, level: int, kind: str, text: str, *values: object) -> None:
        self._journal.say(level, kind, self.name, text, self.name, *values)

    def _spawn(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None]
    ) -> None:
        # An empty context: the worker outlives whatever run happened to start it.
        task = loop.create_task(work, name=f"stanchion observer {self.name}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
