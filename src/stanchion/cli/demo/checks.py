"""What must have held in a run; the demo's exit status hangs on each of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stanchion.cli.demo.summary import CircuitLine, QuotaLine, RateLine, SlotsLine, Summary


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must have held; `text` says what was found, `about` what kind it is of."""

    about: str
    name: str
    ok: bool
    text: str


def check(summary: Summary, *, outage: bool, complete: bool) -> list[Check]:
    """Get every check with its result.

    `outage`: the provider failed for long enough to open its circuit. `complete`: the run came to
    its end, so that no call was cut off.
    """
    checks = [
        *(_rate(line) for line in summary.rates),
        *(found for line in summary.quotas for found in _quota(line)),
        *(_slots(line) for line in summary.slots),
        *(found for line in summary.circuits for found in _circuit(line)),
        _ttl(summary),
    ]
    if outage:
        opened = sum(len(line.openings) for line in summary.circuits)
        text = f"opened {opened} times while the provider failed"
        checks.append(Check("circuits", "a circuit opened", opened > 0, text))
    if complete:
        text = f"{summary.billed:,} billed by the endpoint, {summary.spent:,} in the logs"
        checks.append(Check("tokens", "what was billed", summary.billed == summary.spent, text))
        ended = summary.totals.admitted - summary.unended
        text = f"{ended:,} of {summary.totals.admitted:,} that were admitted have ended"
        checks.append(Check("calls", "every admitted call", summary.unended == 0, text))
    return checks


def failures(checks: Iterable[Check]) -> list[Check]:
    """Get those that did not hold."""
    return [one for one in checks if not one.ok]


def _rate(line: RateLine) -> Check:
    burst = line.measured.burst
    text = (
        f"{burst.admitted:,} admitted in {burst.seconds:.3f} s, where {burst.allowed:,.2f} may be; "
        f"{line.measured.period:,} of {line.measured.period_allowed:,} in one period"
    )
    return Check("rates", f"{line.policy} {line.subject}", not line.measured.exceeded, text)


def _quota(line: QuotaLine) -> Iterator[Check]:
    settled = max((window.settled for window in line.windows), default=0)
    peak = max((window.peak for window in line.windows), default=0)
    text = (
        f"{settled:,} settled in the fullest window, {peak:,} with what was reserved, "
        f"of {line.limit:,}"
    )
    name = f"{line.policy} {line.subject}"
    yield Check("quotas", name, max(settled, peak) <= line.limit, text)
    if line.counter is not None and line.counted is not None:
        least, most = line.counted
        logs = f"{least:,}" if least == most else f"between {least:,} and {most:,}"
        text = f"the store counted {line.counter:,} in the last window, the logs {logs}"
        yield Check("counters", name, least <= line.counter <= most, text)


def _slots(line: SlotsLine) -> Check:
    most = max(line.by_logs, line.by_endpoint)
    text = (
        f"{line.by_logs:,} at once by the logs, {line.by_endpoint:,} by the endpoint, "
        f"of {line.limit:,}"
    )
    return Check("caps", f"{line.policy} {line.subject}", most <= line.limit, text)


def _circuit(line: CircuitLine) -> Iterator[Check]:
    if not line.phases:
        return
    label = f"{line.policy} {line.subject}"
    through = [phase for phase in line.phases if phase.exceeded(line.half_open_calls)]
    text = ", ".join(f"{phase.admitted} calls while {phase.state}" for phase in through)
    yield Check(
        "circuits",
        label,
        not through,
        text or f"let nothing through while open, at most {line.half_open_calls} probes half open",
    )
    text = f"stayed open for {line.shortest:.3f} s or longer, at least {line.open_for:g} s"
    yield Check("circuits", label, line.shortest >= line.open_for, text)
    missed = [
        f"worker {worker} did not learn that it was {phase.state} (change {number})"
        for number, phase in enumerate(line.phases, 1)
        for worker in phase.missed
    ]
    slowest = max(max(phase.learned.values(), default=0.0) for phase in line.phases)
    text = f"every worker of all {len(line.phases)} changes, the last after {slowest * 1000:.1f} ms"
    yield Check("news", label, not missed, "; ".join(missed) or text)


def _ttl(summary: Summary) -> Check:
    text = f"all {summary.keys} keys end by themselves, the last in {summary.longest_ttl:,.0f} s"
    if summary.immortal:
        text = f"without one: {', '.join(summary.immortal)}"
    return Check("keys", "every key has a TTL", bool(summary.keys) and not summary.immortal, text)
