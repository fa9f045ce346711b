"""Spans of time in which the server forgot nothing, and those in which a fault was felt."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.soak.plan import HARMLESS, Fault

if TYPE_CHECKING:
    from tests.soak.plan import Step


@dataclass(slots=True)
class Chapters:
    """Where the accounting began anew, by the server's clock."""

    began: list[int]

    def of(self, at: int) -> int:
        """Get the number of the chapter that holds a moment."""
        return bisect_right(self.began, at) - 1

    def span(self, chapter: int) -> tuple[int, int]:
        """Get when it began, and when the next one did."""
        later = self.began[chapter + 1 :]
        return self.began[chapter], later[0] if later else 1 << 62


@dataclass(slots=True)
class Episode:
    """One fault: from when it was felt until all was well again."""

    step: Step
    began: int
    #: Names of the workers that were hit; none: all of them.
    hit: frozenset[str] = frozenset()
    undone: int = 0
    ended: int = 0
    #: Microseconds after the undoing until each worker was served, the slowest of them.
    recovery: int | None = None
    note: str = ""

    def covers(self, begins: int, ends: int) -> bool:
        return begins < (self.ended or 1 << 62) and ends > self.began

    def excuses(self, worker: str) -> bool:
        """Get whether it explains that this worker was denied for want of the store."""
        if self.step.fault is Fault.WORKER_STOPPED:
            return worker in self.hit
        return self.step.fault not in HARMLESS and (not self.hit or worker in self.hit)


@dataclass(slots=True)
class Episodes:
    """All of them, one after another."""

    all: list[Episode] = field(default_factory=list)

    def during(self, begins: int, ends: int) -> list[Episode]:
        """Get those that a span of time touches."""
        # They do not overlap, so only the last ones before it can.
        first = bisect_right(self.all, begins, key=lambda episode: episode.began) - 2
        found: list[Episode] = []
        for episode in self.all[max(0, first) :]:
            if episode.began > ends:
                break
            if episode.covers(begins, ends):
                found.append(episode)
        return found

    def excused(self, worker: str, begins: int, ends: int) -> bool:
        return any(episode.excuses(worker) for episode in self.during(begins, ends))
