"""The errors that callers catch: one root, and under it vetoes, outages and mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stanchion.decisions import Decision


class StanchionError(Exception):
    """The root of every error that this library raises on purpose."""


class ConfigError(StanchionError):
    """A declaration, URL or argument that cannot work; the text names field, value and remedy."""

    @classmethod
    def of(cls, field: str, value: object, accepted: str) -> ConfigError:
        """Get an error that names the field, shows the value and says what is accepted."""
        return cls(f"{field}={shown(value)}: {accepted}")


class StoreUnavailable(StanchionError):
    """The shared state could not be asked in time; nothing is known about the limits themselves."""


class PolicyFailed(StanchionError):
    """A custom policy raised, timed out, or answered with something that is not a verdict.

    `retry_after` is in how many seconds it may be worth asking again, None where nobody knows.
    """

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after = retry_after


class Vetoed(StanchionError):
    """A policy, or the failure to ask one, refused an event; `decision` holds every verdict."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        when = "" if decision.retry_after is None else f", retry after {decision.retry_after:.3f} s"
        super().__init__(f"vetoed by {decision.policy!r}: {decision.reason}{when}")

    def __reduce__(self) -> tuple[type[Vetoed], tuple[Decision]]:
        return type(self), (self.decision,)


class RateLimited(Vetoed):
    """A `RateLimit` has no room for this event now."""


class QuotaExceeded(Vetoed):
    """A `Quota` has too little left in its window."""


class CircuitOpen(Vetoed):
    """A `CircuitBreaker` is open, or its half-open ration is in use."""


class ConcurrencyLimited(Vetoed):
    """A `Concurrency` cap has no free slot."""


_SHOWN = 80


def shown(value: object) -> str:
    """Get a one-line, length-capped rendering of a value for an error text."""
    if isinstance(value, str | bytes) and len(value) > _SHOWN:
        value = value[:_SHOWN]
        return f"{value!r}..."
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no integer of more than 4300 digits, and nothing that is nested too deeply.
        return f"<{type(value).__name__} too large to show>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
