"""The end of a run: what its processes left behind is gathered, counted, shown and judged."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.cli.demo.checks import Check, check, failures
from stanchion.cli.demo.leftovers import ttls
from stanchion.cli.demo.records import read_journal
from stanchion.cli.demo.report import Run, document, show
from stanchion.cli.demo.summary import Evidence, summarize
from stanchion.cli.output import Exit, complain
from stanchion.cli.places import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from stanchion import EventBus, PolicyState
    from stanchion.cli.demo.endpoint import Endpoint
    from stanchion.cli.demo.fleet import WorkerProcess
    from stanchion.cli.demo.records import Heard
    from stanchion.cli.demo.setup import Options, Setup
    from stanchion.cli.places import Place


@dataclass(frozen=True, slots=True)
class Ending:
    """What the parent knows when the load has ended; `died` says how a worker did, if one has.

    `start_us` is when it began by this machine's clock, `heard` what reached the parent itself.
    `outage_over`: the provider has failed for as long as was planned.
    """

    place: Place
    namespace: str
    workers: Sequence[WorkerProcess]
    endpoint: Endpoint
    heard: Sequence[Heard]
    start_us: int
    seconds: float
    outage_over: bool
    interrupted: bool
    died: str | None


async def conclude(
    options: Options, setup: Setup, ending: Ending, bus: EventBus, console: Console
) -> Exit:
    """Count and show what became of a run; get the status to exit with.

    Raises:
        StoreUnavailable: the store has gone.
        StanchionError: a worker's log cannot be read.
    """
    evidence = await _evidence(ending, bus)
    policies = setup.limits.policies()
    summary = summarize(policies, evidence)
    # Recorded calls may be too few at that time for a circuit to open.
    outage = ending.outage_over and setup.trace is None
    checks = check(summary, outage=outage, complete=ending.died is None)
    if ending.died is not None:
        checks.append(Check("workers", "every worker lived", ok=False, text=ending.died))
    run = Run(
        url=shown(options.url),
        namespace=ending.namespace,
        workers=options.workers,
        seconds=ending.seconds,
        start_us=ending.start_us + round(summary.clock_offset * 1e6),
        outage=setup.outage,
        trace=None if options.trace is None else str(options.trace),
        story=setup.story,
        interrupted=ending.interrupted,
    )
    if options.as_json:
        json.dump(document(run, summary, checks, policies), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        show(console, run, summary, checks, policies)
    for worker in ending.workers:
        for line in worker.last_lines():
            complain(f"{worker}: {line}")
    return judge(checks, interrupted=ending.interrupted)


async def states(bus: EventBus) -> list[PolicyState]:
    """Get the state of every key, in an order that stays."""
    found = [state async for state in bus.inspect()]
    return sorted(found, key=lambda state: (state.kind, state.policy, state.subject))


def judge(checks: Sequence[Check], *, interrupted: bool) -> Exit:
    """Get the status that checks give; tells on standard error which of them failed."""
    if failed := failures(checks):
        named = "; ".join(f"{one.about}: {one.name}: {one.text}" for one in failed)
        complain(f"{len(failed)} of {len(checks)} checks failed: {named}")
        return Exit.FAILED
    if interrupted:
        complain(f"interrupted; all {len(checks)} checks held until then")
        return Exit.INTERRUPTED
    return Exit.OK


async def _evidence(ending: Ending, bus: EventBus) -> Evidence:
    return Evidence(
        logs={
            worker.number: read_journal(worker.journal)
            for worker in ending.workers
            if worker.journal.exists()
        },
        heard=ending.heard,
        states=await states(bus),
        ttls=await ttls(ending.place.url, ending.namespace),
        most=ending.endpoint.most,
        billed=ending.endpoint.billed,
    )
