"""What an observer said of each event that it was handed."""

from __future__ import annotations

import asyncio
import inspect
from enum import Enum, auto
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.errors import shown
from stanchion.observers.containment import summary
from stanchion.observers.delivery import Undelivered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from stanchion.events import Event
    from stanchion.observers.target import Target

_COVERED: Final = "it cannot be redacted"


class Fate(Enum):
    """What is to become of an event: nothing more, another try, or a place among the dead."""

    TAKEN = auto()
    LEFT = auto()
    DEAD = auto()


class Witness:
    """The observer as it is, with a note of what it said of each event; for use on one loop.

    Where the observer `insists`, it may have an event twice. An event is dead that it refused for
    good, that it may have taken and must not have twice, or that it did not take in `attempts`
    calls, nor when it had just taken another.
    """

    def __init__(self, observer: object, target: Target, *, insists: bool, attempts: int) -> None:
        self._observer = observer
        self._insists = insists
        self._attempts = attempts
        self._taken: set[str] = set()
        self._named: set[str] = set()
        self._seen: set[str] = set()
        self._refused: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._since: dict[str, int] = {}  # how many were taken before an event was first tried
        self._proven: set[str] = set()  # those that were not taken after another one was
        self._number = 0
        call = target.handle.function
        handle = self._awaited(call) if target.handle.is_async else self._called(call)
        # Under the name by which the manager finds out how it is to be called.
        self._name = "handle_batch" if target.batched else "handle"
        vars(self)[self._name] = handle

    def __getattr__(self, name: str) -> Any:
        if name in {"handle", "handle_batch"}:
            raise AttributeError(name)
        return getattr(vars(self)["_observer"], name)

    @property
    def bare(self) -> object:
        """The same observer, called with one event at a time, and neither started nor ended."""
        return SimpleNamespace(**{self._name: vars(self)[self._name]}, batch_size=1)

    def forget(self) -> None:
        """Begin a round; how often each event was tried stays known."""
        self._taken.clear()
        self._named.clear()
        self._seen.clear()
        self._refused.clear()

    def done(self, events: Collection[str]) -> None:
        """Forget all about the events with these ids."""
        for event in events:
            for known in (self._reasons, self._tries, self._since):
                known.pop(event, None)
            self._proven.discard(event)

    def tried(self, event: Event) -> bool:
        """Get whether an event has had all its tries, and it is time to look what is the matter."""
        return self._tries.get(event.id, 0) >= self._attempts

    def reason(self, event: Event) -> str:
        """Get why an event was not taken."""
        return self._reasons.get(event.id, _COVERED)

    def fate(self, event: Event, *, final: bool) -> Fate:
        """Get what is to become of an event, `final` when nothing is under way any more."""
        if event.id in self._taken:
            return Fate.TAKEN
        if event.id in self._refused:
            return Fate.DEAD
        if not final:
            return Fate.LEFT
        # It never got there; or it may have, and must not twice.
        if event.id not in self._seen or not (self._insists or event.id in self._named):
            return Fate.DEAD
        return Fate.DEAD if self.tried(event) and event.id in self._proven else Fate.LEFT

    def _awaited(self, call: Callable[..., object]) -> Callable[[Any], Awaitable[None]]:
        async def handle(content: Any) -> None:
            events, before = self._begin(content)
            try:
                result = call(content)
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:
                self._note(events, before, error)
                raise
            self._took({event.id for event in events})

        return handle

    def _called(self, call: Callable[..., object]) -> Callable[[Any], object]:
        def handle(content: Any) -> object:
            events, before = self._begin(content)
            try:
                result = call(content)
            except BaseException as error:
                self._note(events, before, error)
                raise
            self._took({event.id for event in events})
            return result

        return handle

    def _begin(self, content: Any) -> tuple[Sequence[Event], int]:
        given = isinstance(content, tuple)
        events = cast("tuple[Event, ...]", content) if given else (cast("Event", content),)
        ids = {event.id for event in events}
        self._seen |= ids
        # Only what it says last counts.
        self._named -= ids
        for event in ids:
            self._tries[event] = self._tries.get(event, 0) + 1
            self._since.setdefault(event, self._number)
        return events, self._number

    def _took(self, ids: set[str]) -> None:
        self._number += len(ids)
        self._taken |= ids

    def _note(self, events: Sequence[Event], before: int, error: BaseException) -> None:
        given = missed = {event.id for event in events}
        if isinstance(error, Undelivered):
            missed = {event.id for event in error.events}
            self._named |= missed
            if error.permanent:
                self._refused |= missed
            self._took(given - missed)
            reason = shown(error.reason)
        else:
            late = isinstance(error, asyncio.CancelledError)
            reason = "no answer in time" if late else summary(error)
        self._reasons.update(dict.fromkeys(missed & given, reason))
        self._proven |= {event for event in missed & given if before > self._since[event]}
