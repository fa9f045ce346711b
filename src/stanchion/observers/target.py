"""What can be registered as an observer, and how each kind is called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Never, Protocol, TypeAlias, TypeVar, cast

from stanchion.errors import ConfigError
from stanchion.events import Event
from stanchion.observers.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from contextvars import Context

    from stanchion.observers.threads import Threads

EventT_contra = TypeVar("EventT_contra", bound=Event, contravariant=True)


class Observer(Protocol[EventT_contra]):
    """Whatever has `async handle(event)`, or a plain one, which runs in a thread.

    More members are used where an observer has them: `async start()` runs before the first event,
    and again after a pause until it succeeds; `async close()` after the last; `on` says which
    events to send when `register` is not told; `idempotent` is True where the same events may be
    sent again without harm. `Undelivered` says which events were not taken. `watch(manager)`, a
    plain method, is called with the manager that serves it, which has `stats()`; perhaps twice.
    """

    def handle(self, event: EventT_contra, /) -> object:
        """Take one event; what it returns, or what that gives when awaited, is not used."""
        ...


class BatchObserver(Protocol[EventT_contra]):
    """Whatever has `async handle_batch(events)`, or a plain one, which runs in a thread.

    Its `batch_size`, or the one that `register` is told, is the most events in one call; there are
    fewer when fewer are waiting, or have waited for `batch_delay` seconds. What `Observer` may
    have, it may have too.
    """

    def handle_batch(self, events: Sequence[EventT_contra], /) -> object:
        """Take events in the order in which they were notified."""
        ...


# `Never` because an observer may take any class of events; `on` says which it is sent.
AnyObserver: TypeAlias = Observer[Never] | BatchObserver[Never] | Callable[[Never], object]

_ACCEPTED = "expected an object with `async handle(event)`, or a callable that takes one event"


@dataclass(frozen=True, slots=True)
class Step:
    """One function of an observer, async or plain."""

    function: Callable[..., object]
    is_async: bool

    @classmethod
    def of(cls, function: Callable[..., object]) -> Step:
        """Get the step for a function, method, partial or callable object."""
        # An instance with `async def __call__` is no coroutine function itself.
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            type(function).__call__
        )
        return cls(function, is_async)

    def begin(
        self, threads: Threads, context: Context, name: str, *args: object
    ) -> asyncio.Future[BaseException | None]:
        """Get a future of what the call raises, None if nothing.

        An async function runs as a task, a plain one in a thread, either in `context`.
        """
        call = partial(self.function, *args)
        if not self.is_async:
            return threads.run(context, call)
        coroutine = _attempt(cast("Callable[[], Awaitable[object]]", call))
        return asyncio.get_running_loop().create_task(coroutine, name=name, context=context)


@dataclass(frozen=True, slots=True)
class Target:
    """An observer, reduced to the functions that the manager calls."""

    label: str
    handle: Step
    batched: bool
    start: Step | None = None
    close: Step | None = None
    on: object = None
    idempotent: bool = False
    batch_size: int | None = None
    batch_delay: object = 0
    watch: Callable[[object], object] | None = None

    @classmethod
    def of(cls, observer: object) -> Target:
        """Get the target for an observer.

        Raises:
            ConfigError: it can neither handle events nor be called, it is a class and not an
                instance, or what it says of itself cannot be.
        """
        if isinstance(observer, type):
            raise ConfigError.of("observer", observer, "expected an instance, not the class")
        batch = _step(observer, "handle_batch")
        handle = batch or _step(observer, "handle")
        if handle is None:
            if not callable(observer):
                raise ConfigError.of("observer", observer, _ACCEPTED)
            label, on = _label(observer), _selection(observer)
            return cls(label, Step.of(observer), batched=False, on=on)
        idempotent = cast("object", getattr(observer, "idempotent", False))
        if not isinstance(idempotent, bool):
            raise ConfigError.of("idempotent", idempotent, "expected True or False")
        return cls(
            _label(observer),
            handle,
            batched=batch is not None,
            start=_step(observer, "start"),
            close=_step(observer, "close"),
            on=_selection(observer),
            idempotent=idempotent,
            batch_size=None if batch is None else _size(observer),
            batch_delay=getattr(observer, "batch_delay", 0),
            watch=_watch(observer),
        )


async def _attempt(call: Callable[[], Awaitable[object]]) -> BaseException | None:
    with Containment() as held:
        await call()
    return held.error


def _step(observer: object, name: str) -> Step | None:
    found = cast("object", getattr(observer, name, None))
    return Step.of(found) if callable(found) else None


def _watch(observer: object) -> Callable[[object], object] | None:
    found = cast("object", getattr(observer, "watch", None))
    # One that is async means something else.
    return found if callable(found) and not inspect.iscoroutinefunction(found) else None


def _size(observer: object) -> int | None:
    size = cast("object", getattr(observer, "batch_size", None))
    return None if size is None else batch_size(size)


def batch_size(size: object) -> int:
    """Get how many events a batch may have.

    Raises:
        ConfigError: not an integer from 1.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        accepted = "`handle_batch` needs an integer of at least 1 beside it"
        raise ConfigError.of("batch_size", size, accepted)
    return size


def _label(observer: object) -> str:
    if isinstance(observer, partial):
        return _label(cast("partial[object]", observer).func)
    name = cast("object", getattr(observer, "__qualname__", None))
    if not isinstance(name, str):
        name = type(observer).__qualname__
    return name.rpartition("<locals>.")[2]


def _selection(observer: object) -> object:
    # An object may well have a method of this name that means something else.
    on = cast("object", getattr(observer, "on", None))
    return cast("object", on) if isinstance(on, str | type | tuple) else None
