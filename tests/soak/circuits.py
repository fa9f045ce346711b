"""Whether circuits went only where circuits go, and let nobody through while they were open."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from stanchion import CircuitState
from tests.soak import bounds
from tests.soak.findings import Invariant
from tests.soak.load import BY_NAME, LEASE, MICROS

if TYPE_CHECKING:
    from tests.soak.chapters import Chapters
    from tests.soak.ledger import Call, Change, Ledger

CIRCUITS = ("provider", "c-breaker")
LEGAL = {
    (CircuitState.CLOSED, CircuitState.OPEN),
    (CircuitState.OPEN, CircuitState.HALF_OPEN),
    (CircuitState.HALF_OPEN, CircuitState.OPEN),
    (CircuitState.HALF_OPEN, CircuitState.CLOSED),
}
Place = tuple[str, str, int]


def check(ledger: Ledger, chapters: Chapters) -> list[Invariant]:
    edges = Invariant("circuits take legal edges only, generation and seq rising")
    shut = Invariant("nobody is admitted while a circuit is open")
    probes = Invariant("never more probes at once than a half-open circuit allows")
    histories = _histories(ledger, chapters)
    admitted = _admitted(ledger, chapters)
    seen = opened = rationed = most = 0
    for place, changes in histories.items():
        seen += len(changes)
        _check_edges(changes, edges)
        calls = admitted.get(place, [])
        for change in changes:
            if change.state == CircuitState.OPEN and change.open_until:
                opened += 1
                early = [call for call in calls if change.at < call.at < change.open_until]
                for call in early:
                    shut.check(False, f"{place[:2]}: {call} within {change}")
            if change.state == CircuitState.HALF_OPEN:
                rationed += 1
                reached, limit = _probes(place, change, calls, chapters)
                most = max(most, reached)
                probes.check(reached <= limit, f"{place[:2]}: {reached} probes in {change}")
    edges.figures = f"{seen:,} changes"
    shut.figures = f"{opened:,} times open"
    probes.figures = f"{rationed:,} times half open, {most:g} probes at most"
    return [edges, shut, probes]


def _histories(ledger: Ledger, chapters: Chapters) -> dict[Place, list[Change]]:
    found: defaultdict[Place, list[Change]] = defaultdict(list)
    for change in ledger.changes.values():
        if change.reason != "reset":
            found[change.policy, change.subject, chapters.of(change.at)].append(change)
    for changes in found.values():
        changes.sort(key=lambda change: change.seq)
    return found


def _admitted(ledger: Ledger, chapters: Chapters) -> dict[Place, list[Call]]:
    found: defaultdict[Place, list[Call]] = defaultdict(list)
    for call in ledger.calls.values():
        if call.admitted and call.at:
            for hold in call.holds:
                if hold.policy in CIRCUITS:
                    found[hold.policy, hold.subject, chapters.of(call.at)].append(call)
    return found


def _check_edges(changes: list[Change], found: Invariant) -> None:
    for change in changes:
        if change.reason != "resync":
            edge = CircuitState(change.previous), CircuitState(change.state)
            found.check(edge in LEGAL, f"{change}: {edge[0]} to {edge[1]}")
    for before, after in pairwise(changes):
        rises = before.seq < after.seq and before.generation < after.generation
        found.check(rises and before.at <= after.at, f"{before} before {after}")
        if after.seq == before.seq + 1:
            edge = CircuitState(before.state), CircuitState(after.state)
            found.check(edge in LEGAL, f"{before} then {after}")


def _probes(
    place: Place, change: Change, calls: list[Call], chapters: Chapters
) -> tuple[float, int]:
    policy, _, chapter = place
    lease, (_, ends) = int(LEASE * MICROS), chapters.span(chapter)
    spans = [
        (call.at, min(ends, call.held_until(policy, lease)), 1)
        for call in calls
        if any(hold.policy == policy and hold.number == change.generation for hold in call.holds)
    ]
    return bounds.overlap(spans, BY_NAME[policy].half_open_calls)
