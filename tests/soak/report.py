"""The report: as tables for people, which are Markdown, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.box import MARKDOWN
from rich.table import Table
from rich.text import Text

from tests.soak.ledger import UNAVAILABLE
from tests.soak.load import DEADLINE, MICROS, UNWANTED
from tests.soak.plan import Fault

if TYPE_CHECKING:
    from rich.console import Console

    from tests.soak.chapters import Episode
    from tests.soak.conductor import Soak
    from tests.soak.findings import Invariant

_MS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """What one kind of fault did; times in milliseconds."""

    fault: str
    times: int
    answers: int
    answer_median: float
    answer_worst: float
    recovery_median: float
    recovery_worst: float
    unavailable: int
    limited: int
    whim: int
    other: int


def rows(soak: Soak) -> list[Row]:
    """Get a row for each kind of fault, and a last one for the time between them."""
    answered: dict[Fault | None, list[float]] = {}
    vetoes: dict[Fault | None, Counter[str]] = {}

    def fault_at(begins: int, ends: int) -> Fault | None:
        around = soak.episodes.during(begins, ends)
        return around[-1].step.fault if around else None

    for one in soak.ledger.answers:
        # One that waits in line takes as long as it was told to wait.
        if one.bound == DEADLINE * MICROS:
            fault = fault_at(one.began, one.began + one.took)
            # Nor is it answered for that the worker itself was stopped, or had no processor.
            net = max(0, one.took - one.late) / _MS
            answered.setdefault(fault, []).append(net)
    for call in soak.ledger.calls.values():
        if call.done and not call.admitted and call.reason is not None:
            fault = fault_at(call.asked, call.done)
            vetoes.setdefault(fault, Counter())[_sort(call.reason)] += 1
    by_fault: dict[Fault | None, list[Episode]] = {None: []}
    for episode in soak.episodes.all:
        by_fault.setdefault(episode.step.fault, []).append(episode)
    return [
        _row(fault, by_fault[fault], answered.get(fault, []), vetoes.get(fault, Counter()))
        for fault in (*Fault, None)
        if fault in by_fault
    ]


def _row(
    fault: Fault | None, episodes: list[Episode], took: list[float], vetoes: Counter[str]
) -> Row:
    recoveries = [one.recovery / _MS for one in episodes if one.recovery is not None]
    return Row(
        fault="none (between faults)" if fault is None else fault.value,
        times=len(episodes),
        answers=len(took),
        answer_median=round(median(took), 1) if took else 0.0,
        answer_worst=round(max(took, default=0.0), 1),
        recovery_median=round(median(recoveries), 1) if recoveries else 0.0,
        recovery_worst=round(max(recoveries, default=0.0), 1),
        unavailable=vetoes["unavailable"],
        limited=vetoes["limited"],
        whim=vetoes["whim"],
        other=vetoes["other"],
    )


def _sort(reason: str) -> str:
    match reason:
        case str() if reason == UNAVAILABLE:
            return "unavailable"
        case str() if reason == UNWANTED:
            return "whim"
        case "state_corrupt" | "policy_failed":
            return "other"
        case _:
            return "limited"


def document(
    soak: Soak, invariants: list[Invariant], *, server: str, seed: int, seconds: float
) -> dict[str, Any]:
    """Get the report as JSON values."""
    ledger = soak.ledger
    return {
        "passed": all(one.holds for one in invariants),
        "server": server,
        "seed": seed,
        "seconds": seconds,
        "calls": len(ledger.calls),
        "admitted": ledger.admitted,
        "vetoed": ledger.vetoed,
        "vetoes": dict(ledger.reasons.most_common()),
        "chapters": soak.chapters,
        "workers": {"ended": len(ledger.ends), "killed": len(ledger.killed)},
        "faults": [asdict(row) for row in rows(soak)],
        "invariants": [
            {"name": one.name, "holds": one.holds, "figures": one.figures, "broken": one.told()}
            for one in invariants
        ],
        "counters": soak.counters,
        "plan": [
            {"at": round((one.began - soak.began) / MICROS, 2), "fault": one.step.fault.value}
            for one in soak.episodes.all
        ],
    }


def show(console: Console, told: dict[str, Any]) -> None:
    """Print what a document says."""
    console.print()
    console.print(
        f"{told['seconds']:.0f} s on {told['server']}, seed {told['seed']}: "
        f"{told['calls']:,} calls that may charge, {told['admitted']:,} admitted, "
        f"{told['vetoed']:,} vetoed, {sum(row['times'] for row in told['faults'])} faults, "
        f"{told['workers']['killed']} workers killed, {told['chapters'] - 1} times all data lost",
        soft_wrap=True,
    )
    console.print()
    table = Table(
        *("fault", "times", "answers", "answer ms: median", "worst"),
        *("recovery ms: median", "worst", "vetoes: unavailable", "limit", "whim", "other"),
        box=MARKDOWN,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in told["faults"]:
        table.add_row(
            *(row["fault"], f"{row['times']}", f"{row['answers']:,}"),
            *(f"{row['answer_median']:.1f}", f"{row['answer_worst']:.0f}"),
            *(f"{row['recovery_median']:.0f}", f"{row['recovery_worst']:.0f}"),
            *(f"{row[name]:,}" for name in ("unavailable", "limited", "whim", "other")),
        )
    console.print(table)
    console.print()
    table = Table("invariant", "holds", "figures", box=MARKDOWN)
    for one in told["invariants"]:
        holds = Text("yes" if one["holds"] else "NO", style="" if one["holds"] else "bold red")
        table.add_row(Text(one["name"]), holds, Text(one["figures"]))
    console.print(table)
    console.print()
    console.print("At the end, by the store and by the journals:")
    for line in told["counters"]:
        console.print(f"- {line}", soft_wrap=True)
    for one in told["invariants"]:
        for text in one["broken"]:
            console.print(Text(f"BROKEN: {one['name']}: {text}"), soft_wrap=True)
    console.print()
    console.print("Everything held." if told["passed"] else "Something did not hold.")
