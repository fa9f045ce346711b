"""The list of faults, and the table of what each of them did."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

N = TypeVar("N", int, float)

#: The list. A row has one line in the table for each way in which it is produced.
ROWS = {
    1: "Hung server",
    2: "Crashed server",
    3: "No server there",
    4: "Connections killed",
    5: "Subscription killed",
    6: "Server paused",
    7: "Server blocked",
    8: "Scripts flushed",
    9: "Data flushed",
    10: "Reply lost",
    11: "Bad connection",
    12: "Caller cancelled",
    13: "Pool exhausted",
    14: "Server made a replica",
    15: "Sentinel failover",
    16: "Cluster failover",
    17: "Slots moved",
    18: "Too few replicas",
    19: "Memory full",
    20: "Limits may be evicted",
    21: "State of another kind",
    22: "Rights taken away",
    23: "Worker's clock jumps",
    24: "Server's clock goes back",
    25: "Prober killed",
    26: "Holder killed or stopped",
    27: "Fork, another loop",
    28: "Observer fails",
    29: "A later policy vetoes",
    30: "Another version's state",
}

_MARKED = re.compile(r"(?<=<!-- faults: table -->\n).*?(?=<!-- end of faults -->)", re.DOTALL)
_HEADS = (
    *("#", "fault", "servers", "what the caller saw", "worst answer", "deadline"),
    *("asked / admitted / charged", "recovered in"),
)


@dataclass(frozen=True)
class Line:
    """What one way of producing one fault did; times in seconds, None where there is none."""

    row: int
    fault: str
    servers: list[str]
    seen: dict[str, int]
    asked: int
    admitted: int
    charged: int | None
    worst: float | None
    deadline: float | None
    recovery: float | None

    def and_(self, other: Line) -> Line:
        """Get both as one: counts added up, the worst of the times."""
        return Line(
            self.row,
            self.fault,
            sorted({*self.servers, *other.servers}),
            dict(Counter(self.seen) + Counter(other.seen)),
            self.asked + other.asked,
            self.admitted + other.admitted,
            None if (counts := _known(self.charged, other.charged)) == [] else sum(counts),
            max(_known(self.worst, other.worst), default=None),
            max(_known(self.deadline, other.deadline), default=None),
            max(_known(self.recovery, other.recovery), default=None),
        )


def _known(*figures: N | None) -> list[N]:
    return [figure for figure in figures if figure is not None]


def merged(lines: Iterable[Line]) -> list[Line]:
    """Get one line for each fault, in the order of the list."""
    found: dict[tuple[int, str], Line] = {}
    for line in lines:
        if line.row not in ROWS:
            raise ValueError(f"the list has no row {line.row}: {line.fault}")
        place = line.row, line.fault
        found[place] = found[place].and_(line) if place in found else line
    return [found[place] for place in sorted(found)]


def missing(lines: Iterable[Line]) -> list[int]:
    """Get the rows of the list that nobody recorded."""
    return sorted(ROWS.keys() - {line.row for line in lines})


def table(lines: Iterable[Line]) -> str:
    """Get the lines, and what is missing, as a table in Markdown."""
    lines = merged(lines)
    cells = [(line.row, _cells(line)) for line in lines]
    nothing = ("missing", *("" for _ in _HEADS[3:]))
    cells += [(row, (str(row), ROWS[row], *nothing)) for row in missing(lines)]
    rows = [cell for _, cell in sorted(cells, key=lambda placed: placed[0])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (_HEADS, ["---"] * len(_HEADS), *rows))


def _cells(line: Line) -> tuple[str, ...]:
    seen = sorted(line.seen.items(), key=lambda told: -told[1])
    charged = "–" if line.charged is None else str(line.charged)
    return (
        str(line.row),
        f"{ROWS[line.row]}: {line.fault}",
        ", ".join(line.servers) or "–",
        ", ".join(f"{what} ({count})" for what, count in seen),
        _seconds(line.worst),
        _seconds(line.deadline),
        f"{line.asked} / {line.admitted} / {charged}",
        _seconds(line.recovery),
    )


def _seconds(figure: float | None) -> str:
    if figure is None:
        return "–"
    return f"{figure * 1000:.0f} ms" if figure < 1 else f"{figure:.1f} s"


def put(file: Path, lines: Iterable[Line], command: str) -> None:
    """Write the figures into a `.json`, or the table between the marks of another file."""
    lines = merged(lines)
    if file.suffix == ".json":
        told = {
            "command": command,
            "machine": machine(),
            "faults": [{"title": ROWS[line.row], **asdict(line)} for line in lines],
            "missing": [{"row": row, "title": ROWS[row]} for row in missing(lines)],
        }
        text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    else:
        text = f"\n{table(lines)}\n\nMeasured on {machine()}, with `{command}`.\n\n"
        if file.exists() and _MARKED.search(page := file.read_text("utf-8")):
            text = _MARKED.sub(lambda _: text, page)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def machine() -> str:
    """Get what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    named = (
        re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE)
        if info.exists()
        else None
    )
    cpu = named[1] if named else platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{cpu}, {os.cpu_count()} cores, {system}, Python {platform.python_version()}"
