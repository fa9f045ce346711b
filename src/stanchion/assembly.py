"""The parts of a bus, made for each other, opened and closed in their order."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stanchion.administration import Administration
from stanchion.asking import Asking
from stanchion.chain import Chain
from stanchion.custody import Custody
from stanchion.denials import LONGEST, Denials
from stanchion.epochs import EpochWatch
from stanchion.heartbeat import Heartbeat
from stanchion.local import LocalShares
from stanchion.observers import ControlListener, ObserverManager
from stanchion.observers.registration import enrol
from stanchion.observers.terms import span
from stanchion.prefetching import Prefetching
from stanchion.receiving import Intake
from stanchion.reporting import failure_of
from stanchion.resync import CircuitStates
from stanchion.settling import Settler
from stanchion.waiting import WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta

    from stanchion.chain import AnyPolicy
    from stanchion.events import Event
    from stanchion.observers import AnyObserver, Registration
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store


class Parts:
    """What a bus is made of; the arguments are those of `EventBus`."""

    def __init__(
        self,
        store: Store,
        keyspace: Keyspace,
        *,
        policies: Iterable[AnyPolicy],
        observers: Iterable[AnyObserver | Registration],
        deadline: float,
        processes: int | None,
        redact: Iterable[str],
        cache_denials: bool,
    ) -> None:
        self.store = store
        self._spread, self._deadline = keyspace.sharding is not None, deadline
        self.local = LocalShares(keyspace, processes, deadline=deadline)
        self.observers = ObserverManager(redact=redact)
        notify = self.observers.notify
        self.chain = Chain(keyspace, policies, Intake(self.local, store, keyspace, notify))
        enrol(self.observers, observers, store, keyspace.namespace, self.chain)
        self.epochs = EpochWatch(store, keyspace, notify=notify, lost=self._state_lost)
        self._states = CircuitStates(store)
        self.listener = ControlListener(
            store, keyspace.namespace, notify=notify, resync=self._resync
        )
        self.denials = Denials(store, keyspace) if cache_denials else None
        if cache_denials:
            store.keep_denials(LONGEST)
        self._numbers = itertools.count()
        self.prefetching = Prefetching(
            store, keyspace, self.denials, self.permit_id, deadline=deadline
        )
        self.asking = Asking(
            self.chain,
            store,
            self.local,
            self.prefetching,
            self.denials,
            namespace=keyspace.namespace,
            deadline=deadline,
            permits=self.permit_id,
            failed=self._policy_failed,
        )
        self.settler = Settler(
            self.chain,
            store,
            self.local,
            self.prefetching,
            self.denials,
            keyspace,
            deadline=deadline,
            failed=self._policy_failed,
        )
        self.waiting = WaitingRoom(self.asking.decide, store, keyspace)
        self.administration = Administration(self.chain, store, keyspace)
        heartbeat = Heartbeat(store.twin, self.settler.parts, time.monotonic)
        self.custody = Custody(self.chain, store, self.settler, heartbeat)

    def forget_denials(self) -> None:
        """Ask anew what has been denied."""
        if self.denials is not None:
            self.denials.forget()

    async def open(self) -> None:
        """Connect and start the observers.

        Raises:
            ConfigError: other processes spread the namespace otherwise.
        """
        await self.store.open()
        try:
            await self.local.open()
            await self.observers.start()
            await self.listener.start()
            await self.epochs.start()
            if self._spread:
                # Whoever looks elsewhere for a subject must not decide at all.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._deadline):
                        await self.epochs.looked()
                self.epochs.check()
        except BaseException:
            await self.epochs.close()
            await self.listener.close()
            await self.observers.close(0.0)
            await self.local.close()
            await self.store.close()
            raise

    async def close(self, drain: timedelta | float | str = 5.0) -> None:
        """Finish what is under way, let observers drain, and let go of every connection.

        Raises:
            ConfigError: `drain` is no duration; nothing is closed then.
        """
        left = span(drain, field="drain")
        await self.epochs.close()
        await self.waiting.close()
        await self.custody.close()
        await self.asking.close()
        await self.prefetching.close()
        if self.denials is not None:
            await self.denials.close()
        await self.listener.close()
        await self.observers.close(left)
        await self.local.close()
        await self.store.close()

    def permit_id(self) -> str:
        """Get a name for an admission that no other has."""
        return f"{self.store.worker}-{next(self._numbers):x}"

    async def _resync(self, key: str | None = None, /) -> Iterable[Mapping[str, str]]:
        if key is None:
            # Whoever has to subscribe anew may have come to another server, or an empty one.
            self.epochs.look()
        return await self._states(key)

    def _state_lost(self, tag: str) -> None:
        self.forget_denials()
        self.prefetching.drop(tag)

    def _policy_failed(self, name: str, event: Event, error: BaseException) -> None:
        self.observers.notify(failure_of(name, event, error))
