"""Waiting for admission: first come, first served across processes, woken rather than polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stanchion.decisions import Decision
from stanchion.errors import StanchionError
from stanchion.store.protocol import Operation, Place, Published

if TYPE_CHECKING:
    from stanchion.events import Event
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
# A place in line is kept for so long without a sign of life, and renewed three times as often.
_LEASE_US = 3_000_000
_RENEW = 1.0


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting event: its id, its ticket, and the operations whose subjects it waits for."""

    id: str
    ticket: int = 0
    operations: tuple[Operation, ...] = ()
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def place(self) -> Place:
        """The place that it asks for, or has."""
        return Place(self.ticket, _LEASE_US)


Decide = Callable[["Event", str, Waiter], Awaitable[Decision]]


class WaitingRoom:
    """Where the waiters of one process sleep until their turn may have come."""

    def __init__(self, decide: Decide, store: Store, keyspace: Keyspace) -> None:
        self._decide = decide
        self._store = store
        self._channel = keyspace.wake
        self._waiters: dict[str, list[Waiter]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    async def admit(self, event: Event, id: str, wait: float) -> Decision:
        """Get the decision about an event, after waiting in line for up to `wait` seconds."""
        until = asyncio.get_running_loop().time() + wait
        waiter, decision = Waiter(id), Decision(allowed=False)
        try:
            # The first try joins the line; the second one, when listening, misses no waking.
            decision = await self._decide(event, waiter.id, waiter)
            if not decision.allowed and decision.retry_after is not None:
                await self._enter(waiter, until)
            while not decision.allowed and decision.retry_after is not None:
                decision = await self._decide(event, waiter.id, waiter)
                if decision.allowed or not await self._sleep(waiter, decision, until):
                    break
        finally:
            self._exit(waiter, admitted=decision.allowed)
        return decision

    async def _enter(self, waiter: Waiter, until: float) -> None:
        """Be woken from now on when something is freed for which the waiter stands in line."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        for operation in waiter.operations:
            self._waiters.setdefault(operation.key, []).append(waiter)
        try:
            async with asyncio.timeout_at(until):
                await self._listening.wait()
        except TimeoutError:
            return

    async def _sleep(self, waiter: Waiter, decision: Decision, until: float) -> bool:
        """Sleep until woken, or until it is time to try again; False when the wait is over."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        hint = decision.retry_after
        pause = min(left, _RENEW, _RENEW if hint is None else hint)
        try:
            async with asyncio.timeout(pause):
                await waiter.woken.wait()
        except TimeoutError:
            pass
        waiter.woken.clear()
        return True

    def _exit(self, waiter: Waiter, *, admitted: bool) -> None:
        """Forget a waiter, and give up its place unless it was admitted; returns at once."""
        for operation in waiter.operations:
            others = self._waiters.get(operation.key, [])
            if waiter in others:
                others.remove(waiter)
            if not others:
                self._waiters.pop(operation.key, None)
            elif admitted:
                # The waking that this admission published may have come while it was listed here.
                self._wake(operation.key)
        if not admitted and waiter.ticket:
            task = asyncio.create_task(self._leave(waiter))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Stop listening, after the places given up have been told."""
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    async def _leave(self, waiter: Waiter) -> None:
        try:
            await self._store.leave(waiter.id, waiter.operations)
        except StanchionError as error:
            _log.warning("a place in line was not given up and ends with its lease: %s", error)

    async def _listen(self) -> None:
        async with self._store.subscribe(self._channel) as messages:
            async for message in messages:
                if isinstance(message, Published):
                    self._wake(message.payload.decode("utf-8", "replace"))
                    continue
                # What was published while nobody listened is lost, so everybody tries again.
                self._listening.set()
                for key in list(self._waiters):
                    self._wake(key)

    def _wake(self, key: str) -> None:
        waiting = self._waiters.get(key)
        if waiting:
            min(waiting, key=lambda waiter: waiter.ticket).woken.set()
