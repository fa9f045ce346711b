"""The teller's side: an event is appended to the queues of those who want it, and they are woken.

This is what happens in the time of whoever notifies, so there is little of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future, wait
from contextvars import copy_context
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from stanchion.events import Event
from stanchion.observers.notice import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.observers.directory import Directory, Route
    from stanchion.observers.journal import Journal
    from stanchion.observers.lane import Lane

_NOTHING: Final[tuple[Held, ...]] = ()


class Phase(Enum):
    """Where in its life the manager is."""

    NEW = auto()
    OPEN = auto()
    CLOSED = auto()


class Held(NamedTuple):
    """An event that found a full queue whose observer lets its tellers wait."""

    lane: Lane
    notice: Notice
    urgent: bool


class Dispatch:
    """Puts events into lanes from any thread, and tells the loop that they are there."""

    def __init__(
        self,
        directory: Directory,
        lock: threading.RLock,
        journal: Journal,
        abandoned: Callable[[], object],
    ) -> None:
        self._directory = directory
        self._lock = lock
        self._owned = threading.Condition(lock)
        self._journal = journal
        self._abandoned = abandoned
        self._loop_thread = 0
        self._tick_due = False
        self.phase = Phase.NEW
        self.loop: asyncio.AbstractEventLoop | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake lanes by way of this loop, which is that of the current thread, from now on."""
        self.phase = Phase.OPEN
        self.loop, self._loop_thread = loop, threading.get_ident()

    def in_loop(self, function: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        """Call a function in the loop, at once if this is its thread; not unless it is open."""
        loop = self.loop
        if loop is None or loop.is_closed() or self.phase is not Phase.OPEN:
            return
        if threading.get_ident() == self._loop_thread:
            function(loop)
        else:
            loop.call_soon_threadsafe(function, loop)

    # ----------------------------------------------------------------------------------- telling

    def tell(self, event: Event) -> None:
        """Append an event to the queues of those who want it; never raises.

        Waits for room where an observer asks for that, if this thread has no running event loop
        that waiting would stop.
        """
        for held in self._append(event):
            if self._may_wait():
                self._wait(held)
            else:
                self._put(held)

    async def tell_and_wait(self, event: Event) -> None:
        """Do the same, and let the event loop run while it waits for room."""
        held = list(self._append(event))
        try:
            while held:
                await self._wait_in_loop(held[0])
                del held[0]
        except asyncio.CancelledError:
            # Some observers have the event; that the others get it, too, waits for nobody.
            for one in held:
                self._put(one)
            raise

    def _append(self, event: Event) -> tuple[Held, ...] | list[Held]:
        route = self._directory.routes.get(type(event))
        if route is None:
            route = self._find(event)
        if not route:
            return _NOTHING
        notice = Notice(event, copy_context())
        overflows, held = False, _NOTHING
        with self._lock:
            phase = self.phase
            for lane, urgent in route:
                inbox = lane.inbox
                if phase is Phase.CLOSED:
                    inbox.refuse()
                elif inbox.blocks and inbox.full:
                    held = [*held, Held(lane, notice, urgent)]
                else:
                    overflows |= inbox.put(notice, urgent=urgent)
        if phase is Phase.OPEN:
            self._wake(route, report=overflows)
        elif phase is Phase.CLOSED:
            self._say_closed(event)
        return held

    def _find(self, event: Event) -> Route:
        if isinstance(cast("object", event), Event):
            return self._directory.route(event)
        text = "notify takes events: a %s is ignored"
        self._journal.say(logging.ERROR, "type", "notify", text, type(event).__qualname__)
        return ()

    def _say_closed(self, event: Event) -> None:
        text = "the observers are closed: a %s is dropped"
        self._journal.say(logging.WARNING, "closed", "notify", text, event.event_type)

    # ----------------------------------------------------------------------- waiting for room

    def _may_wait(self) -> bool:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            return False
        # A finalizer may run, and notify, in the middle of whatever holds the lock. To wait then
        # would stop everybody. A condition alone tells who holds its lock.
        with contextlib.suppress(RuntimeError):
            self._owned.notify(0)
            return False
        return True

    def _wait(self, held: Held) -> None:
        while (left := self._left(held)) > 0 and (
            room := self._put(held, patient=True)
        ) is not None:
            wait((room,), timeout=left)
            room.cancel()
        if left <= 0:
            self._put(held)

    async def _wait_in_loop(self, held: Held) -> None:
        while (left := self._left(held)) > 0 and (
            room := self._put(held, patient=True)
        ) is not None:
            try:
                await asyncio.wait((asyncio.wrap_future(room),), timeout=left)
            finally:
                room.cancel()
        if left <= 0:
            self._put(held)

    @staticmethod
    def _left(held: Held) -> float:
        return held.notice.at + held.lane.block_for - monotonic()

    def _put(self, held: Held, *, patient: bool = False) -> Future[None] | None:
        """Put the event into its queue or, with patience, get what is done when there is room."""
        overflows = False
        with self._lock:
            # Of the manager, or of an observer that was unregistered meanwhile.
            is_over = self.phase is Phase.CLOSED or held.lane.closed
            phase, inbox = self.phase, held.lane.inbox
            if is_over:
                inbox.refuse()
            elif patient and inbox.full:
                return inbox.room()
            else:
                overflows = inbox.put(held.notice, urgent=held.urgent)
        if is_over:
            self._say_closed(held.notice.event)
        elif phase is Phase.OPEN:
            self._wake(((held.lane, held.urgent),), report=overflows)
        return None

    # -------------------------------------------------------------------------------- waking

    def _wake(self, route: Route, *, report: bool) -> None:
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        if loop.is_closed():
            self._abandoned()
        elif threading.get_ident() != self._loop_thread:
            self._knock(loop)
        else:
            for lane, _ in route:
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
