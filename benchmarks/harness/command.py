"""The command line of every benchmark, and what each of them does around its question."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import report, server
from harness.measure import compare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from harness.measure import Contender, Results
    from harness.report import Table


@dataclass
class Run:
    """What was asked for on the command line, the server, and what comes out."""

    url: str
    server: server.Server
    rounds: int
    quick: bool
    only: list[str]
    tables: list[Table] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def seconds(self, full: float) -> float:
        """Get how long a sample takes; `--quick` takes a fifth of it."""
        return full / 5 if self.quick else full

    def chosen(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Get those that `--only` names, or all."""
        return [who for who in contenders if not self.only or who.name in self.only]

    async def compare(
        self, contenders: Sequence[Contender], *, callers: int, seconds: float
    ) -> Results:
        """Measure those that were chosen, from an empty server on."""
        self.server.flush()
        return await compare(
            self.chosen(contenders),
            callers=callers,
            seconds=self.seconds(seconds),
            rounds=self.rounds,
        )

    def add(self, part: str, results: Results, table: Table) -> None:
        if not (results.rounds or results.left_out):
            return
        self.tables.append(table)
        self.results[part] = asdict(results)
        table.show()


def main(question: str, text: str | None, measure: Callable[[Run], Awaitable[None] | None]) -> None:
    """Run one benchmark as the command line says."""
    # Some peers log every refusal that proves that they refuse.
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog=f"benchmarks/{question}.py", description=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds")
    parser.add_argument("--rounds", type=int, help="how often each is measured (5; quick: 3)")
    parser.add_argument("--quick", action="store_true", help="shorter samples, for a first look")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="contender")
    asked = parser.parse_args()
    rounds = asked.rounds or (3 if asked.quick else 5)
    print((text or "").partition("\n")[0])
    with server.running() as here:
        machine = report.head(here.banner)
        run = Run(here.url, here, rounds, asked.quick, asked.only)
        done = measure(run)
        if inspect.isawaitable(done):
            asyncio.run(_wait(done))
    if not run.results:
        sys.exit(f"nothing was measured: no contender of that name ({', '.join(run.only)})")
    if asked.json is not None:
        document = {"machine": machine, "rounds": rounds, "results": run.results}
        document["tables"] = [asdict(table) for table in run.tables]
        report.write(asked.json, question, document)


async def _wait(done: Awaitable[None]) -> None:
    await done
