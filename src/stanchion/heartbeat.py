"""Keeping leases alive from a thread of its own, so that a blocked event loop loses nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.errors import StanchionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.permit import Permit
    from stanchion.store.protocol import Part, Store

_log = logging.getLogger("stanchion.bus")
_MICROS = 1_000_000
# A lease is renewed when a third of it has passed: two tries can fail before it ends.
_SHARE = 3
_LONGEST_NAP = 3600.0


@dataclass(slots=True, eq=False)
class _Kept:
    """A permit whose leases are being kept, in the thread's own time."""

    permit: Permit
    lease: float
    due: float
    ends: float


class Heartbeat:
    """Renews the leases of the permits that a process holds, until they are let go.

    The thread starts with the first permit that has a lease, and uses connections of its own;
    `parts` tells it what of a permit is to be renewed, once that is due. A permit whose lease has
    ended, or may have while Redis did not answer, is marked lost.
    """

    def __init__(
        self,
        twin: Callable[[], Store],
        parts: Callable[[Permit], tuple[Part, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._twin = twin
        self._parts = parts
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stirred: asyncio.Event | None = None
        self._stopping = False

    def keep(self, permit: Permit) -> None:
        """Keep a permit's leases alive from now on; returns at once."""
        leases = [hold.expires_us - permit.admitted_us for hold in permit.holds if hold.expires_us]
        if not leases:
            return
        lease, now = min(leases) / _MICROS, self._clock()
        kept = _Kept(permit, lease, now + lease / _SHARE, now + lease)
        with self._lock:
            self._kept[permit.id] = kept
            sooner = kept.due < self._wakes_at
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="stanchion-heartbeat", daemon=True
                )
                self._thread.start()
        if sooner:
            self._stir()

    def let_go(self, permit: Permit) -> None:
        """Stop keeping a permit's leases; returns at once."""
        with self._lock:
            self._kept.pop(permit.id, None)

    async def close(self) -> None:
        """Stop the thread."""
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        self._stir()
        await asyncio.to_thread(thread.join)
        self._thread = None

    def _stir(self) -> None:
        loop, stirred = self._loop, self._stirred
        if loop is not None and stirred is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stirred.set)

    def _run(self) -> None:
        asyncio.run(self._beat())

    async def _beat(self) -> None:
        self._loop, self._stirred = asyncio.get_running_loop(), asyncio.Event()
        store = self._twin()
        await store.open()
        try:
            while not self._stopping:
                await self._renew_due(store)
                await self._nap(self._stirred)
        finally:
            await store.close()

    async def _nap(self, stirred: asyncio.Event) -> None:
        with self._lock:
            soonest = min((kept.due for kept in self._kept.values()), default=None)
            nap = _LONGEST_NAP if soonest is None else max(0.0, soonest - self._clock())
            self._wakes_at = self._clock() + nap
        try:
            async with asyncio.timeout(nap):
                await stirred.wait()
        except TimeoutError:
            pass
        stirred.clear()

    async def _renew_due(self, store: Store) -> None:
        now = self._clock()
        with self._lock:
            due = [kept for kept in self._kept.values() if kept.due <= now]
        # Together, so that they travel in one script call.
        await asyncio.gather(*(self._renew(store, kept) for kept in due))

    async def _renew(self, store: Store, kept: _Kept) -> None:
        started = self._clock()
        try:
            ends = await store.renew(kept.permit.id, self._parts(kept.permit))
        except StanchionError as error:
            _log.warning("leases of permit %s were not renewed: %s", kept.permit.id, error)
            if self._clock() >= kept.ends:
                self._lose(kept, "Redis did not answer while its lease ran out")
            kept.due = self._clock() + min(kept.lease / _SHARE / 4, 1.0)
            return
        if 0 in ends:
            self._lose(kept, "its lease ended")
            return
        kept.due, kept.ends = started + kept.lease / _SHARE, started + kept.lease

    def _lose(self, kept: _Kept, why: str) -> None:
        kept.permit.mark_lost()
        self.let_go(kept.permit)
        _log.warning("permit %s is lost: %s", kept.permit.id, why)
