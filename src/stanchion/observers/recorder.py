"""The events themselves, kept in memory."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast, overload

from stanchion.errors import ConfigError
from stanchion.events import Event, Selector, check_selector, matches
from stanchion.observers.containment import Containment
from stanchion.observers.terms import span

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    Predicate: TypeAlias = Callable[[Event], object]

E = TypeVar("E", bound=Event)


class Recorder:
    """Keeps the last `maxlen` events, in the order in which they arrived.

    Events arrive after `notify` has returned: `await manager.drain()`, or `await wait_for(...)`.
    """

    def __init__(self, maxlen: int = 10_000, *, on: Selector = "*") -> None:
        """Make an empty recorder.

        Raises:
            ConfigError: `maxlen` is no positive integer, or `on` no selector.
        """
        if not isinstance(cast("object", maxlen), int) or maxlen < 1:
            raise ConfigError.of("maxlen", maxlen, "expected an integer of at least 1")
        check_selector(on)
        self.on: Selector = on
        self._events: deque[Event] = deque(maxlen=maxlen)
        self._waiting: list[tuple[Predicate, asyncio.Future[Event]]] = []
        self._seen = 0

    async def handle(self, event: Event) -> None:
        """Keep one event, and give it to those who wait for it."""
        self._events.append(event)
        self._seen += 1
        for wanted, found in list(self._waiting):
            if found.done():
                continue
            # A predicate that raises concerns who waits with it, not the other waiters.
            with Containment() as held:
                if wanted(event):
                    found.set_result(event)
            if isinstance(held.error, Exception):
                found.set_exception(held.error)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events kept, the oldest first."""
        return tuple(self._events)

    @property
    def forgotten(self) -> int:
        """How many had to go because newer ones came."""
        return self._seen - len(self._events)

    @overload
    def of(self, on: type[E]) -> tuple[E, ...]: ...

    @overload
    def of(self, on: Selector) -> tuple[Event, ...]: ...

    def of(self, on: Selector) -> tuple[Event, ...]:
        """Get the events kept that a selector matches, the oldest first.

        Raises:
            ConfigError: `on` is no selector.
        """
        check_selector(on)
        return tuple(event for event in self._events if matches(on, event))

    def clear(self) -> None:
        """Forget every event."""
        self._events.clear()
        self._seen = 0

    @overload
    async def wait_for(self, wanted: type[E], timeout: timedelta | float | str = 5.0) -> E: ...

    @overload
    async def wait_for(
        self, wanted: Selector | Predicate, timeout: timedelta | float | str = 5.0
    ) -> Event: ...

    async def wait_for(
        self, wanted: Selector | Predicate, timeout: timedelta | float | str = 5.0
    ) -> Event:
        """Get the first event kept that is wanted, or else the next one to come.

        `wanted` is a selector, or a function that says whether an event is the one.

        Raises:
            TimeoutError: none came within `timeout` seconds; the text says what did.
            ConfigError: `wanted` is neither.
        """
        is_wanted = _predicate(wanted)
        for event in self._events:
            if is_wanted(event):
                return event
        found: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        entry = is_wanted, found
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(span(timeout)):
                return await found
        except TimeoutError:
            kinds = Counter(event.event_type for event in self._events)
            raise TimeoutError(f"not seen within {timeout} s; seen: {dict(kinds)}") from None
        finally:
            self._waiting.remove(entry)


def _predicate(wanted: Selector | Predicate) -> Predicate:
    if isinstance(wanted, type | str | tuple):
        on = cast("Selector", wanted)
        check_selector(on, field="wanted")
        return lambda event: matches(on, event)
    if not callable(cast("object", wanted)):
        raise ConfigError.of("wanted", wanted, "expected a selector, or a function of an event")
    return wanted
