"""What the workers ask for, in the namespace that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion import Event

if TYPE_CHECKING:
    from datetime import datetime

NAMESPACE = "contention"
PREFIX = f"stanchion:{{{NAMESPACE}}}:"


class Call(Event, type="contention:call"):
    tokens: int = 1


class LogCall(Call, type="contention:log"):
    pass


class FixedCall(Call, type="contention:fixed"):
    pass


class SlidingCall(Call, type="contention:sliding"):
    pass


CALLS: dict[str, type[Call]] = {
    kind.event_type: kind for kind in (Call, LogCall, FixedCall, SlidingCall)
}


def micros(moment: datetime | None) -> int:
    """Get a moment that the server gave, in microseconds since the epoch."""
    assert moment is not None, "the server was not asked"
    return round(moment.timestamp() * 1_000_000)
