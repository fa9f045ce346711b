"""A limit on what is admitted between two multiples of `per`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, carried, ceil


@dataclass(frozen=True)
class Charge:
    window: int
    at: int
    cost: int


@dataclass
class FixedWindow(Limit):
    start: int = field(init=False)
    used: int = 0
    charges: dict[str, Charge] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self._window()

    def _window(self) -> int:
        return self.now - self.now % self.spec["per"]

    @property
    def _end(self) -> int:
        return self.start + self.spec["per"]

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        if now >= self._end:
            self.used = 0
        if spec is not None and spec != self.spec:
            was, self.spec = self.spec["limit"], spec
            self.used = ceil(carried(spec["on_change"], Fraction(self.used), was, spec["limit"]))
        self.start = self._window()

    def lose(self, at: int, rule: str) -> None:
        if self.start <= at:
            self.used = self.spec["limit"]

    def decide(self, ask: Ask) -> Answer:
        limit = self.spec["limit"]
        left, ends_in = limit - self.used, self._end - self.now
        reset = ends_in if self.used else 0
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, max(0, left), None, reset)
        if ask.cost > left:
            return Answer("limit_reached", limit, max(0, left), ends_in, reset)
        return Answer("ok", limit, left - ask.cost, 0, ends_in if self.used + ask.cost else 0)

    def take(self, ask: Ask) -> int:
        self.used += ask.cost
        self.charges[ask.permit] = Charge(self.start, self.now, ask.cost)
        self.dirty = True
        return 0

    def settle(self, report: Report) -> str:
        charge = self.charges.get(report.permit)
        if charge is None:
            return "stale"
        delta = report.actual - charge.cost
        if delta == 0:
            return "settled"
        if self.settled.get(report.permit, 0) > self.now:
            return "stale"
        self.settled[report.permit] = self.now + max(HOUR, 2 * self.spec["per"])
        self.dirty = True
        if delta > 0 or charge.window == self.start:
            # A debt is paid in the window in which it becomes known, a refund belongs to its own.
            self.used = max(0, self.used + delta)
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        return 0

    def empty(self) -> bool:
        return (not self.used or self.now >= self._end) and all(
            self.now >= charge.at + HOUR for charge in self.charges.values()
        )
