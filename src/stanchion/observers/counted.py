"""What policies count of their answers, for observers that show it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OTHER: Final = "other"
_RESULTS: Final = ("admitted", "vetoed", "timed_out", "refused", "failed")
_CALLS: Final = ("calls", "latency_sum")


class HasPolicies(Protocol):
    """Whatever has policies; a bus does. Those with `stats` are shown."""

    @property
    def policies(self) -> tuple[object, ...]:
        """The policies in the order of asking."""
        ...


@runtime_checkable
class WatchesPolicies(Protocol):
    """An observer that shows what policies count; a bus tells it of its own."""

    def watch_policies(self, of: HasPolicies) -> None:
        """Show what the policies of `of` count, as they are whenever one looks."""
        ...


class Counted(NamedTuple):
    """How often a policy gave each result, and its calls of a service and their seconds."""

    results: Mapping[str, float]
    calls: float
    seconds: float

    @classmethod
    def of(cls, stats: object) -> Counted | None:
        """Get the results such that each answer is one of them; None where these are no stats."""
        found = {name: getattr(stats, name, None) for name in (*_RESULTS, *_CALLS)}
        numbers = {name: one for name, one in found.items() if isinstance(one, int | float)}
        if len(numbers) < len(found):
            return None
        calls, seconds = (numbers.pop(name) for name in _CALLS)
        numbers["failed"] -= numbers["timed_out"] + numbers["refused"]
        return cls(numbers, calls, seconds)

    def plus(self, other: Counted) -> Counted:
        """Get both together."""
        results = {name: number + other.results[name] for name, number in self.results.items()}
        return Counted(results, self.calls + other.calls, self.seconds + other.seconds)


def counted(holders: Iterable[HasPolicies], most: int) -> dict[str, Counted]:
    """Get what the policies have counted, by name: the first `most`, and the others together."""
    policies = {id(one): one for holder in holders for one in holder.policies}
    each: dict[str, Counted] = {}
    for policy in policies.values():
        one = Counted.of(getattr(policy, "stats", None))
        if one is not None:
            _add(each, str(getattr(policy, "name", OTHER)), one)
    if len(each) <= most:
        return each
    shown = dict(islice(each.items(), most))
    for name, one in each.items():
        if name not in shown:
            _add(shown, OTHER, one)
    return shown


def _add(to: dict[str, Counted], name: str, one: Counted) -> None:
    to[name] = to[name].plus(one) if name in to else one
