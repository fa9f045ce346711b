"""The generic cell rate algorithm, as a bucket that leaks.

The bucket holds up to `burst` cells and loses one every per/limit microseconds. A request puts
its cost in, if there is room. Settling puts in more, even above the brim, or takes some out.

What is taken out: time drains the oldest cells first, so those of one admission go only after
those that were ahead of it. Other refunds may have taken out cells that were ahead, or behind;
that is not remembered, so all are taken to have been ahead, as far as there was anything ahead.
Only cells that are still in the bucket by this account can be given back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, carried, ceil, floor

#: What a division of floats may be off by, in grains; far less than anybody could tell.
NOTHING = Fraction(1, 1000)


@dataclass(frozen=True)
class Charge:
    """What one admission put into the bucket."""

    at: int
    cost: int
    ahead: Fraction
    refunded_before: Fraction
    revision: int


@dataclass
class Gcra(Limit):
    level: Fraction = Fraction(0)
    revision: int = 0
    refunded: Fraction = Fraction(0)
    charges: dict[str, Charge] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    @property
    def cell(self) -> Fraction:
        """Microseconds that one cell takes to drain."""
        return Fraction(self.spec["per"], self.spec["limit"])

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.level = max(Fraction(0), self.level - (now - self.now) / self.cell)
        self.now = now
        if spec is not None and spec != self.spec:
            level = carried(spec["on_change"], self.level, self.spec["burst"], spec["burst"])
            self.spec = spec
            # Amounts are whole multiples of 1/limit (reduced) of a microsecond.
            grain = 1 / (self.cell * self.cell.denominator)
            self.level = ceil(level / grain - NOTHING) * grain
            self.revision += 1

    def lose(self, at: int, rule: str) -> None:
        self.level = max(Fraction(0), self.spec["burst"] - (self.now - at) / self.cell)

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
        self.charges[ask.permit] = Charge(
            self.now, ask.cost, self.level, self.refunded, self.revision
        )
        self.level += ask.cost
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
        self.settled[report.permit] = self.now + max(HOUR, ceil(self.spec["burst"] * self.cell))
        self.dirty = True
        if delta > 0:
            self.level += delta
        elif charge.revision == self.revision:
            ahead = charge.ahead - min(self.refunded - charge.refunded_before, charge.ahead)
            drained = (self.now - charge.at) / self.cell
            still_in = max(Fraction(0), ahead + charge.cost - drained)
            back = min(Fraction(-delta), still_in, self.level)
            self.level -= back
            self.refunded += back
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        return 0

    def empty(self) -> bool:
        return self.level == 0 and all(
            self.now >= charge.at + HOUR for charge in self.charges.values()
        )
