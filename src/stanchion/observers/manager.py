"""The observability tier: who is told what happened, without anybody waiting for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from contextvars import Context, copy_context
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, cast

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import Event
from stanchion.observers.directory import Directory, selection
from stanchion.observers.inbox import Overflow
from stanchion.observers.journal import Journal
from stanchion.observers.lane import Lane
from stanchion.observers.target import Target
from stanchion.observers.terms import Terms, span
from stanchion.observers.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta
    from types import TracebackType

    from stanchion.events import Selector
    from stanchion.observers.lane import ObserverStats
    from stanchion.observers.target import AnyObserver

_RETIRE: Final = 5.0  # seconds for what an unregistered observer has in its queue


class _Phase(Enum):
    NEW = auto()
    OPEN = auto()
    CLOSED = auto()


class ObserverManager:
    """Tells observers what happened: concurrently, bounded, and without delaying the teller.

    Each observer has a queue and workers of its own, so one that raises, hangs, blocks or is too
    slow loses its own events and nobody else's. An observer whose `concurrency` is 1 gets them in
    the order in which they were notified.

    Use it as `async with`, or call `start` and `close`. What is notified before the start waits in
    the queues of the observers that are registered by then.
    """

    def __init__(self) -> None:
        # Reentrant: a finalizer or a signal handler may notify while this thread holds it.
        self._lock = threading.RLock()
        self._directory = Directory(self._lock)
        self._phase = _Phase.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._tick_due = False
        self._threads = Threads("stanchion-observer")
        self._journal = Journal()
        self._retired: dict[Lane, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # ----------------------------------------------------------------------------- registration

    def register(
        self,
        observer: AnyObserver,
        *,
        on: Selector | None = None,
        name: str | None = None,
        timeout: timedelta | float | str = 5.0,
        queue: int = 1000,
        concurrency: int = 1,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
    ) -> str:
        """Send events to `observer` from now on; get the name under which it is registered.

        `observer` is an object with `async handle(event)`, one with `async handle_batch(events)`
        and a `batch_size`, or a callable. What is `async` runs in the event loop; a plain function
        runs in a thread, so it may block. The manager keeps a strong reference.

        Args:
            observer: who is told.
            on: an event class (its subclasses count), a type, a glob such as "llm:*", or a tuple
                of these; by default what the observer itself names as `on`, or else everything.
            name: for `stats`, `unregister` and the log; by default made from the observer.
            timeout: seconds that one call may take before it is cancelled.
            queue: how many events may wait.
            concurrency: how many calls may run at once.
            overflow: which event gives way when the queue is full.

        Raises:
            ConfigError: an argument cannot work, or the name is taken.
            StanchionError: the manager is closed.
        """
        target = Target.of(observer)
        selector = selection(target.on if on is None else on)
        terms = Terms.of(timeout=timeout, queue=queue, concurrency=concurrency, overflow=overflow)
        with self._lock:
            self._refuse_if_closed("nothing can be registered")
            name = self._free_name(name, target.label)
            lane = Lane(name, target, terms, self._threads, self._journal)
            self._directory.add(lane, selector)
        self._in_loop(lane.open)
        return name

    def unregister(self, name: str) -> None:
        """Send the observer nothing more; it has 5 s for what is already in its queue.

        Raises:
            ConfigError: there is no observer of that name.
        """
        lane = self._directory.remove(name)
        self._in_loop(lambda loop: self._retire(lane, loop))

    def stats(self) -> Mapping[str, ObserverStats]:
        """Get the counters of every registered observer by name, also after `close`."""
        return MappingProxyType({name: lane.stats for name, lane in self._directory.all().items()})

    # ----------------------------------------------------------------------------- notification

    def notify(self, event: Event) -> None:
        """Hand an event to the observers that want it; returns at once and never raises.

        May be called from any thread, before the start, and after the end, where the event counts
        as dropped. Each observer runs with a copy of the caller's context variables.
        """
        if not isinstance(cast("object", event), Event):
            text = "notify takes events: a %s is ignored"
            self._journal.say(logging.ERROR, "type", "notify", text, type(event).__qualname__)
            return
        lanes = self._directory.lanes_for(event)
        if not lanes:
            return
        entry = event, copy_context()
        overflows = False
        with self._lock:
            phase = self._phase
            for lane in lanes:
                if phase is _Phase.CLOSED:
                    lane.inbox.refuse()
                else:
                    overflows |= lane.inbox.put(entry)
        if phase is _Phase.OPEN:
            self._wake(lanes, report=overflows)
        elif phase is _Phase.CLOSED:
            text = "the observers are closed: a %s is dropped"
            self._journal.say(logging.WARNING, "closed", "notify", text, event.event_type)

    def _wake(self, lanes: tuple[Lane, ...], *, report: bool) -> None:
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        if loop.is_closed():
            self._end_without_close()
        elif threading.get_ident() != self._loop_thread:
            self._knock(loop)
        else:
            for lane in lanes:
                lane.wake()
            if report:
                # Not here: a handler of the log may take its time.
                self._knock(loop)

    def _knock(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._tick_due:
            return
        self._tick_due = True
        # RuntimeError: the loop has been closed since we looked; the next `notify` will see that.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._tick)

    def _tick(self) -> None:
        self._tick_due = False
        for lane in self._directory.all().values():
            lane.wake()
            lane.report()

    # ------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Begin to deliver; calling it twice is harmless.

        Raises:
            StanchionError: the manager is closed.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._refuse_if_closed("they cannot be started again")
            if self._phase is _Phase.OPEN:
                return
            self._phase = _Phase.OPEN
            self._loop, self._loop_thread = loop, threading.get_ident()
        for lane in self._directory.all().values():
            lane.open(loop)
            lane.report()

    async def drain(self, timeout: timedelta | float | str = 5.0) -> bool:
        """Wait until every queue is empty and every call has ended; False when the time is up."""
        until = asyncio.get_running_loop().time() + span(timeout)
        while busy := [lane for lane in self._directory.all().values() if not lane.idle]:
            # One, and then all again: handlers may notify too.
            if not await busy[0].drain(until):
                return False
        return True

    async def close(self, timeout: timedelta | float | str = 5.0) -> None:
        """Take nothing more, deliver what waits, and give up after `timeout` seconds.

        What is lost is counted and logged. It returns in time also where a call hangs: a task is
        cancelled, a thread that does not return is left behind and ends with the process. Calling
        it twice is harmless; the second call waits for the first.

        Raises:
            StanchionError: the manager was started in another event loop, which still runs.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + span(timeout)
        if self._closing is None:
            if self._loop is not None and self._loop is not loop:
                if not self._loop.is_closed():
                    raise StanchionError("close the observers in the event loop that started them")
                self._end_without_close()
                return
            with self._lock:
                self._phase = _Phase.CLOSED
            self._closing = loop.create_task(self._close(until), context=Context())
        await asyncio.shield(self._closing)

    async def _close(self, until: float) -> None:
        retiring = list(self._retired.values())
        for task in retiring:
            task.cancel()
        lanes = (*self._directory.all().values(), *self._retired)
        try:
            await asyncio.gather(*retiring, return_exceptions=True)
            await asyncio.gather(*(lane.close(until) for lane in lanes))
        finally:
            self._threads.close()

    def _end_without_close(self) -> None:
        with self._lock:
            if self._phase is _Phase.CLOSED:
                return
            self._phase = _Phase.CLOSED
            lost = sum(lane.inbox.clear() for lane in self._directory.all().values())
        self._threads.close()
        text = "the observers' event loop has ended without `close`: %d events are lost"
        self._journal.say(logging.ERROR, "loop", "close", text, lost)

    # ---------------------------------------------------------------------------------- private

    def _refuse_if_closed(self, what: str) -> None:
        if self._loop is not None and self._loop.is_closed():
            self._end_without_close()
        if self._phase is _Phase.CLOSED:
            raise StanchionError(f"the observers are closed: {what}")

    def _in_loop(self, function: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed() or self._phase is not _Phase.OPEN:
            return
        if threading.get_ident() == self._loop_thread:
            function(loop)
        else:
            loop.call_soon_threadsafe(function, loop)

    def _retire(self, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        self._retired[lane] = loop.create_task(self._let_go(lane), context=Context())

    async def _let_go(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        # Apart, because `close` cancels this and then gives the lane what time there is.
        await lane.drain(loop.time() + _RETIRE)
        await lane.close(loop.time() + _RETIRE)
        del self._retired[lane]

    def _free_name(self, name: str | None, label: str) -> str:
        if name is None:
            name, number = label, 1
            while name in self._directory:
                number += 1
                name = f"{label}-{number}"
        if not isinstance(cast("object", name), str) or not name:
            raise ConfigError.of("name", name, "expected text that is not empty")
        if name in self._directory:
            raise ConfigError.of("name", name, "an observer has this name already")
        return name
