"""Which fault comes when: drawn from a seed, so that a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Fault(StrEnum):
    """What is done to the fleet, or to its server."""

    HUNG_SERVER = "server stopped (SIGSTOP)"
    RESTARTED = "server killed, data kept"
    RESTARTED_EMPTY = "server killed, data lost"
    FLUSHED = "FLUSHALL"
    CONNECTIONS_KILLED = "CLIENT KILL TYPE normal"
    PUBSUB_KILLED = "CLIENT KILL TYPE pubsub"
    WRITES_PAUSED = "CLIENT PAUSE WRITE"
    ALL_PAUSED = "CLIENT PAUSE ALL"
    SCRIPTS_FLUSHED = "SCRIPT FLUSH, over and over"
    LONG_SCRIPT = "another's script runs long"
    OUT_OF_MEMORY = "out of memory (maxmemory)"
    RIGHT_TAKEN = "a right is taken away (ACL)"
    USER_DELETED = "the user is deleted (ACL)"
    WRONG_TYPE = "a key of the wrong type"
    REPLIES_LOST = "replies are lost"
    REPLIES_HALVED = "replies are cut in half"
    REPLIES_SLICED = "replies come in crumbs"
    SLOW_NETWORK = "every packet is late"
    RESET = "connections are reset (RST)"
    HALF_CLOSED = "connections are half closed"
    REFUSED = "connections are refused"
    WORKER_KILLED = "worker killed (SIGKILL)"
    WORKER_STOPPED = "worker stopped past its leases"
    CANCELLED = "all calls of a worker cancelled"


#: Those during which nobody may be denied for want of the store, but for the worker itself.
HARMLESS = frozenset(
    {
        *(Fault.PUBSUB_KILLED, Fault.SCRIPTS_FLUSHED, Fault.WRONG_TYPE, Fault.REPLIES_SLICED),
        *(Fault.WORKER_KILLED, Fault.WORKER_STOPPED, Fault.CANCELLED),
    }
)
#: Those after which the server has forgotten everything.
FORGETTING = frozenset({Fault.RESTARTED_EMPTY, Fault.FLUSHED})
_INSTANT = frozenset(
    {
        *(Fault.FLUSHED, Fault.CONNECTIONS_KILLED, Fault.PUBSUB_KILLED, Fault.RESET),
        *(Fault.WORKER_KILLED, Fault.CANCELLED, Fault.HALF_CLOSED),
    }
)
#: Seconds from the end of one fault to the next at least, and from start to start.
LEAST_PAUSE = 0.3
SOONEST, LATEST = 2.0, 5.0
LONGEST = 2.5


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: how long after the start of the last it comes, how long it lasts, and chance.

    `chance`, from 0 to 1, stands for whatever else there is to be chosen, and `victim` for which
    worker is hit, where it is one of them.
    """

    fault: Fault
    after: float
    lasts: float
    chance: float
    victim: float


def plan(seed: int, pace: float = 1.0) -> Iterator[Step]:
    """Get faults without end; each kind comes once before any comes again.

    With a `pace` of 0.5 they come twice as often, and last half as long.
    """
    rng = Random(seed)
    while True:
        for fault in rng.sample(list(Fault), len(Fault)):
            lasts = round(rng.uniform(0.3, LONGEST) * pace, 3)
            after = round(rng.uniform(SOONEST, LATEST) * pace, 3)
            yield Step(
                fault, after, 0.0 if fault in _INSTANT else lasts, rng.random(), rng.random()
            )
