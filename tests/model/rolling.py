"""A quota over the last `per`, by slices: reserved on admission, settled to the real cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import Answer, Ask, Limit, Report, Spec, ceil, decimal, first_moment, floor
from tests.model.slices import Slices
from tests.model.sliding_window import redeclared


@dataclass(frozen=True)
class Hold:
    amount: int
    until: int


@dataclass(frozen=True)
class Charge:
    """The slice that an admission was charged to."""

    index: int
    cut_at: int


@dataclass
class Rolling(Limit):
    slices: Slices = field(init=False)
    seq: int = field(init=False)
    warned: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slices = Slices.cut(self.spec["per"], self.spec["slices"], self.now)
        self.seq = self.now

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        was, self.spec = self.spec, spec or self.spec
        self._expire()
        if was != self.spec:
            cut_at = self.slices.cut_at
            self.slices = redeclared(self.slices, was, self.spec, now)
            if self.slices.cut_at != cut_at:
                self.holds = {}

    def lose(self, at: int, rule: str) -> None:
        newest, limit = self.slices.filling(at), self.spec["limit"]
        if rule == "spent":
            self.slices = self.slices.plus(newest, limit)
            return
        for unit in range(limit):
            self.slices = self.slices.plus(newest - unit * self.slices.count // limit, 1)

    def _expire(self) -> None:
        for permit, hold in self.holds.items():
            if hold.until <= self.now and self.spec["unsettled"] == "refund":
                self._correct(permit, -hold.amount)
        self.holds = {permit: hold for permit, hold in self.holds.items() if hold.until > self.now}

    def _counts(self, permit: str) -> bool:
        """Whether the slice that a permit was charged to is in the window."""
        charge = self.charges.get(permit)
        return (
            charge is not None
            and charge.cut_at == self.slices.cut_at
            and self.slices.covers(charge.index, self.now)
        )

    def _correct(self, permit: str, amount: int) -> None:
        if self._counts(permit):
            self.slices = self.slices.plus(self.charges[permit].index, amount)

    def decide(self, ask: Ask) -> Answer:
        limit, inside = self.spec["limit"], self.slices.inside(self.now)
        left = max(0, floor(limit - inside))
        drained = self.slices.drained_at(self.now)
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, left, None, drained - self.now)
        if inside + ask.cost > limit:
            room = first_moment(lambda at: self._room(ask, at), self.now, drained)
            return Answer("quota_exhausted", limit, left, room - self.now, drained - self.now)
        if ask.cost:
            drained = self.slices.gone_at(self.slices.filling(self.now))
        return Answer("ok", limit, floor(limit - inside - ask.cost), 0, drained - self.now)

    def _room(self, ask: Ask, at: int) -> bool:
        future = self.copy()
        future.bring(at)
        return future.slices.inside(at) + ask.cost <= self.spec["limit"]

    def take(self, ask: Ask) -> int:
        index, until = self.slices.filling(self.now), self.now + self.spec["lease"]
        self.slices = self.slices.plus(index, ask.cost)
        self.charges[ask.permit] = Charge(index, self.slices.cut_at)
        self.holds = {**self.holds, ask.permit: Hold(ask.cost, until)}
        self.dirty = True
        self._warn()
        return until

    def settle(self, report: Report) -> str:
        hold = self.holds.get(report.permit)
        if hold is None or not self._counts(report.permit):
            return "stale"
        self.holds = {
            permit: hold for permit, hold in self.holds.items() if permit != report.permit
        }
        actual = 0 if report.unknown and self.spec["unsettled"] == "refund" else report.actual
        if self.spec["overage"] == "clip":
            room = max(0, self.spec["limit"] - ceil(self.slices.inside(self.now)))
            actual = min(actual, hold.amount + room)
        self._correct(report.permit, actual - hold.amount)
        self.dirty = True
        self._warn()
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        until = self.now + self.spec["lease"]
        if not self._counts(permit):
            # It has left the window, and with it what could have been lost.
            return until
        hold = self.holds.get(permit)
        if hold is None:
            return 0
        until = max(until, hold.until)
        self.holds = {**self.holds, permit: Hold(hold.amount, until)}
        self.dirty = True
        return until

    def _warn(self) -> None:
        used, reached = ceil(self.slices.inside(self.now)), 0
        for index, share in enumerate(self.spec["warn_at"], 1):
            if used >= decimal(share) * self.spec["limit"]:
                reached = index
                if index > self.warned:
                    self.seq += 1
                    self.told.append(
                        {
                            "type": "quota:threshold",
                            "seq": str(self.seq),
                            "threshold": str(share),
                            "used": str(used),
                            "limit": str(self.spec["limit"]),
                            "window_end_us": str(self.slices.drained_at(self.now)),
                        }
                    )
        self.warned = reached

    def leases_at(self, now: int) -> int:
        return sum(hold.until > now for hold in self.holds.values())

    def empty(self) -> bool:
        return self.slices.drained_at(self.now) == self.now
