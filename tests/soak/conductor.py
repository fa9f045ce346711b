"""One soak, from the first worker to the last figure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tests.leaks import immortal_keys
from tests.soak import audits, checks, faults
from tests.soak.chapters import Episode, Episodes
from tests.soak.findings import Invariant
from tests.soak.journal import now_us
from tests.soak.ledger import Ledger
from tests.soak.load import DEADLINE, LEASE, MICROS
from tests.soak.plan import FORGETTING, LEAST_PAUSE, plan
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.soak.plan import Step
    from tests.soak.progress import View
    from tests.soak.stage import Stage

TICK = 0.05
SAMPLE_EVERY, AUDIT_EVERY = 1.0, 1.0
#: Seconds within which every worker is served after a fault, or something is wrong.
RECOVERS_WITHIN = 8.0
#: And a worker that was just started, before it can be served at all.
STARTS_WITHIN = 20.0
CLOSES_WITHIN = 3.0


@dataclass(slots=True)
class ServerSample:
    """How big the server was, between two faults."""

    t: int
    keys: int
    memory: int


@dataclass(slots=True)
class Soak:
    """What a soak has gathered."""

    ledger: Ledger = field(default_factory=Ledger)
    episodes: Episodes = field(default_factory=Episodes)
    server: list[ServerSample] = field(default_factory=list)
    invariants: list[Invariant] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    began: int = 0
    ended: int = 0
    chapters: int = 0


class Conductor:
    """Runs the load, the faults and the checks."""

    def __init__(
        self, stage: Stage, view: View, *, seconds: float, seed: int, pace: float = 1.0
    ) -> None:
        self._stage = stage
        self._view = view
        self._seconds = seconds
        self._seed, self._pace = seed, pace
        self.soak = Soak()
        self._ledger, self._episodes = self.soak.ledger, self.soak.episodes
        self._calm = False
        self._next_sample = self._next_audit = 0.0
        self._compared = 0
        self._counts = Invariant("the store counts what the journals say was settled and reserved")
        self._leases = Invariant("the store never holds more leases than there are slots")
        self._leaked = Invariant("whoever has a lease in the store was admitted, and not settled")
        self._lives = Invariant("workers end when they are told to, and not before")

    def run(self) -> Soak:
        soak, stage = self.soak, self._stage
        stage.start()
        self._ledger.await_service(0)
        self._tick_until(self._all_served, STARTS_WITHIN)
        soak.began = now_us()
        self._play(time.monotonic() + self._seconds)
        soak.ended = now_us()
        self._finish()
        soak.chapters = len(stage.chapters.began)
        return soak

    def _play(self, ends: float) -> None:
        last = time.monotonic()
        for step in plan(self._seed, self._pace):
            self._calm = True
            self._tick_for(max(0.0, min(last + step.after, ends) - time.monotonic()))
            if time.monotonic() + faults.lasts(step) >= ends:
                self._tick_for(max(0.0, ends - time.monotonic()))
                return
            last = time.monotonic()
            self._inflict(step)
            self._calm = True
            self._tick_for(LEAST_PAUSE)

    def _inflict(self, step: Step) -> None:
        self._calm = False
        stage = self._stage
        hit = faults.targets(stage, step)
        episode = Episode(step, now_us(), frozenset(worker.name for worker in hit))
        self._episodes.all.append(episode)
        with faults.inflict(stage, self._ledger, step, hit) as again:
            self._tick_for(faults.lasts(step), again)
        episode.undone = now_us()
        self._ledger.await_service(episode.undone)
        if self._tick_until(self._all_served, RECOVERS_WITHIN):
            episode.recovery = max(self._ledger.served.values()) - episode.undone
        else:
            missing = {worker.name for worker in stage.workers} - self._ledger.served.keys()
            episode.note = f"{sorted(missing)} not served within {RECOVERS_WITHIN:g} s"
        # What was asked before that may still be under way.
        self._tick_for(DEADLINE)
        episode.ended = now_us()

    def _all_served(self) -> bool:
        return all(worker.name in self._ledger.served for worker in self._stage.workers)

    # -------------------------------------------------------------------------------- ticking

    def _tick_for(self, seconds: float, again: Callable[[], None] | None = None) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if again is not None:
                again()
            self._tick()
            time.sleep(min(TICK, left))

    def _tick_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._tick()
            if condition():
                return True
            time.sleep(TICK / 5)
        return False

    def _tick(self) -> None:
        self._read()
        now = time.monotonic()
        for worker in self._stage.workers:
            if (code := worker.process.poll()) is not None:
                errors = worker.errors.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{worker.name} ended by itself ({code}):\n{errors}")
        if self._calm and now >= self._next_sample:
            self._next_sample = now + SAMPLE_EVERY
            self._sample()
        if self._calm and now >= self._next_audit:
            self._next_audit = now + AUDIT_EVERY
            self._stage.audit()
        self._compare(now_us() - int(audits.SETTLES_IN * MICROS))
        self._show()

    def _read(self) -> None:
        for worker in self._stage.everybody:
            for line in worker.reader.new():
                self._ledger.take(worker.name, line)
        for line in self._stage.relay.reader.new():
            self._ledger.take("relay", line)

    def _sample(self) -> None:
        control = self._stage.server.control
        memory = cast("dict[str, Any]", control.info("memory"))
        keys = cast("int", control.dbsize())
        self.soak.server.append(ServerSample(now_us(), keys, int(memory["used_memory"])))

    def _compare(self, until: int) -> None:
        """Hold the audits of up to a moment against the journals."""
        while self._compared < len(self._stage.audits):
            audit = self._stage.audits[self._compared]
            if audit.at > until:
                return
            self._compared += 1
            self.soak.counters = audits.compare(
                audit, self._ledger, self._stage.chapters, self._episodes, self._counts
            )
            audits.compare_leases(audit, self._ledger, self._episodes, self._leases, self._leaked)

    def _show(self) -> None:
        ledger, soak = self._ledger, self.soak
        done = (now_us() - soak.began) / MICROS if soak.began else 0.0
        current = self._episodes.all[-1] if self._episodes.all else None
        doing = current.step.fault if current is not None and not current.ended else "all is well"
        seen = (self._counts, self._leases, self._leaked)
        broken = len(ledger.wrong) + sum(len(one.broken) for one in seen)
        self._view.show(
            min(done, self._seconds),
            f"{ledger.admitted:,} admitted, {ledger.vetoed:,} vetoed, "
            f"{len(self._episodes.all)} faults, {broken} broken; {doing}",
        )

    # ----------------------------------------------------------------------------- at the end

    def _finish(self) -> None:
        stage, soak = self._stage, self.soak
        self._calm = False
        for name, code in stage.close_workers().items():
            self._lives.check(code == 0, f"{name} ended with {code}")
        self._read()
        connections = Invariant("no connection of a worker is left")
        try:
            eventually_sync(lambda: not stage.connections(), CLOSES_WITHIN)
        except AssertionError:
            connections.broken.extend(stage.connections())
        connections.figures = f"{len(soak.ledger.ends)} workers closed"
        # Whatever was left behind ends now, and is then seen to have ended.
        time.sleep(LEASE + 0.1)
        last = stage.audit()
        self._compare(last.at)
        slots = Invariant("no slot or reservation is held once the last lease has ended")
        for (policy, who), live in last.live.items():
            slots.check(not live, f"{policy} {who}: {len(live)} live leases")
        slots.figures = f"{len(last.live)} sets of leases"
        keys = Invariant("every key has a TTL", broken=immortal_keys(stage.server))
        keys.figures = f"{sum(1 for _ in stage.server.keys('stanchion:*'))} keys"
        self._counts.figures = f"{self._compared} audits of {len(last.hashes)} counters"
        self._leases.figures = self._leaked.figures = (
            f"{self._compared} audits of {len(last.live)} sets"
        )
        self._lives.figures = f"{len(stage.everybody)} workers, {len(soak.ledger.killed)} killed"
        soak.invariants = [
            *checks.check(soak.ledger, stage.chapters, soak.episodes),
            *(self._counts, self._leases, self._leaked, slots, keys, connections),
            *(self._left_behind(), self._lives),
        ]

    def _left_behind(self) -> Invariant:
        found = Invariant("a closed worker has no task, thread or file descriptor more than before")
        for name, facts in self._ledger.ends.items():
            for what in ("tasks", "threads", "fds"):
                found.check(not facts[what], f"{name}: {what} {facts[what]}")
        for worker in self._stage.workers:
            found.check(worker.name in self._ledger.ends, f"{worker.name} said nothing at its end")
        found.figures = f"{len(self._ledger.ends)} workers closed"
        return found


def forgot(soak: Soak) -> int:
    """Get how often the server forgot everything."""
    return sum(episode.step.fault in FORGETTING for episode in soak.episodes.all)
