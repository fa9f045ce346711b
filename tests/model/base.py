"""What every model of a limit has: one subject's state, in exact numbers and with a full memory.

Nothing here is taken from the scripts. A model keeps a record of every admission, where the
scripts keep sums, so that the two can only agree by doing the same thing. Amounts of time are
whole microseconds; what is not whole is a Fraction.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

HOUR = 3600 * 1_000_000

Spec = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a limit says about one request; times in microseconds.

    `limit` and `remaining` are None where there is nothing to count, `wait` where none will help.
    `exact` is False where the wait is only the earliest that it can be.
    """

    reason: str
    limit: int | None = None
    remaining: int | None = None
    wait: int | None = 0
    reset: int | None = 0
    exact: bool = True

    @property
    def ok(self) -> bool:
        return self.reason == "ok"


@dataclass(frozen=True)
class Ask:
    """One limit's part in a request."""

    permit: str
    cost: int = 1
    luck: int = 0
    windows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """One limit's part in a settlement."""

    permit: str
    outcome: str
    reserved: int = 0
    actual: int = 0
    unknown: bool = False
    luck: int = 0
    worker: str = ""

    @property
    def undo(self) -> bool:
        return self.outcome == "undo"


@dataclass
class Limit:
    """The state of one subject under one declaration.

    `bring` comes before everything else: it lets time pass, then puts a changed declaration into
    force. After it the other methods are of that moment. `dirty` says that something changed that
    is to be kept, `redeclared` that it was the declaration; `told` gathers what is to be published.
    `memory` is what permits themselves carry along, so it outlives the state.
    """

    spec: Spec
    now: int
    dirty: bool = False
    redeclared: bool = False
    told: list[dict[str, str]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Self:
        """Get one to try things on. What is known of single permits is shared, never undone."""
        twin = copy.copy(self)
        twin.dirty, twin.redeclared, twin.told = False, False, []
        return twin

    def bring(self, now: int, spec: Spec | None = None) -> None:
        """Let time pass; take over a new declaration, by its `on_change`."""
        raise NotImplementedError

    def lose(self, at: int, rule: str) -> None:
        """Begin as the rule says for a start after everything was lost at a moment, not later."""
        raise NotImplementedError

    def decide(self, ask: Ask) -> Answer:
        """Say whether the request may pass."""
        raise NotImplementedError

    def take(self, ask: Ask) -> int:
        """Charge; get when the lease ends, 0 where there is none."""
        raise NotImplementedError

    def settle(self, report: Report) -> str:
        """True up an admission; "settled", or "stale" where nothing changed."""
        raise NotImplementedError

    def renew(self, permit: str, reserved: int) -> int:
        """Lengthen a lease; get its end, 0 where it is lost."""
        raise NotImplementedError

    def leases_at(self, now: int) -> int | None:
        """Get how many leases are live then, nobody having touched it; None where none are kept."""
        del now
        return None

    def empty(self) -> bool:
        """Whether the state may be forgotten: nobody who may still ask could tell."""
        raise NotImplementedError


def ceil_div(amount: int, by: int) -> int:
    return -(-amount // by)


def carried(on_change: str, used: Fraction, was: Fraction | int, now: Fraction | int) -> Fraction:
    """Get how much counts as used after a capacity changed from `was` to `now`.

    Nothing used stays nothing used, or the answer would hang on whether the state still exists.
    """
    if not used:
        return Fraction(0)
    match on_change:
        case "keep":
            return used
        case "scale":
            return used * now / was
        case "remaining":
            return max(Fraction(0), now - max(Fraction(0), was - used))
        case "reset":
            return Fraction(0)
        case _:
            raise ValueError(on_change)


def first_moment(good: Any, since: int, until: int) -> int:
    """Get the first whole moment in since..until at which `good` holds, and holds from then on."""
    assert good(until)
    low, high = since, until
    while low < high:
        middle = (low + high) // 2
        if good(middle):
            high = middle
        else:
            low = middle + 1
    return low


def floor(number: Fraction) -> int:
    return math.floor(number)


def ceil(number: Fraction) -> int:
    return math.ceil(number)


def decimal(number: float) -> Fraction:
    """Get the number that a person meant who wrote this float."""
    return Fraction(str(number))
