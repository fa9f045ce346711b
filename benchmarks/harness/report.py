"""What is printed and written: the machine, a table, and sentences below it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.machine import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.measure import Results

STANCHION = "stanchion"


@dataclass
class Column:
    """One figure of each contender, with what it is a multiple of stanchion's if `ratio`."""

    head: str
    figure: str
    form: str = ",.0f"
    ratio: bool = False


@dataclass
class Table:
    title: str
    heads: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        if sys.stdout.isatty() and self._show_rich():
            return
        print(f"\n{self.title}")
        lines = [self.heads, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.heads))]
        for number, line in enumerate(lines):
            cells = [
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            print("  " + "  ".join(cells).rstrip())
            if number == 0:
                print("  " + "  ".join("-" * width for width in widths))
        for note in self.notes:
            print(f"  {note}")

    def _show_rich(self) -> bool:
        try:
            from rich.console import Console
            from rich.table import Table as RichTable
        except ImportError:
            return False
        table = RichTable(title=self.title, title_justify="left")
        for at, head in enumerate(self.heads):
            table.add_column(head, justify="left" if at == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", markup=False, highlight=False)
        return True


def tabulate(
    title: str, results: Results, columns: Sequence[Column], names: Sequence[str] | None = None
) -> Table:
    """Get a table of medians; each column with `ratio` is followed by multiples of stanchion's."""
    heads = [""]
    for column in columns:
        heads += [column.head, *(["x stanchion"] if column.ratio else [])]
    table = Table(title, heads)
    for name in names or results.rounds:
        row = [name]
        for column in columns:
            median = results.median(name, column.figure)
            row.append(format(median, column.form))
            if column.ratio:
                ours = (
                    results.median(STANCHION, column.figure) if STANCHION in results.rounds else 0
                )
                row.append(f"{median / ours:.2f}" if ours else "")
        table.rows.append(row)
    first = columns[0]
    table.notes.append(
        f"{first.head}, lowest and highest round: "
        + "; ".join(
            "{} {} to {}".format(name, *(format(end, first.form) for end in ends))
            for name in names or results.rounds
            for ends in [results.spread(name, first.figure)]
        )
    )
    if results.how:
        table.notes.append("; ".join(f"{name}: {how}" for name, how in results.how.items()))
    table.notes += [f"left out: {reason}" for reason in results.left_out]
    return table


def against_best(results: Results, peers: Sequence[str], figure: str = "rate") -> list[str]:
    """Say how stanchion's rate compares with the best of the peers that were there."""
    present = [name for name in peers if name in results.rounds]
    if not present or STANCHION not in results.rounds:
        return []
    best = max(present, key=lambda name: results.median(name, figure))
    factor = results.median(STANCHION, figure) / results.median(best, figure)
    return [f"stanchion decides {factor:.1f} times as often as the best peer, {best}"]


def head(server: str) -> dict[str, Any]:
    """Print what it is measured on; get that for the JSON."""
    machine = describe()
    versions = machine["versions"]
    assert isinstance(versions, dict)
    print(
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, {machine['system']}"
    )
    print(f"{machine['python']}, {server}")
    print(", ".join(f"{name} {found}" for name, found in versions.items()))
    return {**machine, "server": server}


def write(path: Path, question: str, document: dict[str, Any]) -> None:
    """Write the JSON: to the file, or where `path` is a directory, to the question's own in it."""
    if path.is_dir():
        path /= f"{question}.json"
    path.write_text(json.dumps({"question": question, **document}, indent=2) + "\n", "utf-8")
