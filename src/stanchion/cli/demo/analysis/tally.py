"""Decisions counted: admitted and vetoed, by policy, reason and advice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stanchion.cli.demo.records import Asked


@dataclass(frozen=True, slots=True)
class PolicyTally:
    """One policy's decisions: `admitted` by all policies, `vetoed` by this one, and why.

    The rest of what was `asked` is what only others vetoed.
    """

    policy: str
    asked: int
    admitted: int
    vetoed: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """All decisions; `again` are those that were asked after an earlier veto or failure.

    `signals` counts the vetoes by what they advised.
    """

    asked: int
    admitted: int
    vetoed: int
    again: int
    again_admitted: int
    signals: Mapping[str, int]


def tally(decisions: Iterable[Asked], policies: Iterable[str]) -> list[PolicyTally]:
    """Get the counts of each policy, in the order given."""
    asked, admitted = Counter[str](), Counter[str]()
    reasons: dict[str, Counter[str]] = {}
    for decision in decisions:
        asked.update(decision.policies)
        if decision.allowed:
            admitted.update(decision.policies)
        for policy, reason in decision.vetoes:
            reasons.setdefault(policy, Counter())[reason] += 1
    return [
        PolicyTally(
            name,
            asked[name],
            admitted[name],
            reasons.get(name, Counter()).total(),
            dict(reasons.get(name, Counter()).most_common()),
        )
        for name in policies
    ]


def totals(decisions: Iterable[Asked]) -> Totals:
    """Get the counts of all decisions."""
    every = list(decisions)
    admitted = [decision for decision in every if decision.allowed]
    return Totals(
        asked=len(every),
        admitted=len(admitted),
        vetoed=len(every) - len(admitted),
        again=sum(decision.attempt > 1 for decision in every),
        again_admitted=sum(decision.attempt > 1 for decision in admitted),
        signals=dict(
            Counter(
                decision.signal.value for decision in every if not decision.allowed
            ).most_common()
        ),
    )
