"""What is shown while a soak runs: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.console import Console

_LINE_EVERY = 5.0


class View(Protocol):
    """Shows how far it is."""

    def show(self, seconds: float, text: str) -> None: ...


class _Bar:
    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def show(self, seconds: float, text: str) -> None:
        self._progress.update(self._task, completed=seconds, description=text)


class _Lines:
    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total = total
        self._next = 0.0

    def show(self, seconds: float, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            self._console.print(f"{seconds:5.0f} s of {self._total:.0f} s  {text}", soft_wrap=True)


@contextmanager
def view(console: Console, total: float) -> Generator[View]:
    """Get a view for as long as the context lasts."""
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (BarColumn(30), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=console, transient=True) as progress:
        yield _Bar(progress, total)
