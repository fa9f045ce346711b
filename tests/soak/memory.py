"""Whether memory stays flat: of the worker that lives from beginning to end, and of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.soak import trend
from tests.soak.findings import Invariant
from tests.soak.load import BY_NAME, MICROS, SUBJECTS

if TYPE_CHECKING:
    from tests.soak.conductor import Soak
    from tests.soak.trend import Trend

MIB = 1 << 20
#: What the last two thirds may grow by.
WORKER_GROWS = 6 * MIB
SERVER_GROWS = 3 * MIB
#: A state, its leases, its line and who is alive in it, for each subject; and those shared by all.
MOST_KEYS = 4 * len(BY_NAME) * (len(SUBJECTS) + 1) + 8


class Memory(NamedTuple):
    """What was measured; bytes."""

    worker: Trend
    server: Trend
    keys: int


def measure(soak: Soak) -> Memory:
    elder = max(soak.ledger.samples.values(), key=len, default=[])
    rss = [(one.t / MICROS, one.rss_kib * 1024.0) for one in elder]
    used = [(one.t / MICROS, float(one.memory)) for one in soak.server]
    return Memory(trend.of(rss), trend.of(used), max((one.keys for one in soak.server), default=0))


def check(memory: Memory) -> list[Invariant]:
    worker = Invariant("a worker's memory is flat (RSS, last two thirds, least squares)")
    server = Invariant("the server's memory is flat (used_memory, last two thirds, least squares)")
    for found, line, bound in (
        (worker, memory.worker, WORKER_GROWS),
        (server, memory.server, SERVER_GROWS),
    ):
        found.figures = (
            f"{line.growth / MIB:+.2f} MiB in {line.span:.0f} s, at most {bound // MIB}; "
            f"{line.least / MIB:.1f} to {line.most / MIB:.1f} MiB"
        )
        if line.tells:
            found.check(line.growth <= bound, found.figures)
        else:
            found.figures += "; too short to tell"
    keys = Invariant("the number of keys goes by subjects, not by traffic")
    keys.figures = f"{memory.keys} at most, of {MOST_KEYS}"
    keys.check(0 < memory.keys <= MOST_KEYS, keys.figures)
    return [worker, server, keys]
