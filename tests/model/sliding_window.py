"""A limit on what was admitted during the last `per`, by slices."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, carried, ceil, first_moment, floor
from tests.model.slices import Slices


@dataclass
class SlidingWindow(Limit):
    slices: Slices = field(init=False)
    charges: dict[str, tuple[int, int, Slices]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.slices = Slices.cut(self.spec["per"], self.spec["slices"])

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        if spec is None or spec == self.spec:
            return
        was, self.spec = self.spec, spec
        if (was["per"], was["slices"]) != (spec["per"], spec["slices"]):
            # Cut anew: what is in the window counts as of now, a part of one as a whole.
            inside = ceil(self.slices.inside(now))
            self.slices = Slices.cut(spec["per"], spec["slices"])
            self.slices.add(self.slices.filling(now), inside)
        rescale(self.slices, now, spec["on_change"], was["limit"], spec["limit"])

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
            drained = max(drained, self.slices.gone_at(self.slices.filling(self.now)))
        return Answer("ok", limit, floor(limit - inside - ask.cost), 0, drained - self.now)

    def take(self, ask: Ask) -> int:
        index = self.slices.filling(self.now)
        self.slices.add(index, ask.cost)
        self.charges[ask.permit] = (index, ask.cost, self.slices)
        return 0

    def settle(self, report: Report) -> str:
        if report.permit not in self.charges:
            return "stale"
        index, cost, slices = self.charges[report.permit]
        delta = report.actual - cost
        if delta == 0:
            return "settled"
        if report.permit in self.settled:
            return "stale"
        self.settled.add(report.permit)
        if slices is self.slices and self.slices.holds(index, self.now):
            self.slices.add(index, delta)
        elif delta > 0:
            # What it was charged to has gone; a debt is charged now, a refund is void.
            self.slices.add(self.slices.filling(self.now), delta)
        return "settled"

    def renew(self, permit: str) -> int:
        return 0

    def empty(self) -> bool:
        return self.slices.drained_at(self.now) == self.now and all(
            self.now >= slices.gone_at(index) + HOUR - slices.width * (slices.count + 1)
            for index, _, slices in self.charges.values()
        )


def rescale(slices: Slices, now: int, on_change: str, was: int, limit: int) -> None:
    """Make the window count what a changed limit is to find used, each slice by the same factor."""
    inside = slices.inside(now)
    if inside:
        factor = carried(on_change, inside, was, limit) / inside
        slices.amounts = {index: ceil(amount * factor) for index, amount in slices.amounts.items()}
