"""The generic cell rate algorithm, as a bucket that leaks.

The bucket holds up to `burst` cells and loses one every per/limit microseconds. A request puts
its cost in, if there is room. Settling puts in more, even above the brim, or takes some out.

What is taken out: time drains the oldest cells first, so those of one admission go only after
those that were ahead of it. Other refunds may have taken out cells that were ahead, or behind;
that is not remembered, so all are taken to have been ahead, as far as there was anything ahead.
Only cells that are still in the bucket by this account can be given back. Positions are kept in
whole microseconds, rounded so that less is given back, never more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, carried, ceil, floor


@dataclass
class Charge:
    """What one admission put into the bucket."""

    cost: int
    drains_at: int
    ahead: int
    refunded_before: int
    revision: int


@dataclass
class Gcra(Limit):
    level: Fraction = Fraction(0)
    revision: int = 0
    refunded: int = 0
    charges: dict[str, Charge] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    @property
    def cell(self) -> Fraction:
        """Microseconds that one cell takes to drain."""
        return Fraction(self.spec["per"], self.spec["limit"])

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.level = max(Fraction(0), self.level - (now - self.now) / self.cell)
        self.now = now
        if spec is not None and spec != self.spec:
            level = carried(
                spec["on_change"], self.level, self.spec["burst"], spec["burst"]
            )
            self.spec = spec
            # Amounts are whole multiples of 1/limit (reduced) of a microsecond.
            grain = 1 / (self.cell * self.cell.denominator)
            self.level = ceil(level / grain) * grain
            self.revision += 1

    def _drained_in(self, level: Fraction) -> int:
        return ceil(level * self.cell)

    def decide(self, ask: Ask) -> Answer:
        limit, burst = self.spec["limit"], self.spec["burst"]
        left = max(0, floor(burst - self.level))
        after = self.level + ask.cost
        if ask.cost > burst:
            return Answer("cost_above_limit", limit, left, None, self._drained_in(self.level))
        if after > burst:
            wait = ceil((after - burst) * self.cell)
            return Answer("limit_reached", limit, left, wait, self._drained_in(self.level))
        return Answer("ok", limit, floor(burst - after), 0, self._drained_in(after))

    def take(self, ask: Ask) -> int:
        ahead = floor(self.level * self.cell)
        self.level += ask.cost
        drains_at = self.now + floor(self.level * self.cell)
        self.charges[ask.permit] = Charge(ask.cost, drains_at, ahead, self.refunded, self.revision)
        return 0

    def settle(self, report: Report) -> str:
        charge = self.charges.get(report.permit)
        if charge is None:
            return "stale"
        delta = report.actual - charge.cost
        if delta == 0:
            return "settled"
        if report.permit in self.settled:
            return "stale"
        self.settled.add(report.permit)
        if delta > 0:
            self.level += delta
        elif charge.revision == self.revision:
            passed = min(self.refunded - charge.refunded_before, charge.ahead)
            still_in = max(0, charge.drains_at - passed - self.now) / self.cell
            back = min(Fraction(-delta), still_in, self.level)
            self.level -= back
            self.refunded += ceil(back * self.cell)
        return "settled"

    def renew(self, permit: str) -> int:
        return 0

    def empty(self) -> bool:
        return self.level == 0 and all(
            self.now >= charge.drains_at + HOUR for charge in self.charges.values()
        )
