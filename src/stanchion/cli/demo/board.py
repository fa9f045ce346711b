"""What is shown while the demo runs: a live table on a terminal, a line a second elsewhere."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from rich.bar import Bar
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

    from stanchion.cli.demo.scene import Scene

_COLOURS = {"open": "red", "half_open": "yellow", "closed": "green", "full": "yellow"}
_SPAN = 1.0  # seconds over which rates are taken
_WARM, _HOT = 0.7, 0.999


class View(Protocol):
    """Shows scenes."""

    every: float

    def show(self, scene: Scene) -> None:
        """Show one."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(slots=True)
class _Rates:
    """Counts that rise, as rates over the last second."""

    seen: dict[object, deque[tuple[float, int]]] = field(
        default_factory=dict["object", "deque[tuple[float, int]]"]
    )

    def of(self, name: object, elapsed: float, count: int) -> float:
        points = self.seen.setdefault(name, deque())
        points.append((elapsed, count))
        while len(points) > 2 and points[1][0] <= elapsed - _SPAN:
            points.popleft()
        began, first = points[0]
        return (count - first) / (elapsed - began) if elapsed > began else 0.0


class LiveView:
    """Tables that are drawn over and over again."""

    every = 0.25

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._rates = _Rates()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, scene: Scene) -> None:
        """Draw one scene over the last."""
        self._live.update(self.draw(scene), refresh=True)

    def draw(self, scene: Scene) -> RenderableType:
        """Get what a scene looks like."""
        return Group(_title(scene), "", _policies(scene), "", self._workers(scene))

    def _workers(self, scene: Scene) -> Table:
        table = _table(
            "worker",
            "pid",
            "calls/s >",
            "vetoes/s >",
            "in flight >",
            "runs >",
            "last news of the circuit",
        )
        for worker in scene.workers:
            report = worker.report
            if report is None:
                continue
            news = list(report.learned.items())[-1:]
            table.add_row(
                str(worker.number),
                str(worker.pid),
                f"{self._rates.of((worker.pid, 'calls'), scene.elapsed, report.calls):.1f}",
                f"{self._rates.of((worker.pid, 'vetoes'), scene.elapsed, report.refused):.1f}",
                str(report.in_flight),
                str(report.runs),
                ", ".join(f"{what} after {delay * 1000:.1f} ms" for what, delay in news),
            )
        return table


class PlainView:
    """A line a second, for files and pipes."""

    every = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = Counter[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def show(self, scene: Scene) -> None:
        """Write one line: what came since the last."""
        now = Counter({"admitted": scene.admitted, "vetoed": scene.vetoed})
        for label, count in scene.counts("vetoed").items():
            now[f"by {label.partition(' ')[0]}"] += count
        new, self._last = now - self._last, now
        why = ", ".join(
            f"{name[3:]} {count}" for name, count in sorted(new.items()) if name[:3] == "by "
        )
        circuits = ", ".join(
            f"{state.subject} {usage.state.replace('_', ' ')}"
            for state, usage in scene.usages()
            if state.kind == "circuit"
        )
        failing = f"  the provider of {scene.failing} is failing" if scene.failing else ""
        self._console.print(
            Text(
                f"{scene.elapsed:6.1f} s  +{new['admitted']:<4,} admitted  "
                f"+{new['vetoed']:<4,} vetoed{f' ({why})' if why else ''}  "
                f"circuits: {circuits or '-'}{failing}"
            ),
            soft_wrap=True,
        )


def _title(scene: Scene) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    text = Text(f"{scene.elapsed:5.1f} s of {scene.seconds:.0f} s", style="bold")
    state = Text("running")
    if scene.stopping:
        state = Text("stopping: waiting for what is in flight")
    elif scene.failing:
        state = Text(f"the provider of {scene.failing!r} is failing", style="bold red")
    done = min(scene.elapsed, scene.seconds)
    grid.add_row(
        text,
        ProgressBar(total=scene.seconds, completed=done, width=20),
        f"{scene.admitted:,} admitted",
        f"{scene.vetoed:,} vetoed",
        state,
    )
    return grid


def _policies(scene: Scene) -> Table:
    table = _table("policy", "subject", "now >", "", "admitted >", "vetoed >", "state", "next")
    admitted, vetoed = scene.counts("admitted"), scene.counts("vetoed")
    for state, usage in scene.usages():
        label = f"{state.policy} {state.subject}"
        share = usage.share
        colour = "green"
        if share is not None:
            colour = "red" if share >= _HOT else "yellow" if share >= _WARM else "green"
        bar = "" if share is None else Bar(1.0, 0, min(1.0, share), width=12, color=colour)
        table.add_row(
            state.policy,
            state.subject.replace(":", " "),
            "" if usage.limit is None else usage.amount,
            bar,
            f"{admitted[label]:,}",
            f"{vetoed[label]:,}",
            Text(usage.state.replace("_", " "), style=_COLOURS.get(usage.state, "")),
            usage.coming,
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        name, right, _ = column.partition(" >")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table
