"""Events that one observer has in hand, and which of them are still to be delivered."""

from __future__ import annotations

from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, cast

from stanchion.observers.containment import Containment
from stanchion.observers.delivery import Undelivered

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.events import Event
    from stanchion.observers.inbox import Taken
    from stanchion.observers.notice import Notice
    from stanchion.observers.retry import Retry


class Parcel:
    """What was taken from the queue for one call, and for those that repeat it."""

    def __init__(self, taken: Taken) -> None:
        self.rest = taken.notices
        self.runs = taken.runs
        self.calls = 0
        self.asked = 0.0  # seconds that the receiver asked to be left alone, in all
        self._began = monotonic()

    @property
    def kind(self) -> str:
        """The type of the first event that is not delivered."""
        return self.rest[0].event.event_type

    def context(self, *, batched: bool) -> Context:
        """Get the context for a call: the caller's own, but for events of several callers."""
        # A copy: the observers of one event run side by side and may set variables.
        return Context() if batched else self.rest[0].context.copy()

    def cover(
        self, redaction: Callable[[Event], Event]
    ) -> tuple[list[Event], list[Notice], BaseException | None]:
        """Get the events to be sent, those of the rest that they are, and why others are not."""
        events: list[Event] = []
        rest: list[Notice] = []
        problem: BaseException | None = None
        for notice in self.rest:
            # What the serializers of any class of events may raise is not ours to foresee.
            with Containment() as held:
                events.append(notice.covered(redaction))
            if held.error is None:
                rest.append(notice)
            problem = held.error or problem
        return events, rest, problem

    def split(self, error: BaseException, events: list[Event]) -> list[Notice] | None:
        """Get those that an error names as not taken; None where it names none of them."""
        if not isinstance(error, Undelivered):
            return None
        named = {id(event) for event in error.events}
        # Copies will do, too.
        ids = {event.id for event in error.events}
        missed = [
            notice
            for notice, event in zip(self.rest, events, strict=True)
            if id(event) in named or event.id in ids
        ]
        return missed if missed or not error.events else None

    def exhausted(self, retry: Retry) -> bool:
        """Get whether it has been sent as often, or has been tried as long, as it may be."""
        tried = monotonic() - self._began - self.asked
        return self.calls >= retry.attempts or tried >= cast("float", retry.within)
