"""The limits under which an observer is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.observers.inbox import Overflow

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Terms:
    """Checked limits; `timeout` is in seconds."""

    timeout: float
    queue: int
    concurrency: int
    overflow: Overflow

    @classmethod
    def of(
        cls,
        *,
        timeout: timedelta | float | str,
        queue: int,
        concurrency: int,
        overflow: Overflow | str,
    ) -> Terms:
        """Get the terms that a caller asked for.

        Raises:
            ConfigError: one of them cannot work; the text names it.
        """
        return cls(
            timeout=seconds(timeout, field="timeout"),
            queue=_count("queue", queue),
            concurrency=_count("concurrency", concurrency),
            overflow=_overflow(overflow),
        )


def span(timeout: timedelta | float | str) -> float:
    """Get how long to wait, in seconds; zero, unlike elsewhere, means not at all.

    Raises:
        ConfigError: not a duration, or a negative one.
    """
    return 0.0 if timeout == 0 else seconds(timeout, field="timeout")


def _count(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError.of(field, value, "expected an integer of at least 1")
    return value


def _overflow(value: str) -> Overflow:
    try:
        return Overflow(value)
    except ValueError:
        accepted = f"expected one of {', '.join(Overflow)}"
        raise ConfigError.of("overflow", value, accepted) from None
