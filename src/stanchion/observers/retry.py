"""How often an observer that fails is called again, and when it is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.observers.arguments import count

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long the same events are sent again before they count as failed.

    Pauses are random, up to `first` at first and twice as long each time, up to `longest`. Pauses
    that a receiver asked for do not count towards `within`.

    Raises:
        ConfigError: `attempts`, the first one included, is not at least 2, or a duration is none.
    """

    attempts: int = 12
    within: timedelta | float | str = "5m"
    first: timedelta | float | str = 0.1
    longest: timedelta | float | str = 10.0

    def __post_init__(self) -> None:
        count("retry.attempts", self.attempts, least=2)
        _as_seconds(self, "retry", "within", "first", "longest")


@dataclass(frozen=True, slots=True)
class Quarantine:
    """After how many failed calls in a row an observer is called only to see whether it works.

    The first probe follows after about `pause`, each further one after twice that, up to `longest`.

    Raises:
        ConfigError: `after` is not at least 1, or a duration is none.
    """

    after: int = 5
    pause: timedelta | float | str = 0.5
    longest: timedelta | float | str = 30.0

    def __post_init__(self) -> None:
        count("quarantine.after", self.after)
        _as_seconds(self, "quarantine", "pause", "longest")


@dataclass(frozen=True, slots=True)
class Patience:
    """How a failing observer is treated: retried, only for what it names as undelivered, or not."""

    retry: Retry | None
    named: Retry | None
    quarantine: Quarantine | None

    @classmethod
    def of(cls, retry: object, quarantine: object, *, idempotent: bool) -> Patience:
        """Get what a caller asked for; without a word about retries, only what does no harm.

        Raises:
            ConfigError: one of the two cannot work.
        """
        chosen = quarantine
        if isinstance(chosen, int):
            chosen = Quarantine(after=chosen)
        if chosen is not None and not isinstance(chosen, Quarantine):
            raise ConfigError.of("quarantine", chosen, "expected a Quarantine, a number or None")
        if retry is None:
            # What a sink says was not taken cannot arrive twice.
            return cls(Retry() if idempotent else None, Retry(), chosen)
        if isinstance(retry, bool):
            retry = Retry() if retry else None
        elif not isinstance(retry, Retry):
            raise ConfigError.of("retry", retry, "expected a Retry, True, False or None")
        return cls(retry, retry, chosen)


def _as_seconds(owner: Retry | Quarantine, prefix: str, *names: str) -> None:
    for name in names:
        given = cast("object", getattr(owner, name))
        object.__setattr__(owner, name, seconds(given, field=f"{prefix}.{name}"))
