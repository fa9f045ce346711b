"""What is printed and written: the machine, a table, and sentences below it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.machine import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.measure import Results

STANCHION = "stanchion"
RATIO = ".2f"


@dataclass
class Column:
    """One figure of each contender, with what it is a multiple of stanchion's if `ratio`.

    Those with a ratio are drawn as well.
    """

    head: str
    figure: str
    form: str = ",.0f"
    ratio: bool = False


@dataclass
class Bars:
    """One figure of every contender, to be drawn: its number and how it is written."""

    head: str
    names: list[str] = field(default_factory=list)
    figures: list[float] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)


@dataclass
class Goal:
    """What ought to be reached, and what was: at least or at most `bound`."""

    what: str
    measured: float
    bound: float
    at_least: bool = True
    form: str = ".1f"
    unit: str = "x"

    @property
    def reached(self) -> bool:
        if self.at_least:
            return self.measured >= self.bound
        return self.measured <= self.bound

    @property
    def asked(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self._with_unit(self.bound)}"

    @property
    def found(self) -> str:
        return self._with_unit(self.measured)

    def _with_unit(self, number: float) -> str:
        return f"{number:{self.form}}{self.unit}"

    def __str__(self) -> str:
        mark = "reached" if self.reached else "missed"
        return f"goal: {self.what}: {self.asked}; measured {self.found}, {mark}"


@dataclass
class Table:
    title: str
    heads: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)

    def text(self) -> str:
        lines = [self.heads, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.heads))]
        told = [self.title]
        for number, line in enumerate(lines):
            cells = [
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            told.append("  " + "  ".join(cells).rstrip())
            if number == 0:
                told.append("  " + "  ".join("-" * width for width in widths))
        return "\n".join(told + [f"  {note}" for note in self.notes])

    def show(self) -> None:
        if sys.stdout.isatty() and self._show_rich():
            return
        print(f"\n{self.text()}")

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
    table.bars = [Bars(column.head) for column in columns if column.ratio]
    for name in names or results.rounds:
        drawn = iter(table.bars)
        row = [name]
        for column in columns:
            median = results.median(name, column.figure)
            row.append(format(median, column.form))
            if column.ratio:
                ours = (
                    results.median(STANCHION, column.figure) if STANCHION in results.rounds else 0
                )
                row.append(f"{median / ours:{RATIO}}" if ours else "")
                bars = next(drawn)
                bars.names.append(name)
                bars.figures.append(median)
                bars.shown.append(row[-2])
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


def best_of(results: Results, peers: Sequence[str], figure: str, *, lowest: bool) -> str | None:
    """Get the best of the peers that were there, None without any or without stanchion."""
    present = [name for name in peers if name in results.rounds]
    if not present or STANCHION not in results.rounds:
        return None
    best = min if lowest else max
    return best(present, key=lambda name: results.median(name, figure))


def beside_best(
    results: Results,
    peers: Sequence[str],
    what: str,
    times: float,
    figure: str = "rate",
    *,
    lowest: bool = False,
) -> list[Goal]:
    """Get the goal to be so many times better than the best of the peers that were there.

    With `lowest` the figure is a cost, and the best is who has the lowest.
    """
    best = best_of(results, peers, figure, lowest=lowest)
    if best is None:
        return []
    factor = results.median(STANCHION, figure) / results.median(best, figure)
    return [Goal(f"{what}, beside {best}", 1 / factor if lowest else factor, times)]


def ratio_goal(
    results: Results,
    names: tuple[str, str],
    figure: str,
    what: str,
    bound: float,
    *,
    at_least: bool = True,
    percent: bool = False,
) -> list[Goal]:
    """Get the goal for the first one's figure to be so many times the second one's."""
    one, other = names
    if one not in results.rounds or other not in results.rounds:
        return []
    factor = results.median(one, figure) / results.median(other, figure)
    if percent:
        return [Goal(what, factor * 100, bound, at_least, ".0f", "%")]
    return [Goal(what, factor, bound, at_least, RATIO)]


def head(server: str, loop: str) -> dict[str, Any]:
    """Print what it is measured on; get that for the JSON."""
    machine = {**describe(), "loop": loop, "server": server}
    print(told(machine))
    return machine


def told(machine: Mapping[str, Any]) -> str:
    """Get the lines that say what something was measured on."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, {machine['system']}\n"
        f"{machine['python']}, {machine['loop']} as the event loop of all, {machine['server']}\n"
        f"{versions}"
    )


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the JSON: to the file, or where `path` is a directory, to the question's own in it."""
    if path.is_dir():
        path /= f"{document['question']}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
