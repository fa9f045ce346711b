"""What was found out about a server, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad a finding is, the harmless ones first."""

    OK = "ok"
    HINT = "hint"
    WARNING = "warning"
    ERROR = "error"


class Check(StrEnum):
    """What is looked at."""

    CONNECTION = "connection"
    VERSION = "version"
    SCRIPTS = "scripts"
    RIGHTS = "rights"
    TLS = "tls"
    EVICTION = "eviction"
    MEMORY = "memory"
    PERSISTENCE = "persistence"
    REPLICATION = "replication"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"
    STATE = "state"
    CLOCK = "clock"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and how to mend it where that is worth while."""

    check: Check
    status: Status
    found: str
    remedy: str = ""


def worst(findings: tuple[Finding, ...]) -> Status:
    """Get the worst status of some findings, ok where there are none."""
    order = list(Status)
    return max((finding.status for finding in findings), key=order.index, default=Status.OK)
