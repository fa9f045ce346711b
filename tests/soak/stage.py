"""The server, the relay and the workers of one soak."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.rights import documented
from tests.servers import RealServer, Reaper
from tests.soak.audits import Audit, read
from tests.soak.chapters import Chapters
from tests.soak.fleet import Relay, Worker
from tests.soak.journal import now_us
from tests.soak.load import NAMESPACE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.soak.ledger import Ledger

USER = "worker"
_AOF = "appendonlydir"


class Stage:
    """Starts them, replaces them, and knows which chapter it is."""

    def __init__(
        self, program: str, directory: Path, *, workers: int, players: int, pause: float, seed: int
    ) -> None:
        rules, *_ = documented(USER, NAMESPACE)
        self.rules = rules
        self.reaper = Reaper()
        # Kept on disk as of every reply, so that a server that is killed has lost nothing.
        options = ("--appendonly", "yes", "--auto-aof-rewrite-min-size", "32mb")
        self.server = RealServer(program, self.reaper, options=(*options, "--user", USER, *rules))
        self._directory = directory
        self._load = {"players": players, "pause": pause}
        self._seed, self._count, self._started = seed, workers, 0
        self.workers: list[Worker] = []
        self.everybody: list[Worker] = []
        self.audits: list[Audit] = []
        self.chapters = Chapters([])
        self._relay: Relay | None = None

    @property
    def relay(self) -> Relay:
        assert self._relay is not None
        return self._relay

    def start(self) -> None:
        self.server.start()
        self.chapters.began.append(now_us())
        self._relay = Relay(self.server.port, self._count, self._directory, self.reaper)
        self.workers = [self._start_worker(place) for place in range(self._count)]

    def _start_worker(self, place: int) -> Worker:
        self._started += 1
        worker = Worker(
            f"worker-{self._started}",
            place,
            self.relay.ports[place],
            self._directory,
            self.reaper,
            seed=self._seed * 1000 + self._started,
            **self._load,
        )
        self.everybody.append(worker)
        return worker

    def replace(self, worker: Worker, ledger: Ledger) -> None:
        """Kill a worker, and start another one in its place."""
        worker.kill()
        ledger.killed[worker.name] = now_us()
        self.workers[worker.place] = self._start_worker(worker.place)

    # ------------------------------------------------------------------------ the server's data

    def flush(self) -> None:
        """Have everything forgotten, and know what there was."""
        self.audits.append(audit := read(self.server, flush=True))
        self.chapters.began.append(audit.at + 1)

    def audit(self) -> Audit:
        audit = read(self.server)
        self.audits.append(audit)
        with (self._directory / "audits").open("a") as file:
            print(audit, file=file)
        return audit

    def kill_server(self, *, forget: bool) -> None:
        self.server.kill()
        if forget:
            shutil.rmtree(self.server.directory / _AOF)
            self.chapters.began.append(now_us())

    @property
    def all_rights(self) -> tuple[str, ...]:
        """The command that gives the workers' user all that it needs, and nothing else."""
        return ("ACL", "SETUSER", USER, "reset", *self.rules)

    # -------------------------------------------------------------------------------- the end

    def connections(self) -> list[str]:
        """Get who is connected besides this process."""
        return [f"{one['addr']} {one['name']!r}" for one in self.server.connections()]

    def close_workers(self) -> dict[str, int]:
        """Have every worker finish; get how each ended."""
        # Told all at once: none is to wait for what another one holds.
        for worker in self.workers:
            worker.tell_to_finish()
        ended: dict[str, int] = {}
        for worker in self.workers:
            ended[worker.name] = worker.close()
        return ended

    def close(self) -> None:
        """End whatever still runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        if self._relay is not None:
            self._relay.close()
        if self.server.paused and self.server.alive:
            self.server.resume()
        self.server.stop()
        self.reaper.close()
