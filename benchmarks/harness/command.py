"""The command line of every benchmark, and what each of them does around its question."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness import loops, plot, report, server
from harness.measure import compare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from harness.measure import Contender, Results
    from harness.report import Goal, Table


Outcome = TypeVar("Outcome")


@dataclass
class Run:
    """What was asked for on the command line, the server, and what comes out."""

    url: str
    server: server.Server
    rounds: int
    quick: bool
    only: list[str]
    loop: str
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def seconds(self, full: float) -> float:
        """Get how long a sample takes; `--quick` takes a fifth of it."""
        return full / 5 if self.quick else full

    def chosen(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Get those that `--only` names, or all."""
        return [who for who in contenders if not self.only or who.name in self.only]

    async def compare(
        self, contenders: Sequence[Contender], *, callers: int, seconds: float, finer: int = 1
    ) -> Results:
        """Measure those that were chosen, from an empty server on.

        `finer` is into how many rounds each is divided: what lasts shorter than a round, such as
        which core somebody happens to run on, is then in one round of many.
        """
        self.server.flush()
        finer = 1 if self.quick else finer
        return await compare(
            self.chosen(contenders),
            callers=callers,
            seconds=self.seconds(seconds) / finer,
            rounds=self.rounds * finer,
        )

    def complete(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run it on the loop that was asked for, where the benchmark has none of its own."""
        return loops.complete(work, self.loop)

    def add(self, part: str, results: Results, table: Table, goals: Sequence[Goal] = ()) -> None:
        if not (results.rounds or results.left_out):
            return
        self.tables.append(table)
        self.goals += goals
        self.results[part] = asdict(results)
        table.show()
        for goal in goals:
            print(f"  {goal}")


def main(question: str, text: str | None, measure: Callable[[Run], Awaitable[None] | None]) -> None:
    """Run one benchmark as the command line says."""
    # Some peers log every refusal that proves that they refuse.
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog=f"benchmarks/{question}.py", description=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios: a PNG")
    parser.add_argument(
        "--loop",
        choices=loops.NAMES,
        default=loops.fastest(),
        help="for all (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, help="how often each is measured (5; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="shorter samples, for a first look")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contender")
    asked = parser.parse_args()
    if asked.plot is not None and (missing := plot.missing()):
        sys.exit(missing)
    rounds = asked.rounds or (3 if asked.quick else 5)
    print((text or "").partition("\n")[0])
    with server.running() as here:
        machine = report.head(here.banner, asked.loop)
        run = Run(here.url, here, rounds, asked.quick, asked.only, asked.loop)
        done = measure(run)
        if inspect.isawaitable(done):
            run.complete(_wait(done))
    if not run.results:
        sys.exit(f"nothing was measured: no contender of that name ({', '.join(run.only)})")
    document = {"question": question, "machine": machine, "rounds": rounds, "results": run.results}
    document["tables"] = [asdict(table) for table in run.tables]
    document["goals"] = [asdict(goal) for goal in run.goals]
    if asked.json is not None:
        report.write(asked.json, document)
    if asked.plot is not None:
        plot.draw(asked.plot, document)


async def _wait(done: Awaitable[None]) -> None:
    await done
