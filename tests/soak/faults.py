"""The faults: each is a context that does it, and undoes it on the way out."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.soak.audits import key
from tests.soak.load import LEASE, VICTIM
from tests.soak.plan import Fault
from tests.soak.stage import USER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.soak.fleet import Worker
    from tests.soak.ledger import Ledger
    from tests.soak.plan import Step
    from tests.soak.stage import Stage

RIGHTS = ("evalsha", "hset", "hgetall")
STATES = (("quota", "p-budget"), ("rate", "p-rate"), ("slots", "p-slots"), ("circuit", "p-breaker"))
# Lua's own clock: the server's stands still while a script runs.
BUSY = "local t = os.clock() while os.clock() - t < tonumber(ARGV[1]) do end return 1"
FLUSH_EVERY = 0.25
#: In seconds of the processor.
LONGEST_SCRIPT = 1.0
#: Of so many faults of the network one hits all workers, the others one.
ALL_BELOW = 0.3


def targets(stage: Stage, step: Step) -> list[Worker]:
    """Get the workers that a fault hits, where it is not the server that is hit."""
    chosen = stage.workers[int(step.victim * len(stage.workers))]
    match step.fault:
        case Fault.WORKER_KILLED:
            # The first one lives from beginning to end: its memory is watched.
            others = stage.workers[1:]
            return [others[int(step.victim * len(others))]]
        case Fault.WORKER_STOPPED | Fault.CANCELLED:
            return [chosen]
        case fault if fault in _NETWORK:
            return list(stage.workers) if step.chance < ALL_BELOW else [chosen]
        case _:
            return []


def lasts(step: Step) -> float:
    """Get for how many seconds it lasts."""
    return LEASE + step.lasts if step.fault is Fault.WORKER_STOPPED else step.lasts


@contextmanager
def inflict(
    stage: Stage, ledger: Ledger, step: Step, hit: list[Worker]
) -> Generator[Callable[[], None]]:
    """Do it; what it gives is to be called now and then while it lasts."""
    fault = step.fault
    if fault in _NETWORK:
        with _network(stage, step, hit):
            yield _nothing
    elif fault in _WORKERS:
        with _workers(stage, ledger, step, hit):
            yield _nothing
    else:
        with _server(stage, step) as again:
            yield again


def _nothing() -> None:
    pass


# ------------------------------------------------------------------------------------ the network

_NETWORK = {
    Fault.REPLIES_LOST: "lose",
    Fault.REPLIES_HALVED: "halve",
    Fault.REPLIES_SLICED: "slice",
    Fault.SLOW_NETWORK: "slow",
    Fault.RESET: "reset",
    Fault.HALF_CLOSED: "half_close",
    Fault.REFUSED: "refuse",
}


@contextmanager
def _network(stage: Stage, step: Step, hit: list[Worker]) -> Generator[None]:
    argument: float | None = None
    if step.fault is Fault.SLOW_NETWORK:
        # Each way: below the deadline, or beyond it.
        argument = 0.02 + 0.5 * step.chance
    elif step.fault is Fault.REPLIES_SLICED:
        argument = 7
    for worker in hit:
        stage.relay.spoil(worker.place, _NETWORK[step.fault], argument)
    try:
        yield
    finally:
        for worker in hit:
            if step.fault is Fault.REPLIES_SLICED:
                # Nothing was lost, so nothing need be cut.
                stage.relay.spoil(worker.place, "slice", 0)
            elif step.fault not in {Fault.RESET, Fault.HALF_CLOSED}:
                stage.relay.spoil(worker.place, "heal")


# ------------------------------------------------------------------------------------ the workers

_WORKERS = frozenset({Fault.WORKER_KILLED, Fault.WORKER_STOPPED, Fault.CANCELLED})


@contextmanager
def _workers(stage: Stage, ledger: Ledger, step: Step, hit: list[Worker]) -> Generator[None]:
    for worker in hit:
        match step.fault:
            case Fault.WORKER_KILLED:
                stage.replace(worker, ledger)
            case Fault.WORKER_STOPPED:
                worker.signal(signal.SIGSTOP)
            case _:
                worker.signal(signal.SIGUSR1)
    try:
        yield
    finally:
        if step.fault is Fault.WORKER_STOPPED:
            for worker in hit:
                worker.signal(signal.SIGCONT)


# ------------------------------------------------------------------------------------- the server


@contextmanager
def _server(stage: Stage, step: Step) -> Generator[Callable[[], None]]:
    server = stage.server
    match step.fault:
        case Fault.HUNG_SERVER:
            server.pause()
            yield _nothing
            server.resume()
        case Fault.RESTARTED | Fault.RESTARTED_EMPTY:
            stage.kill_server(forget=step.fault is Fault.RESTARTED_EMPTY)
            yield _nothing
            server.start()
        case Fault.FLUSHED:
            stage.flush()
            yield _nothing
        case Fault.SCRIPTS_FLUSHED:
            yield _now_and_then(lambda: server.execute("SCRIPT", "FLUSH"))
        case Fault.LONG_SCRIPT:
            with _busy(stage, step):
                yield _nothing
        case _:
            before, after = _commands(stage, step)
            for command in before:
                server.execute(*command)
            yield _nothing
            for command in after:
                server.execute(*command)


def _now_and_then(work: Callable[[], object]) -> Callable[[], None]:
    due = 0.0

    def again() -> None:
        nonlocal due
        # Compiling all of them over and over would be all that the server does.
        if time.monotonic() >= due:
            work()
            due = time.monotonic() + FLUSH_EVERY

    return again


Commands = list[tuple[str | int, ...]]


def _commands(stage: Stage, step: Step) -> tuple[Commands, Commands]:
    """Get the commands that do it, and those that undo it."""
    right = RIGHTS[int(step.chance * len(RIGHTS))]
    broken = key(*STATES[int(step.chance * len(STATES))], VICTIM)
    pause = ("CLIENT", "PAUSE", int(step.lasts * 1000))
    kill = ("CLIENT", "KILL", "TYPE")
    known: dict[Fault, tuple[Commands, Commands]] = {
        Fault.CONNECTIONS_KILLED: ([(*kill, "normal", "SKIPME", "yes")], []),
        Fault.PUBSUB_KILLED: ([(*kill, "pubsub")], []),
        # A pause ends by itself; a client that is to end it may be paused as well.
        Fault.WRITES_PAUSED: ([(*pause, "WRITE")], []),
        Fault.ALL_PAUSED: ([(*pause, "ALL")], []),
        Fault.OUT_OF_MEMORY: (
            [("CONFIG", "SET", "maxmemory", 1)],
            [("CONFIG", "SET", "maxmemory", 0)],
        ),
        Fault.RIGHT_TAKEN: ([("ACL", "SETUSER", USER, f"-{right}")], [stage.all_rights]),
        Fault.USER_DELETED: ([("ACL", "DELUSER", USER)], [stage.all_rights]),
        Fault.WRONG_TYPE: (
            [("DEL", broken), ("SET", broken, "not what it should be", "EX", 60)],
            [("DEL", broken)],
        ),
    }
    return known[step.fault]


@contextmanager
def _busy(stage: Stage, step: Step) -> Generator[None]:
    """Keep the server busy with a script of somebody else's."""
    # To half of them the server answers everybody that it is busy, instead of nothing at all.
    patience = 50 if step.chance < 0.5 else 5000
    stage.server.execute("CONFIG", "SET", "busy-reply-threshold", patience)

    def run() -> None:
        once = Retry(NoBackoff(), 0)
        with stage.server.sync_client(socket_timeout=30, retry=once) as client:
            client.eval(BUSY, 0, str(min(step.lasts, LONGEST_SCRIPT)))

    thread = threading.Thread(target=run)
    thread.start()
    # It is under way when it has been sent; a moment is enough for that.
    time.sleep(0.02)
    try:
        yield
    finally:
        thread.join()
        stage.server.execute("CONFIG", "SET", "busy-reply-threshold", 5000)
