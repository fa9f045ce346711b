"""An exact limit on what was admitted during the last `per`: every request is remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import Answer, Ask, Limit, Report, Spec


@dataclass(frozen=True)
class Entry:
    at: int
    weight: int
    settled: bool = False


@dataclass
class SlidingLog(Limit):
    log: dict[str, Entry] = field(default_factory=dict)

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        if spec is not None and spec != self.spec:
            self.spec = spec
            if spec["on_change"] == "reset":
                # A log cannot be scaled: any other choice leaves it as it is.
                self.log = {}
        self.log = {
            permit: entry for permit, entry in self.log.items() if self._leaves_in(entry) > 0
        }

    def lose(self, at: int, rule: str) -> None:
        entry = Entry(at, self.spec["limit"])
        if self._leaves_in(entry) > 0:
            self.log = {"lost": entry}

    def _leaves_in(self, entry: Entry) -> int:
        return entry.at + self.spec["per"] - self.now

    def decide(self, ask: Ask) -> Answer:
        limit = self.spec["limit"]
        left = limit - sum(entry.weight for entry in self.log.values())
        counted = [entry for entry in self.log.values() if entry.weight]
        reset = max((self._leaves_in(entry) for entry in counted), default=0)
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, max(0, left), None, reset)
        if ask.cost > left:
            missing, wait = ask.cost - left, 0
            for entry in sorted(counted, key=lambda entry: entry.at):
                missing, wait = missing - entry.weight, self._leaves_in(entry)
                if missing <= 0:
                    break
            return Answer("limit_reached", limit, max(0, left), wait, reset)
        return Answer("ok", limit, left - ask.cost, 0, self.spec["per"] if ask.cost else reset)

    def take(self, ask: Ask) -> int:
        self.log = {**self.log, ask.permit: Entry(self.now, ask.cost)}
        self.dirty = True
        return 0

    def settle(self, report: Report) -> str:
        entry = self.log.get(report.permit)
        if entry is None or entry.settled:
            return "stale"
        if report.actual != entry.weight:
            self.log = {**self.log, report.permit: Entry(entry.at, report.actual, settled=True)}
            self.dirty = True
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        return 0

    def empty(self) -> bool:
        return not self.log
