"""One event on its way to the observers that want it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from stanchion.events import Event


class Notice:
    """An event, when it was notified (on the monotonic clock) and the context it came from.

    All observers of an event share one of these; what is worked out for one is there for the rest.
    """

    __slots__ = ("_covered", "at", "context", "event")

    def __init__(self, event: Event, context: Context) -> None:
        self.event = event
        self.context = context
        self.at = monotonic()
        self._covered: Event | None = None

    def covered(self, redaction: Callable[[Event], Event]) -> Event:
        """Get the event as observers may see it; covered when it is first asked for.

        Raises:
            InvalidEvent: it cannot be written as JSON, so nobody can tell what is in it.
        """
        if self._covered is None:
            self._covered = redaction(self.event)
        return self._covered
