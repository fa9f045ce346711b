"""A bounded queue that any thread may fill and that never makes anybody wait."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextvars import Context

    from stanchion.events import Event

Entry = tuple["Event", "Context"]


class Overflow(StrEnum):
    """Which event gives way when an observer's queue is full."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"


class Inbox:
    """Events that wait for one observer, each with the context in which it was notified.

    Writers hold the manager's lock; the event loop alone reads, and does so without it.
    """

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        self.capacity = capacity
        self.overflow = overflow
        self.dropped = 0
        self._entries: deque[Entry] = deque()
        self._in_burst = False
        self._first_dropped: str | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> bool:
        """Add an event, dropping one if need be; True when that begins a burst of drops."""
        if len(self._entries) < self.capacity:
            self._entries.append(entry)
            return False
        gone = entry
        if self.overflow is Overflow.DROP_OLDEST:
            try:
                gone = self._entries.popleft()
            except IndexError:  # the loop has emptied it since we looked
                self._entries.append(entry)
                return False
            self._entries.append(entry)
        self.dropped += 1
        if self._in_burst:
            return False
        self._in_burst = True
        self._first_dropped = gone[0].event_type
        return True

    def refuse(self, number: int = 1) -> None:
        """Count events that will not be delivered although there was room."""
        self.dropped += number

    def take(self, most: int) -> list[Entry]:
        """Get the oldest events, none if there are none; that also ends a burst."""
        taken: list[Entry] = []
        while self._entries and len(taken) < most:
            taken.append(self._entries.popleft())
        if not taken:
            self._in_burst = False
        return taken

    def clear(self) -> int:
        """Drop everything that waits; how much that was."""
        number = len(self._entries)
        self._entries.clear()
        self.dropped += number
        return number

    def first_dropped(self) -> str | None:
        """Get the type of the event that began a burst, once for each burst."""
        kind, self._first_dropped = self._first_dropped, None
        return kind
