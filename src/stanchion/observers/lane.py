"""One observer's lane: its queue, its workers, and what became of its events."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tenacity import AsyncRetrying, retry_if_result, wait_random_exponential

from stanchion.observers.calls import Call, Calls, ended, error_of
from stanchion.observers.containment import summary
from stanchion.observers.inbox import Entry, Inbox, Overflow

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stanchion.events import Event
    from stanchion.observers.journal import Journal
    from stanchion.observers.target import Step, Target
    from stanchion.observers.terms import Terms
    from stanchion.observers.threads import Threads

_STOP_GRACE: Final = 1.0  # seconds that a cancelled handler has to clean up before it is reported


@dataclass(frozen=True, slots=True)
class ObserverStats:
    """What became of the events for one observer since it was registered, and how many wait.

    `dropped` had to give way, came after the end, or were given up on close; `timed_out` were
    cancelled at their timeout; the handlers of those that `failed` raised. What is in none of
    these is being handled.
    """

    delivered: int = 0
    dropped: int = 0
    failed: int = 0
    timed_out: int = 0
    queued: int = 0


class Lane:
    """An inbox and the workers that empty it, for one observer; all but `inbox` is the loop's."""

    def __init__(
        self, name: str, target: Target, terms: Terms, threads: Threads, journal: Journal
    ) -> None:
        self.name = name
        self.inbox = Inbox(terms.queue, terms.overflow)
        self._target = target
        self._terms = terms
        self._journal = journal
        self._calls = Calls(f"stanchion observer {name}", threads)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._stuck = 0
        self._started = False
        self._closed = False
        self._delivered = self._failed = self._timed_out = 0

    @property
    def stats(self) -> ObserverStats:
        """The counters as they are now."""
        return ObserverStats(
            delivered=self._delivered,
            dropped=self.inbox.dropped,
            failed=self._failed,
            timed_out=self._timed_out,
            queued=len(self.inbox),
        )

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.inbox and not self._running

    def wake(self) -> None:
        """Let the workers see what is in the inbox."""
        self._wake.set()

    def report(self) -> None:
        """Log the burst of drops that has begun since the last call, if any."""
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
            await self._stop(call)
        text = "observer %r could not start and is tried again: %s"
        self._say(logging.ERROR, "start", text, summary(error))
        return False

    async def _work(self) -> None:
        while True:
            batch = self.inbox.take(self._target.batch_size or 1)
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            self._running += 1
            try:
                await self._deliver(batch)
            finally:
                self._running -= 1
                self._changed.set()

    async def _deliver(self, batch: list[Entry]) -> None:
        event, context = batch[0]
        if self._target.batch_size is None:
            # A copy: the observers of one event run side by side and may set variables.
            call = self._calls.begin(self._target.handle, context.copy(), event)
        else:
            # Events of several runs: no run's context may stand for the others.
            events = tuple(event for event, _ in batch)
            call = self._calls.begin(self._target.handle, Context(), events)
        try:
            in_time = await ended(call, self._terms.timeout)
        except asyncio.CancelledError:
            self.inbox.refuse(len(batch))
            raise
        if in_time:
            self._count(event, len(batch), error_of(call))
            return
        self._timed_out += len(batch)
        text = "observer %r took longer than %g s over a %s, which is given up"
        self._say(logging.WARNING, "timeout", text, self._terms.timeout, event.event_type)
        await self._stop(call)

    def _count(self, event: Event, number: int, error: BaseException | None) -> None:
        if error is None:
            self._delivered += number
            return
        self._failed += number
        text = "observer %r failed on a %s: %s"
        self._say(logging.WARNING, "failure", text, event.event_type, summary(error))

    async def _stop(self, call: Call) -> None:
        """Cancel a call that took too long, and wait until it has really ended.

        A task may ignore its cancellation and a thread cannot be cancelled. To give such an
        observer the next event would pile up what hangs, so it gets none until it returns.
        """
        if isinstance(call, asyncio.Task):
            call.cancel()
        if await ended(call, _STOP_GRACE):
            return
        self._stuck += 1
        self._changed.set()
        text = "observer %r does not return: %d of its %d places hang"
        self._say(logging.ERROR, "stuck", text, self._stuck, self._terms.concurrency)
        try:
            await ended(call, None)
        finally:
            self._stuck -= 1

    # ---------------------------------------------------------------------------------- the end

    async def drain(self, until: float, *, patient: bool = True) -> bool:
        """Wait until the lane is idle; False at `until` (loop time).

        Without patience, also False as soon as only calls that hang are left to wait for.
        """
        try:
            async with asyncio.timeout_at(until):
                while not self.idle:
                    if not patient and self._stuck == self._terms.concurrency:
                        return False
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, until: float) -> None:
        """Deliver what is queued, cancel the rest, and close the observer, all before `until`."""
        self._closed = True
        # What is kept for the handlers that must be cancelled, and for the observer's own close.
        reserve = min(1.0, (until - asyncio.get_running_loop().time()) / 4)
        dropped = self.inbox.dropped
        try:
            if self._tasks:
                await self.drain(until - reserve, patient=False)
        finally:
            self.inbox.clear()
            for task in self._tasks:
                task.cancel()
        hanging = await self._calls.abandon(until - reserve / 2)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if lost := self.inbox.dropped - dropped:
            text = "observer %r is closed and %d of its events are lost"
            self._say(logging.WARNING, "lost", text, lost)
        if hanging:
            text = "observer %r is closed and %d of its calls are left behind: they do not return"
            self._say(logging.ERROR, "left", text, hanging)
        if self._started and self._target.close is not None:
            self._started = False
            await self._close(self._target.close, until)

    async def _close(self, step: Step, until: float) -> None:
        call = self._calls.begin(step, Context())
        if await ended(call, until - asyncio.get_running_loop().time()):
            error = error_of(call)
        else:
            error = TimeoutError()
            await self._calls.abandon(until)
        if error is not None:
            self._say(logging.WARNING, "close", "observer %r did not close: %s", summary(error))

    def _say(self, level: int, kind: str, text: str, *values: object) -> None:
        self._journal.say(level, kind, self.name, text, self.name, *values)

    def _spawn(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None]
    ) -> None:
        # An empty context: the worker outlives whatever run happened to start it.
        task = loop.create_task(work, name=f"stanchion observer {self.name}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
