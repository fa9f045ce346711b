"""An exact limit on what was admitted during the last `per`: every request is remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import Answer, Ask, Limit, Report, Spec


@dataclass
class Entry:
    at: int
    weight: int
    settled: bool = False


@dataclass
class SlidingLog(Limit):
    log: dict[str, Entry] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        if spec is not None and spec != self.spec:
            self.spec = spec
            if spec["on_change"] == "reset":
                # A log cannot be scaled: any other choice leaves it as it is.
                self.log = {}
        self.log = {permit: entry for permit, entry in self.log.items() if self._inside(entry)}

    def _inside(self, entry: Entry) -> bool:
        return entry.at > self.now - self.spec["per"]

    def _leaves_in(self, entry: Entry) -> int:
        return entry.at + self.spec["per"] - self.now

    def decide(self, ask: Ask) -> Answer:
        limit = self.spec["limit"]
        left = limit - sum(entry.weight for entry in self.log.values())
        reset = max((self._leaves_in(entry) for entry in self.log.values()), default=0)
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, max(0, left), None, reset)
        if ask.cost > left:
            missing, wait = ask.cost - left, 0
            for entry in sorted(self.log.values(), key=lambda entry: entry.at):
                missing, wait = missing - entry.weight, self._leaves_in(entry)
                if missing <= 0:
                    break
            return Answer("limit_reached", limit, max(0, left), wait, reset)
        return Answer("ok", limit, left - ask.cost, 0, self.spec["per"] if ask.cost else reset)

    def take(self, ask: Ask) -> int:
        if ask.cost:
            self.log[ask.permit] = Entry(self.now, ask.cost)
        else:
            self.free.add(ask.permit)
        return 0

    def settle(self, report: Report) -> str:
        entry = self.log.get(report.permit)
        raise NotImplementedError(entry)

    def renew(self, permit: str) -> int:
        return 0

    def empty(self) -> bool:
        return not self.log
