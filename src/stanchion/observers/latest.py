"""The latest value of each subject, for gauges with a bounded number of series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stanchion.observers.cardinality import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_REST: Final = 10_000  # subjects beyond the bound that are remembered


class Subject(NamedTuple):
    """What a state belongs to: a policy, and its subject."""

    policy: str
    name: str


class _Value(NamedTuple):
    amount: float
    until: datetime | None


class Latest:
    """Remembers a value for each subject: the first `limit` of them have a series of their own.

    The others share one series for each policy, `other`, which shows the highest of their values:
    for a state, that is the worst. A value with an end is forgotten after it. Not safe to be called
    from several threads at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own: dict[Subject, _Value] = {}
        self._rest: dict[str, dict[str, _Value]] = {}
        self.folded = 0

    def put(
        self, subject: Subject, amount: float, until: datetime | None = None
    ) -> tuple[Subject, float]:
        """Take a new value; get the series that it belongs to, and the value of that series."""
        value = _Value(amount, until)
        has_place = subject in self._own or len(self._own) < self._limit
        if has_place and subject.name != OTHER:
            self._own[subject] = value
            return subject, amount
        self.folded += 1
        rest = self._rest.setdefault(subject.policy, {})
        rest.pop(subject.name, None)
        # What is not above zero changes nothing: zero is what an empty `other` shows.
        if amount > 0:
            rest[subject.name] = value
        if len(rest) > _REST:
            del rest[next(iter(rest))]
        return Subject(subject.policy, OTHER), _highest(rest)

    def series(self, now: datetime) -> Iterator[tuple[Subject, float]]:
        """Get every series and its value at `now`."""
        self._own = {key: value for key, value in self._own.items() if _holds(value, now)}
        for subject, value in self._own.items():
            yield subject, value.amount
        for policy, rest in self._rest.items():
            self._rest[policy] = {key: value for key, value in rest.items() if _holds(value, now)}
            yield Subject(policy, OTHER), _highest(self._rest[policy])


def _holds(value: _Value, now: datetime) -> bool:
    return value.until is None or value.until > now


def _highest(values: dict[str, _Value]) -> float:
    return max((value.amount for value in values.values()), default=0.0)
