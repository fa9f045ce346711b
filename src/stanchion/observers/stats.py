"""What became of an observer's events, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ObserverState(StrEnum):
    """How an observer is being served.

    `starting`: not started yet, or its start failed and is tried again. `retrying`: something is
    being sent again. `hanging`: as many calls as may run at once have passed their timeout and do
    not return. `quarantined`: it failed too often in a row and gets one probe at a time.
    """

    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    HANGING = "hanging"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ObserverStats:
    """What became of the events for one observer since it was registered, and how many wait.

    `received` is the sum of `delivered`, `dropped`, `failed`, `timed_out`, `queued` and `in_hand`.
    `dropped` had to give way, came after the end, or were given up on close; `timed_out` were
    cancelled at their timeout; the handlers of those that `failed` raised, and went on to when they
    were called again. `in_hand` are being handled, or wait to be sent again. `retried` counts each
    time that an event was sent again. `lag` is the age in seconds of the oldest event that waits or
    is in hand, 0 where there is none.
    """

    delivered: int = 0
    dropped: int = 0
    failed: int = 0
    timed_out: int = 0
    queued: int = 0
    received: int = 0
    retried: int = 0
    in_hand: int = 0
    lag: float = 0.0
    state: ObserverState = ObserverState.STARTING


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What `close` had to give up of one observer.

    `events` are lost, `calls` are left behind because they do not return, and `error` says why the
    observer's own `close` did not work, if it did not.
    """

    events: int = 0
    calls: int = 0
    error: str | None = None


class Tally:
    """The counters behind `ObserverStats`; whoever changes one holds the manager's lock."""

    __slots__ = ("delivered", "dropped", "failed", "in_hand", "received", "retried", "timed_out")

    def __init__(self) -> None:
        self.received = 0
        self.delivered = 0
        self.dropped = 0
        self.failed = 0
        self.timed_out = 0
        self.retried = 0
        self.in_hand = 0
