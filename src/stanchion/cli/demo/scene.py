"""One moment of a run, as what shows it needs it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.cli.reading import Usage, usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stanchion import PolicyState
    from stanchion.cli.demo.fleet import WorkerProcess


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment of a run."""

    elapsed: float
    seconds: float
    failing: str | None
    states: Sequence[PolicyState]
    workers: Sequence[WorkerProcess]
    stopping: bool = False

    @property
    def admitted(self) -> int:
        """Calls admitted so far."""
        return sum(worker.report.calls for worker in self.workers if worker.report)

    @property
    def vetoed(self) -> int:
        """Decisions so far that were vetoes."""
        return sum(worker.report.refused for worker in self.workers if worker.report)

    def counts(self, what: str) -> Counter[str]:
        """Get the workers' counts, `admitted` or `vetoed`, by "policy subject"."""
        total: Counter[str] = Counter()
        for worker in self.workers:
            if worker.report is not None:
                counted: Mapping[str, int] = getattr(worker.report, what)
                total.update(counted)
        return total

    def usages(self) -> Iterator[tuple[PolicyState, Usage]]:
        """Get each key's state with what it says."""
        for state in self.states:
            yield state, usage_of(state)
