"""From a Redis Stream to one observer: acknowledged only when the observer has the events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.observers.arguments import count
from stanchion.observers.dead_letters import Dead, DeadLetters
from stanchion.observers.journal import Journal
from stanchion.observers.manager import ObserverManager
from stanchion.observers.pubsub import NeedsChannel, RedisPublisher
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.observers.target import Target
from stanchion.observers.witness import Fate, Witness

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stanchion.events import Selector
    from stanchion.observers.registration import Registration
    from stanchion.observers.stats import ObserverStats, Unfinished
    from stanchion.observers.streams import Delivery, StreamReader
    from stanchion.observers.target import AnyObserver
    from stanchion.store.protocol import Channel

_GLANCE: Final = 0.2  # seconds between looks whether it is to end
_AT_ONCE: Final = 100
_SEARCH: Final = 30.0  # seconds of asking one by one in which nothing is taken
_SUMS: Final = ("received", "delivered", "dropped", "failed", "timed_out", "queued", "in_hand")


class Relay:
    """Reads a stream as one consumer of a group, and hands every event to one observer.

    An entry is acknowledged when the observer has its event, or when that is among the dead
    letters: the observer refused it for good; it may have taken it, and says nowhere that it may
    have an event twice; or it did not take it in `attempts` calls, and took others. An observer
    that takes nothing at all is away, and waited for.
    """

    def __init__(
        self,
        registration: Registration,
        reader: StreamReader,
        *,
        channel: Channel,
        namespace: str,
        redact: Iterable[str] = (),
        attempts: int = 12,
    ) -> None:
        """Prepare; nothing is read before `run`.

        Raises:
            ConfigError: the observer or its terms cannot work.
        """
        target = Target.of(registration.observer)
        terms: dict[str, Any] = {"name": target.label, **registration.terms}
        if isinstance(registration.observer, NeedsChannel):
            registration.observer.attach(channel, namespace)
        self._watch = target.watch
        self._witness = Witness(
            registration.observer,
            target,
            insists=target.idempotent or bool(terms.get("retry")),
            attempts=count("attempts", attempts),
        )
        size = terms.get("batch_size") or target.batch_size or 1
        most = max(size, _AT_ONCE)
        self._most = min(terms.get("queue") or most, most)
        self._reader = reader
        self._manager = ObserverManager(redact=redact)
        self.name = self._manager.register(cast("AnyObserver", self._witness), **terms)
        # One call for one event, when it is to be found out which of several is not taken.
        self._single = ObserverManager(redact=redact)
        self._single.register(
            cast("AnyObserver", self._witness.bare),
            name=self.name,
            retry=False,
            quarantine=None,
            **({"timeout": terms["timeout"]} if "timeout" in terms else {}),
        )
        self._letters = DeadLetters(channel, reader.key)
        self._journal = Journal()
        self._dead = 0

    @property
    def stats(self) -> ObserverStats:
        """What became of the events, as an `ObserverManager` counts it."""
        found, alone = self._manager.stats()[self.name], self._single.stats()[self.name]
        sums = {name: getattr(found, name) + getattr(alone, name) for name in _SUMS}
        return replace(found, **sums)

    @property
    def dead(self) -> int:
        """How many events are dead letters now: the observer will not take them."""
        return self._dead

    @property
    def reader(self) -> StreamReader:
        """Where the events come from."""
        return self._reader

    def watch(self, other: Relay) -> None:
        """Let this observer, if it wants to, watch what becomes of another one's events."""
        if other is not self and self._watch is not None:
            self._watch(other._manager)

    async def run(self, stop: asyncio.Event, drain: float = 5.0) -> Mapping[str, Unfinished]:
        """Hand over events until `stop` is set, and then for `drain` seconds what is in hand.

        What was not handed over stays in the stream, for the next consumer; the result says how
        much that is.

        Raises:
            StoreUnavailable: the server does not answer at the start.
        """
        ending = _Ending(stop, drain)
        try:
            async with self._reader, self._manager, self._single:
                while not stop.is_set():
                    deliveries = await self._take(stop)
                    if deliveries:
                        await self._hand_over(deliveries, ending)
                left = 0.0 if self.stats.in_hand else drain
                await self._single.close(0.0)
                return await self._manager.close(left)
        finally:
            await self._letters.close()

    async def _take(self, stop: asyncio.Event) -> list[Delivery]:
        # A server that is away is waited for by the reader; the end is not to wait with it.
        taking = asyncio.ensure_future(self._reader.take(self._most, wait=_GLANCE))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((taking, stopping), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((taking,), timeout=2 * _GLANCE)
            return taking.result() if taking.done() else []
        finally:
            for task in (taking, stopping):
                task.cancel()
            await asyncio.gather(taking, stopping, return_exceptions=True)

    async def _hand_over(self, deliveries: Sequence[Delivery], ending: _Ending) -> None:
        left = list(deliveries)
        while left and not ending.has_come:
            left = await self._round(self._manager, left, ending)
            if ending.has_come or not any(self._witness.tried(one.event) for one in left):
                continue
            left = await self._one_by_one(left, ending)
            if left and not ending.has_come and len(left) < self._most:
                # Others show whether it is the observer that is away.
                left = await self._one_by_one([*await self._take(ending.stop), *left], ending)

    async def _round(
        self, manager: ObserverManager, deliveries: Sequence[Delivery], ending: _Ending
    ) -> list[Delivery]:
        """Hand over deliveries together; get those that are to be handed over again."""
        left = list(deliveries)
        self._witness.forget()
        for delivery in left:
            manager.notify(delivery.event)
        while not await manager.drain(_GLANCE):
            left = await self._settle(left, ending)
            if ending.is_over:
                return left
        return await self._settle(left, ending, final=True)

    async def _one_by_one(self, deliveries: Sequence[Delivery], ending: _Ending) -> list[Delivery]:
        """Hand over each by itself and once, so that one holds up no other; get those left."""
        clock, left = asyncio.get_running_loop().time, deque(deliveries)
        tried: list[Delivery] = []
        until = clock() + _SEARCH
        while left and not ending.has_come:
            before = len(tried)
            tried += await self._round(self._single, [left.popleft()], ending)
            if len(tried) == before:
                until = clock() + _SEARCH
                # The observer works: what it does not take now is not its fault.
                tried = await self._each(tried, ending)
            elif clock() >= until:
                # It is away, most likely; next time others come first.
                break
        return [*left, *tried]

    async def _each(self, deliveries: Sequence[Delivery], ending: _Ending) -> list[Delivery]:
        left: list[Delivery] = []
        for one in deliveries:
            left += await self._round(self._single, [one], ending)
        return left

    async def _settle(
        self, deliveries: Sequence[Delivery], ending: _Ending, *, final: bool = False
    ) -> list[Delivery]:
        """Acknowledge what is done with; get what is to be handed over (again)."""
        by_fate: dict[Fate, list[Delivery]] = {fate: [] for fate in Fate}
        for delivery in deliveries:
            by_fate[self._witness.fate(delivery.event, final=final)].append(delivery)
        await self._acknowledge(by_fate[Fate.TAKEN])
        await self._bury(by_fate[Fate.DEAD], ending)
        return by_fate[Fate.LEFT]

    async def _bury(self, deliveries: Sequence[Delivery], ending: _Ending) -> None:
        """Put deliveries among the dead letters; they are acknowledged only when they are there."""
        dead = [Dead(one, self._witness.reason(one.event)) for one in deliveries]
        while dead:
            try:
                await self._letters.add(self.name, dead)
                break
            except StoreUnavailable as error:
                text = "observer %r: %d events cannot be kept as dead letters yet: %s"
                self._journal.say(
                    logging.WARNING, "dead", self.name, text, self.name, len(dead), error
                )
                if ending.is_over:
                    return
                await asyncio.sleep(_GLANCE)
        self._dead += len(dead)
        for kept in dead[:1]:
            text = "observer %r: %d events are dead letters in %s, a %s first: %s"
            values = (len(dead), self._letters.key, kept.delivery.event.event_type, kept.reason)
            self._journal.say(logging.ERROR, "buried", self.name, text, self.name, *values)
        await self._acknowledge(deliveries)

    async def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            await self._reader.ack(*deliveries)
            self._witness.done([one.event.id for one in deliveries])


class _Ending:
    """When to end: as soon as nothing is in hand, or some seconds after `stop` was seen."""

    def __init__(self, stop: asyncio.Event, drain: float) -> None:
        self.stop = stop
        self._drain = drain
        self._ends: float | None = None

    @property
    def has_come(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.stop.is_set()

    @property
    def is_over(self) -> bool:
        """Whether there is no time left for what has begun."""
        if not self.has_come:
            return False
        now = asyncio.get_running_loop().time()
        if self._ends is None:
            self._ends = now + self._drain
        return now >= self._ends


def selector_of(registration: Registration) -> Selector:
    """Get which events an observer is to have, by its terms or by its own word."""
    on = registration.terms.get("on")
    return cast("Selector", on if on is not None else Target.of(registration.observer).on or "*")


def names_of(registrations: Iterable[Registration]) -> tuple[str, ...]:
    """Get the names under which observers are registered, each another.

    Raises:
        ConfigError: two are given the same, or an observer or its terms cannot work.
    """
    manager = ObserverManager()
    return tuple(manager.register(one.observer, **one.terms) for one in registrations)


def check_no_circle(registrations: Iterable[Registration], url: str, key: str | None) -> None:
    """Refuse observers that would write to where the events come from; `key` is the stream's.

    Raises:
        ConfigError: one of them does.
    """
    for registration in registrations:
        observer = registration.observer
        if isinstance(observer, RedisPublisher):
            raise ConfigError(
                "redis_pubsub publishes what happens in its own process: here it has nothing to do"
            )
        if isinstance(observer, RedisStreamSink) and observer.writes_to(url, key):
            raise ConfigError.of("redis_stream: key", key, "events are read from there")
