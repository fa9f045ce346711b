"""A run, counted again from what its processes wrote down, and held against the limits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from stanchion import CircuitBreaker, CircuitState, Concurrency, Quota, RateLimit
from stanchion.cli.demo.analysis.circuits import Phase, phases
from stanchion.cli.demo.analysis.clocks import offset_us
from stanchion.cli.demo.analysis.overlap import most_at_once
from stanchion.cli.demo.analysis.quotas import Spent, Window, windows
from stanchion.cli.demo.analysis.rates import Rate, measure
from stanchion.cli.demo.analysis.tally import PolicyTally, Totals, tally, totals
from stanchion.cli.demo.plan import EVERYONE
from stanchion.cli.demo.records import Asked, Closing, Ended, Heard, Settled
from stanchion.durations import micros, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stanchion import PolicyState
    from stanchion.cli.demo.plan import BuiltIn
    from stanchion.cli.demo.records import Record

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a run: the workers' logs by number, and what others saw.

    `heard` are the circuits' changes as they reached the parent, which took no part. `states` and
    `ttls` (seconds, None for never) are what the store held at the end, `most` and `billed` what
    the endpoint counted for each model: requests at once, and tokens.
    """

    logs: Mapping[int, Sequence[Record]]
    heard: Sequence[Heard] = ()
    states: Sequence[PolicyState] = ()
    ttls: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    most: Mapping[str, int] = field(default_factory=dict[str, int])
    billed: Mapping[str, int] = field(default_factory=dict[str, int])

    def all(self, kind: type[R]) -> list[R]:
        """Get the records of one kind from every log."""
        return [record for log in self.logs.values() for record in log if isinstance(record, kind)]


@dataclass(frozen=True, slots=True)
class RateLine:
    """One subject of a rate limit."""

    policy: str
    subject: str
    measured: Rate


@dataclass(frozen=True, slots=True)
class QuotaLine:
    """One subject of a quota; `counter` is what the store counted in its last window.

    `counted` is the same from the logs, at least and at most: what was settled around the end of
    the window may have come too late. Both are None where nothing is left in the store.
    """

    policy: str
    subject: str
    limit: int
    windows: tuple[Window, ...]
    counter: int | None
    counted: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class SlotsLine:
    """One subject of a cap: the most calls in flight by the logs, and as the endpoint saw them."""

    policy: str
    subject: str
    limit: int
    by_logs: int
    by_endpoint: int


@dataclass(frozen=True, slots=True)
class CircuitLine:
    """One circuit's phases."""

    policy: str
    subject: str
    half_open_calls: int
    open_for: float
    phases: tuple[Phase, ...]

    @property
    def openings(self) -> list[Phase]:
        """The times that it opened."""
        return [phase for phase in self.phases if phase.state is CircuitState.OPEN]

    @property
    def shortest(self) -> float:
        """The least seconds for which it stayed open; `open_for` if it never ceased to be."""
        lengths = [
            (following.at_us - phase.at_us) / 1e6
            for phase, following in pairwise(self.phases)
            if phase.state is CircuitState.OPEN
        ]
        return min(lengths, default=self.open_for)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a run's calls, limits and keys."""

    totals: Totals
    policies: tuple[PolicyTally, ...]
    rates: tuple[RateLine, ...]
    quotas: tuple[QuotaLine, ...]
    slots: tuple[SlotsLine, ...]
    circuits: tuple[CircuitLine, ...]
    spent: int
    billed: int
    unended: int
    events: int
    events_dropped: int
    clock_offset: float
    latest: float
    keys: int
    longest_ttl: float
    immortal: tuple[str, ...]


def summarize(policies: Sequence[BuiltIn], evidence: Evidence) -> Summary:
    """Count everything again."""
    asked, ended = evidence.all(Asked), {end.call: end for end in evidence.all(Ended)}
    settled = {one.call: one for one in evidence.all(Settled)}
    closing = evidence.all(Closing)
    offset = offset_us(asked)
    admitted = [one for one in asked if one.allowed]
    cells: defaultdict[tuple[str, str], list[Asked]] = defaultdict(list)
    for one in admitted:
        for policy in policies:
            if policy.name in one.policies:
                cells[policy.name, _subject(policy, one)].append(one)
    for event in evidence.heard:
        cells.setdefault((event.policy, event.subject), [])
    rates: list[RateLine] = []
    quotas: list[QuotaLine] = []
    slots: list[SlotsLine] = []
    circuits: list[CircuitLine] = []
    named = {policy.name: policy for policy in policies}
    for (name, subject), calls in sorted(cells.items()):
        policy = named.get(name)
        if isinstance(policy, RateLimit):
            rates.append(RateLine(name, subject, _rate(policy, calls)))
        elif isinstance(policy, Quota):
            quotas.append(_quota(policy, subject, calls, ended, settled, offset, evidence.states))
        elif isinstance(policy, Concurrency):
            seen = evidence.most.get(subject, 0)
            overlap = most_at_once(_intervals(calls, ended))
            slots.append(SlotsLine(name, subject, policy.limit_of(EVERYONE), overlap, seen))
        elif isinstance(policy, CircuitBreaker):
            circuits.append(_circuit(policy, subject, calls, evidence, offset))
    return Summary(
        totals=totals(asked),
        policies=tuple(tally(asked, [policy.name for policy in policies])),
        rates=tuple(rates),
        quotas=tuple(quotas),
        slots=tuple(slots),
        circuits=tuple(circuits),
        spent=sum(end.tokens or 0 for end in ended.values()),
        billed=sum(evidence.billed.values()),
        unended=sum(one.call not in ended for one in admitted),
        events=sum(sum(last.observed.values()) for last in closing),
        events_dropped=sum(last.dropped for last in closing),
        clock_offset=offset / 1e6,
        latest=max((last.latest_us for last in closing), default=0) / 1e6,
        keys=len(evidence.ttls),
        longest_ttl=max((ttl or 0.0 for ttl in evidence.ttls.values()), default=0.0),
        immortal=tuple(sorted(key for key, ttl in evidence.ttls.items() if ttl is None)),
    )


def _subject(policy: BuiltIn, asked: Asked) -> str:
    return ":".join(asked.fields[name] for name in policy.fields)


def _rate(policy: RateLimit, calls: Iterable[Asked]) -> Rate:
    return measure(
        ((call.moment_us, 1) for call in calls),
        limit=policy.limit_of(EVERYONE),
        per_us=micros(policy.per, field="per"),
        burst=policy.capacity_of(EVERYONE),
    )


def _quota(
    policy: Quota,
    subject: str,
    calls: Iterable[Asked],
    ended: Mapping[str, Ended],
    settled: Mapping[str, Settled],
    offset: int,
    states: Iterable[PolicyState],
) -> QuotaLine:
    spent = [_spent(call, ended.get(call.call), settled.get(call.call), offset) for call in calls]
    seen = tuple(windows(spent, per_us=micros(policy.per, field="per")))
    counter = counted = None
    for state in states:
        if (state.policy, state.subject) == (policy.name, subject) and "start" in state.values:
            # What is still held at the end, by calls that were cut off, is counted as well.
            counter = int(state.values["used"]) + int(state.values.get("held", 0))
            start = int(state.values["start"])
            last = [window for window in seen if window.start_us == start]
            counted = sum(window.least for window in last), sum(window.most for window in last)
    return QuotaLine(policy.name, subject, policy.limit_of(EVERYONE), seen, counter, counted)


def _spent(call: Asked, end: Ended | None, settled: Settled | None, offset: int) -> Spent:
    if end is None:
        return Spent(call.moment_us, call.tokens)
    done_us = None if settled is None else settled.at_us + offset
    return Spent(call.moment_us, call.tokens, end.at_us + offset, end.tokens, done_us)


def _intervals(
    calls: Iterable[Asked], ended: Mapping[str, Ended]
) -> Iterable[tuple[int, int | None]]:
    # All of it by this machine's clock: from when the worker was told, to before it gave back.
    for call in calls:
        end = ended.get(call.call)
        yield call.after_us, None if end is None else end.at_us


def _circuit(
    policy: CircuitBreaker, subject: str, calls: Iterable[Asked], evidence: Evidence, offset: int
) -> CircuitLine:
    logs = {0: evidence.heard, **evidence.logs}
    heard = {
        process: [
            record
            for record in log
            if isinstance(record, Heard)
            and (record.policy, record.subject) == (policy.name, subject)
        ]
        for process, log in logs.items()
    }
    moments = [call.moment_us for call in calls]
    found = phases(heard, moments, workers=sorted(evidence.logs), offset_us=offset)
    open_for = seconds(policy.open_for, field="open_for")
    return CircuitLine(policy.name, subject, policy.half_open_calls, open_for, tuple(found))
