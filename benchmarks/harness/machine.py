"""What the figures were measured on, and with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Distributions whose version says something about a figure.
DISTRIBUTIONS = (
    "stanchion",
    "redis",
    "hiredis",
    "limits",
    "coredis",
    "throttled-py",
    "pyrate-limiter",
    "token-throttle",
    "purgatory",
    "pybreaker",
    "interlock-cb",
    "pydantic",
    "uvloop",
)


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def describe() -> dict[str, object]:
    cores = os.cpu_count() or 0
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "cpu": _cpu(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: found for name in DISTRIBUTIONS if (found := installed(name))},
    }


def resident() -> int:
    """Get the bytes of memory that this process occupies."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
