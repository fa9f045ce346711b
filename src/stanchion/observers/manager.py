"""The observability tier: who is told what happened, without anybody waiting for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, cast

from stanchion.errors import ConfigError, StanchionError
from stanchion.observers.directory import Directory, selection
from stanchion.observers.dispatch import Dispatch, Phase
from stanchion.observers.inbox import Overflow
from stanchion.observers.journal import Journal
from stanchion.observers.lane import Lane
from stanchion.observers.redaction import Redaction
from stanchion.observers.retry import Quarantine, Retry
from stanchion.observers.stats import Unfinished
from stanchion.observers.target import Target
from stanchion.observers.terms import Terms, span
from stanchion.observers.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta
    from types import TracebackType

    from stanchion.events import Event, Selector
    from stanchion.observers.stats import ObserverStats
    from stanchion.observers.target import AnyObserver

_RETIRE: Final = 5.0  # seconds for what an unregistered observer has in its queue
_QUARANTINE: Final = Quarantine()


class ObserverManager:
    """Tells observers what happened: concurrently, bounded, and without delaying the teller.

    Each observer has a queue and workers of its own, so one that raises, hangs, blocks or is too
    slow loses its own events and nobody else's. The events of one `run_id` reach an observer in the
    order in which they were notified; with a `concurrency` of 1, all events do.

    Use it as `async with`, or call `start` and `close`. What is notified before the start waits in
    the queues of the observers that are registered by then.
    """

    def __init__(self, *, redact: Iterable[str] = ()) -> None:
        """Make a manager without observers.

        Args:
            redact: names or globs of fields whose values no observer gets to see, at any depth and
                in whatever case; dotted for fields of fields, as in "metadata.api_key".

        Raises:
            ConfigError: `redact` is not a collection of names.
        """
        # Reentrant: a finalizer or a signal handler may notify while this thread holds it.
        self._lock = threading.RLock()
        self._directory = Directory(self._lock)
        self._threads = Threads("stanchion-observer")
        self._journal = Journal()
        self._dispatch = Dispatch(
            self._directory, self._lock, self._journal, self._end_without_close
        )
        self._redaction = Redaction(redact) or None
        self._retired: dict[Lane, asyncio.Task[None]] = {}
        self._closing: asyncio.Task[Mapping[str, Unfinished]] | None = None

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
        queue: int | None = None,
        concurrency: int = 1,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
        block_for: timedelta | float | str = 1.0,
        batch_size: int | None = None,
        batch_delay: timedelta | float | str | None = None,
        priority: Selector | None = None,
        retry: Retry | bool | None = None,
        quarantine: Quarantine | int | None = _QUARANTINE,
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
            queue: how many events may wait; by default 1000, or two batches where that is more.
            concurrency: how many calls may run at once; never two for one `run_id`.
            overflow: which event gives way when the queue is full, or "block" for tellers that can
                wait: other threads, and `notify_with_backpressure`.
            block_for: seconds that they wait before the newest event gives way after all.
            batch_size: the most events in one call; by default what the observer says.
            batch_delay: seconds that a batch may wait to fill; by default what the observer says,
                or else 0.
            priority: events that end such a wait, and that give way only to each other.
            retry: True or a `Retry` to call again with what was not delivered, False never to do
                so. By default everything where the observer is `idempotent`, and otherwise what it
                names in `Undelivered`.
            quarantine: after how many failures in a row it is only probed; None for never.

        Raises:
            ConfigError: an argument cannot work, such as a `queue` smaller than a batch that waits
                to fill, or the name is taken.
            StanchionError: the manager is closed.
        """
        target = Target.of(observer)
        selector = selection(target.on if on is None else on)
        terms = Terms.of(
            target,
            timeout=timeout,
            queue=queue,
            concurrency=concurrency,
            overflow=overflow,
            block_for=block_for,
            batch_size=batch_size,
            batch_delay=batch_delay,
            priority=priority,
            retry=retry,
            quarantine=quarantine,
        )
        with self._lock:
            self._refuse_if_closed("nothing can be registered")
            name = self._free_name(name, target.label)
            lane = Lane(
                name,
                target,
                terms,
                lock=self._lock,
                threads=self._threads,
                journal=self._journal,
                redaction=self._redaction,
            )
            self._directory.add(lane, selector)
        if self._dispatch.phase is Phase.OPEN:
            lane.show(self)
        self._dispatch.in_loop(lane.open)
        return name

    def unregister(self, name: str) -> None:
        """Send the observer nothing more; it has 5 s for what is already in its queue.

        Raises:
            ConfigError: there is no observer of that name.
        """
        lane = self._directory.remove(name)
        self._dispatch.in_loop(lambda loop: self._retire(lane, loop))

    def wants(self, kind: type[Event]) -> bool:
        """Whether any observer is to be told of events of this class; if none is, make none."""
        return self._directory.wants(kind)

    def stats(self) -> Mapping[str, ObserverStats]:
        """Get the counters of every registered observer by name, also after `close`."""
        return MappingProxyType({name: lane.stats for name, lane in self._directory.all().items()})

    # ----------------------------------------------------------------------------- notification

    def notify(self, event: Event) -> None:
        """Hand an event to the observers that want it; returns at once and never raises.

        May be called from any thread, before the start, and after the end, where the event counts
        as dropped. Each observer runs with a copy of the caller's context variables.

        In a thread without a running event loop it waits for an observer whose queue is full and
        whose `overflow` is "block", `block_for` seconds at the most. It never blocks an event loop.
        """
        self._dispatch.tell(event)

    async def notify_with_backpressure(self, event: Event) -> None:
        """Hand an event to the observers, and wait for those who ask for it to have room.

        Only observers whose `overflow` is "block" are waited for, each `block_for` seconds at the
        most; then the event counts as dropped there. Never raises. Who is cancelled while waiting
        has notified all the same.
        """
        await self._dispatch.tell_and_wait(event)

    # ------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Begin to deliver; calling it twice is harmless.

        Raises:
            StanchionError: the manager is closed.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._refuse_if_closed("they cannot be started again")
            if self._dispatch.phase is Phase.OPEN:
                return
            self._dispatch.open(loop)
        for lane in self._directory.all().values():
            lane.show(self)
            lane.open(loop)
            lane.report()

    async def drain(self, timeout: timedelta | float | str = 5.0) -> bool:
        """Wait until every queue is empty and every call has ended; False when the time is up.

        Batches that wait to fill are sent as they are.
        """
        until = asyncio.get_running_loop().time() + span(timeout)
        while busy := [lane for lane in self._directory.all().values() if not lane.idle]:
            # One, and then all again: handlers may notify too.
            if not await busy[0].drain(until):
                return False
        return True

    async def close(self, drain: timedelta | float | str = 5.0) -> Mapping[str, Unfinished]:
        """Take nothing more, deliver what waits for up to `drain` seconds, and get what was lost.

        The result has an entry for every observer that lost events, left calls behind or did not
        close; it is empty when all went well. What is lost is counted and logged, too. It returns
        in time also where a call hangs: a task is cancelled, a thread that does not return is left
        behind and ends with the process. An observer in quarantine gets one last probe. Calling it
        twice is harmless; the second call waits for the first.

        Raises:
            StanchionError: the manager was started in another event loop, which still runs.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + span(drain, field="drain")
        if self._closing is None:
            started_in = self._dispatch.loop
            if started_in is not None and started_in is not loop:
                if not started_in.is_closed():
                    raise StanchionError("close the observers in the event loop that started them")
                return self._end_without_close()
            with self._lock:
                self._dispatch.phase = Phase.CLOSED
                for lane in (*self._directory.all().values(), *self._retired):
                    lane.inbox.let_go()
            self._closing = loop.create_task(self._close(until), context=Context())
        return await asyncio.shield(self._closing)

    async def _close(self, until: float) -> Mapping[str, Unfinished]:
        retiring = list(self._retired.values())
        for task in retiring:
            task.cancel()
        lanes = (*self._directory.all().values(), *self._retired)
        try:
            await asyncio.gather(*retiring, return_exceptions=True)
            reports = await asyncio.gather(*(lane.close(until) for lane in lanes))
        finally:
            self._threads.close()
        return _unfinished(zip(lanes, reports, strict=True))

    def _end_without_close(self) -> Mapping[str, Unfinished]:
        with self._lock:
            if self._dispatch.phase is Phase.CLOSED:
                return _unfinished(())
            self._dispatch.phase = Phase.CLOSED
            lanes = self._directory.all().values()
            lost = [(lane, Unfinished(lane.abandon())) for lane in lanes]
        self._threads.close()
        text = "the observers' event loop has ended without `close`: %d events are lost"
        number = sum(unfinished.events for _, unfinished in lost)
        self._journal.say(logging.ERROR, "loop", "close", text, number)
        return _unfinished(lost)

    # ---------------------------------------------------------------------------------- private

    def _refuse_if_closed(self, what: str) -> None:
        loop = self._dispatch.loop
        if loop is not None and loop.is_closed():
            self._end_without_close()
        if self._dispatch.phase is Phase.CLOSED:
            raise StanchionError(f"the observers are closed: {what}")

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


def _unfinished(reports: Iterable[tuple[Lane, Unfinished]]) -> Mapping[str, Unfinished]:
    found: dict[str, Unfinished] = {}
    for lane, report in reports:
        if report != Unfinished():
            # One that was unregistered may share its name with one that came after it.
            before = found.get(lane.name, Unfinished())
            found[lane.name] = Unfinished(
                before.events + report.events,
                before.calls + report.calls,
                report.error or before.error,
            )
    return MappingProxyType(found)
