"""A limit on what was admitted during the last `per`, by slices."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, ceil, first_moment, floor
from tests.model.slices import Slices


@dataclass(frozen=True)
class Charge:
    at: int
    cost: int
    slices: Slices


@dataclass
class SlidingWindow(Limit):
    slices: Slices = field(init=False)
    charges: dict[str, Charge] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slices = Slices.cut(self.spec["per"], self.spec["slices"], self.now)

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        if spec is not None and spec != self.spec:
            was, self.spec = self.spec, spec
            self.slices = redeclared(self.slices, was, spec, now)

    def lose(self, at: int, rule: str) -> None:
        self.slices = self.slices.plus(self.slices.filling(at), self.spec["limit"])

    def decide(self, ask: Ask) -> Answer:
        limit, inside = self.spec["limit"], self.slices.inside(self.now)
        left = max(0, floor(limit - inside))
        drained = self.slices.drained_at(self.now)
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, left, None, drained - self.now)
        if inside + ask.cost > limit:
            room = first_moment(
                lambda at: self.slices.inside(at) + ask.cost <= limit, self.now, drained
            )
            return Answer("limit_reached", limit, left, room - self.now, drained - self.now)
        if ask.cost:
            drained = self.slices.gone_at(self.slices.filling(self.now))
        return Answer("ok", limit, floor(limit - inside - ask.cost), 0, drained - self.now)

    def take(self, ask: Ask) -> int:
        self.slices = self.slices.plus(self.slices.filling(self.now), ask.cost)
        self.charges[ask.permit] = Charge(self.now, ask.cost, self.slices)
        self.dirty = True
        return 0

    def settle(self, report: Report) -> str:
        charge = self.charges.get(report.permit)
        if charge is None or charge.slices.cut_at != self.slices.cut_at:
            return "stale"
        delta = report.actual - charge.cost
        if delta == 0:
            return "settled"
        if self.settled.get(report.permit, 0) > self.now:
            return "stale"
        self.settled[report.permit] = self.now + max(HOUR, 2 * self.spec["per"])
        self.dirty = True
        index = charge.slices.filling(charge.at)
        if self.slices.covers(index, self.now):
            self.slices = self.slices.plus(index, delta)
        elif delta > 0:
            # What it was charged to has gone: a debt is charged now, a refund is void.
            self.slices = self.slices.plus(self.slices.filling(self.now), delta)
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        return 0

    def empty(self) -> bool:
        drained = self.slices.drained_at(self.now) == self.now
        return drained and all(self.now >= charge.at + HOUR for charge in self.charges.values())


def redeclared(slices: Slices, was: Spec, spec: Spec, now: int) -> Slices:
    """Get the slices under another declaration; a part of one counts as a whole."""
    if (was["per"], was["slices"]) != (spec["per"], spec["slices"]):
        slices = Slices.cut(spec["per"], spec["slices"], now, ceil(slices.inside(now)))
    return slices.rescaled(now, spec["on_change"], was["limit"], spec["limit"])
