"""`python -m tests.soak`: mixed load and a random fault every few seconds, then a verdict."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.soak import memory, report
from tests.soak.conductor import Conductor
from tests.soak.progress import view
from tests.soak.stage import Stage

SERVERS = {"valkey": "valkey9", "redis8": "redis8", "redis7": "redis7"}
_PIPED_WIDTH = 170
#: Seconds that a deed takes, about.
_TAKES = 0.1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="make soak",
        description="Several worker processes under mixed load share one server, and a random "
        "fault comes every few seconds. At the end nothing may have leaked, and every invariant "
        "must have held; the exit status is 1 if one did not.",
    )
    made.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    made.add_argument("--seed", type=int, help="repeats a plan of faults (default: a new one)")
    made.add_argument("--server", choices=SERVERS, default="valkey", help="default: valkey")
    made.add_argument("--workers", type=int, default=4, help="processes, 3 or more (default: 4)")
    made.add_argument(
        "--rate", type=float, default=240.0, help="deeds a second, about, of all (default: 240)"
    )
    made.add_argument(
        "--pace", type=float, default=1.0, help="0.5: faults twice as often, half as long"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    made.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the workers' journals and logs there"
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.minutes <= 0 or min(given.rate, given.pace) <= 0 or given.workers < 3:
        parser().error("--minutes, --rate and --pace take more than 0, --workers 3 or more")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    console = Console(
        highlight=False, emoji=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH
    )
    console.print(
        f"make soak ARGS='--minutes {given.minutes:g} --seed {seed} --server {given.server} "
        f"--workers {given.workers} --rate {given.rate:g} --pace {given.pace:g}'"
    )
    directory = Path(tempfile.mkdtemp(prefix="stanchion-soak-"))
    players, seconds = 16, 60 * given.minutes
    stage = Stage(
        SERVERS[given.server],
        directory,
        workers=given.workers,
        players=players,
        pause=max(0.01, given.workers * players / given.rate - _TAKES),
        seed=seed,
    )
    try:
        with view(console, seconds) as shown:
            conductor = Conductor(stage, shown, seconds=seconds, seed=seed, pace=given.pace)
            soak = conductor.run()
    finally:
        stage.close()
        if given.keep is not None:
            shutil.copytree(directory, given.keep, dirs_exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
    invariants = [*soak.invariants, *memory.check(memory.measure(soak))]
    told = report.document(soak, invariants, server=given.server, seed=seed, seconds=seconds)
    report.show(console, told)
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
