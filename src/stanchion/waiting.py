"""Waiting for admission: first come, first served across processes, woken rather than polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stanchion.decisions import Decision, Reason
from stanchion.errors import StanchionError
from stanchion.store.protocol import Operation, Place, Published, Reply

if TYPE_CHECKING:
    from stanchion.events import Event
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
# A place in line is kept for so long without a sign of life, and renewed three times as often.
_LEASE_US = 3_000_000
_RENEW = 1.0
# A custom policy may advise to come again at once, and again.
_LEAST = 0.001


@dataclass(slots=True, eq=False)
class Waiter:
    """One waiting event: its id, its ticket, and the operations that it has asked for by now.

    `refused` are the keys in whose lines it stands. `spent` says that the permit's id with which
    it last tried was admitted and given back, and so cannot be admitted again. `heard` are the
    keys of wakings that came while it was asking, None while it is not.
    """

    id: str
    ticket: int = 0
    operations: tuple[Operation, ...] = ()
    spent: bool = False
    refused: frozenset[str] = frozenset()
    heard: set[str] | None = None
    listed: set[str] = field(default_factory=set[str])
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def place(self) -> Place:
        """The place that it asks for, or has."""
        return Place(self.id, self.ticket, _LEASE_US)

    def stand_for(self, operations: tuple[Operation, ...]) -> None:
        """Note operations that it is about to ask for; those asked for before stay noted."""
        known = {operation.key for operation in self.operations}
        self.operations += tuple(one for one in operations if one.key not in known)

    def heed(self, operations: tuple[Operation, ...], reply: Reply) -> None:
        """Note which of these refused it, as it was told."""
        pairs = list(zip(operations, reply.operations, strict=True))
        asked = {one.key for one, _ in pairs}
        refused = {one.key for one, told in pairs if told.reason != Reason.OK and not one.shadow}
        self.refused = frozenset(self.refused - asked | refused)


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
        waiter, decision, permit = Waiter(id), Decision(allowed=False), id
        try:
            # The first try joins the line; the second one, when listening, misses no waking.
            decision = await self._decide(event, permit, waiter)
            if _hopeful(decision):
                await self._enter(waiter, until)
                going_on = True
                while going_on:
                    if waiter.spent:
                        permit, waiter.spent = _next(permit), False
                    decision = await self._try(event, permit, waiter)
                    going_on = _hopeful(decision) and await self._sleep(waiter, decision, until)
        finally:
            self._exit(waiter, admitted=decision.allowed)
        return decision

    async def _enter(self, waiter: Waiter, until: float) -> None:
        """Be woken from now on when something is freed for which the waiter stands in line."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        self._list(waiter)
        try:
            async with asyncio.timeout_at(until):
                await self._listening.wait()
        except TimeoutError:
            return

    async def _try(self, event: Event, permit: str, waiter: Waiter) -> Decision:
        before, waiter.heard = waiter.refused, set()
        decision = await self._decide(event, permit, waiter)
        heard, waiter.heard = waiter.heard, None
        # It may stand in other lines now: what came meanwhile was for it, or for the next.
        for key in heard | (before - waiter.refused):
            self._wake(key)
        return decision

    def _list(self, waiter: Waiter) -> bool:
        """Have it woken for all that it has asked for by now; whether any of that is new."""
        new = {operation.key for operation in waiter.operations} - waiter.listed
        for key in new:
            self._waiters.setdefault(key, []).append(waiter)
        waiter.listed |= new
        return bool(new)

    async def _sleep(self, waiter: Waiter, decision: Decision, until: float) -> bool:
        """Sleep until woken, or until it is time to try again; False when the wait is over."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        if self._list(waiter):
            # Refused by what it had not come to before: what was freed meanwhile went unheard.
            return True
        pause = min(left, _RENEW, max(_LEAST, decision.retry_after or 0.0))
        try:
            async with asyncio.timeout(pause):
                await waiter.woken.wait()
        except TimeoutError:
            pass
        waiter.woken.clear()
        return True

    def _exit(self, waiter: Waiter, *, admitted: bool) -> None:
        """Forget a waiter, and give up its place unless it was admitted; returns at once."""
        for key in waiter.listed:
            others = self._waiters[key]
            others.remove(waiter)
            if not others:
                del self._waiters[key]
            elif admitted:
                # The waking that this admission published may have come while it was listed here.
                self._wake(key)
        if not admitted:
            self._give_up(waiter)

    def _give_up(self, waiter: Waiter) -> None:
        """Have the place in every line given up, in the background."""
        if waiter.ticket:
            waiter.ticket = 0
            task = asyncio.create_task(self._leave(waiter.id, waiter.operations))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Stop listening, and have the places given up of all who still wait."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
            self._listening.clear()
        for waiter in {waiter for others in self._waiters.values() for waiter in others}:
            self._give_up(waiter)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _leave(self, id: str, operations: tuple[Operation, ...]) -> None:
        try:
            await self._store.leave(id, operations)
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
        standing: list[Waiter] = []
        for waiter in self._waiters.get(key, ()):
            if key in waiter.refused:
                standing.append(waiter)
            if waiter.heard is not None:
                waiter.heard.add(key)
        if standing:
            min(standing, key=lambda waiter: waiter.ticket).woken.set()


def _next(permit: str) -> str:
    """Get the id of a permit for the next try of the same waiter."""
    stem, _, number = permit.partition(".")
    return f"{stem}.{int(number or 0) + 1}"


def _hopeful(decision: Decision) -> bool:
    """Get whether waiting may turn a veto into an admission."""
    return not decision.allowed and decision.retry_after is not None
