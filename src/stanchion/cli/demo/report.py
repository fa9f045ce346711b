"""The summary of a run, for a person and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stanchion import CircuitState
from stanchion.cli.demo.checks import Check, failures
from stanchion.cli.demo.plan import described
from stanchion.cli.reading import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from stanchion.cli.demo.analysis.circuits import Phase
    from stanchion.cli.demo.plan import BuiltIn, Outage
    from stanchion.cli.demo.summary import CircuitLine, Summary

_STYLES = {
    CircuitState.OPEN: "red",
    CircuitState.HALF_OPEN: "yellow",
    CircuitState.CLOSED: "green",
}
# What it means that every check of a kind has held, where there are many.
_HELD = {
    "rates": "in no span of t seconds, however long, more than burst + limit * t",
    "quotas": "in no window more than its limit, what was reserved included",
    "counters": "what the store has counted is what the endpoint billed for, to the token",
    "caps": "never more in flight, by the logs and as the endpoint saw it",
}


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, and how it ended; `start_us` is the server's time of its beginning."""

    url: str
    namespace: str
    workers: int
    seconds: float
    start_us: int
    outage: Outage
    trace: str | None
    story: tuple[str, ...]
    interrupted: bool


def document(
    run: Run, summary: Summary, checks: Sequence[Check], policies: Iterable[BuiltIn]
) -> dict[str, Any]:
    """Get everything as JSON values."""
    return {
        "ok": not failures(checks),
        "run": {**asdict(run), "outage": run.outage.model_dump()},
        "limits": {policy.name: described(policy) for policy in policies},
        **asdict(summary),
        "checks": [asdict(check) for check in checks],
    }


def show(
    console: Console,
    run: Run,
    summary: Summary,
    checks: Sequence[Check],
    policies: Iterable[BuiltIn],
) -> None:
    """Print everything for a person."""
    _heading(console, "Counted again from the workers' own logs")
    console.print(_totals(run, summary))
    _indented(console, _policies(summary, policies))
    _heading(console, "The fullest that it ever was, against the limit")
    _indented(console, _limits(summary))
    for line in summary.circuits:
        if line.phases:
            _heading(console, f"Circuit {line.policy} {line.subject}{_outage(run, line)}")
            _indented(console, _timeline(line, run))
    _heading(console, "Checks")
    _indented(console, _verdict(checks))
    console.print()


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _indented(console: Console, what: Table) -> None:
    console.print(Padding(what, (0, 0, 0, 2)))


def _totals(run: Run, summary: Summary) -> str:
    totals = summary.totals
    advice = ", ".join(f"{count:,} {signal}" for signal, count in totals.signals.items())
    lines = [
        f"  {run.workers} workers, {run.seconds:.1f} s: {totals.asked:,} decisions, "
        f"{totals.admitted:,} admitted, {totals.vetoed:,} vetoed"
        + (f", with the advice: {advice}" if advice else ""),
    ]
    if totals.again:
        lines.append(
            f"  {totals.again:,} of them asked once more, after a veto or a failure; "
            f"{totals.again_admitted:,} of these were admitted"
        )
    lines.append(
        f"  {summary.events:,} events reached the observers"
        + (f", {summary.events_dropped:,} were dropped" if summary.events_dropped else "")
    )
    if run.trace is not None:
        lines.append(f"  recorded calls began at most {summary.latest:.2f} s behind their time")
    if summary.clock_offset:
        lines.append(f"  the server's clock is {summary.clock_offset:+.3f} s from this machine's")
    return "\n".join(lines)


def _policies(summary: Summary, policies: Iterable[BuiltIn]) -> Table:
    table = _table("policy", "limit", "for each", "asked >", "admitted >", "vetoed >", "why")
    declared = {policy.name: policy for policy in policies}
    for row in summary.policies:
        if not row.asked:
            continue
        why = ", ".join(f"{reason} {count:,}" for reason, count in row.reasons.items())
        table.add_row(
            row.policy,
            described(declared[row.policy]),
            ", ".join(declared[row.policy].fields),
            f"{row.asked:,}",
            f"{row.admitted:,}",
            f"{row.vetoed:,}",
            why,
        )
    return table


def _limits(summary: Summary) -> Table:
    table = _table("policy", "subject", "most >", "limit >", "")
    for rate in summary.rates:
        burst, found = rate.measured.burst, rate.measured
        table.add_row(
            rate.policy,
            rate.subject,
            f"{burst.admitted:,}",
            f"{burst.allowed:,.1f}",
            f"in {burst.seconds:.3f} s; in any {span(found.per)} at most {found.period:,} of "
            f"{found.period_allowed:,}",
        )
    for quota in summary.quotas:
        settled = max((window.settled for window in quota.windows), default=0)
        peak = max((window.peak for window in quota.windows), default=0)
        counter = ""
        if quota.counter is not None and quota.counted is not None:
            counted = " to ".join(f"{amount:,}" for amount in dict.fromkeys(quota.counted))
            counter = f"; its last window {counted}, by the store's counter {quota.counter:,}"
        table.add_row(
            quota.policy,
            quota.subject,
            f"{settled:,}",
            f"{quota.limit:,}",
            f"settled in one window; {peak:,} with what was reserved{counter}",
        )
    for slots in summary.slots:
        table.add_row(
            slots.policy,
            slots.subject,
            f"{slots.by_logs:,}",
            f"{slots.limit:,}",
            f"in flight by the logs; the endpoint saw {slots.by_endpoint:,} at once",
        )
    return table


def _outage(run: Run, line: CircuitLine) -> str:
    outage = run.outage
    if outage.model != line.subject:
        return ""
    return f": its provider failed from {outage.start:.1f} s to {outage.end:.1f} s"


def _timeline(line: CircuitLine, run: Run) -> Table:
    table = _table("at >", "state", "because", "let through >", "each worker learned after, ms")
    for phase in line.phases:
        table.add_row(
            f"{(phase.at_us - run.start_us) / 1e6:.3f} s",
            Text(phase.state.replace("_", " "), style=_STYLES.get(phase.state, "")),
            phase.reason.replace("_", " "),
            f"{phase.admitted:,}",
            _learned(phase),
        )
    return table


def _learned(phase: Phase) -> str:
    # 0 is the parent, which took no part.
    times = [f"{worker}: {delay * 1000:.1f}" for worker, delay in phase.learned.items() if worker]
    times += [f"{worker}: never" for worker in phase.missed]
    if 0 in phase.learned:
        times.append(f"an onlooker: {phase.learned[0] * 1000:.1f}")
    return "  ".join(times)


def _verdict(checks: Sequence[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    for about in dict.fromkeys(check.about for check in checks):
        same = [check for check in checks if check.about == about]
        failed = failures(same)
        for check in failed:
            table.add_row(Text("FAILED", style="bold red"), about, f"{check.name}: {check.text}")
        if not failed:
            text = _HELD.get(about) or ". ".join(check.text for check in same)
            table.add_row(Text("ok", style="green"), about, text)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        name, right, _ = column.partition(" >")
        table.add_column(name, justify="right" if right else "left")
    return table
