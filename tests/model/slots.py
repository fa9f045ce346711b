"""A cap on what is in progress at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.base import Answer, Ask, Limit, Report, Spec


@dataclass(frozen=True)
class Lease:
    weight: int
    until: int


@dataclass
class Slots(Limit):
    leases: dict[str, Lease] = field(default_factory=dict)

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        self.spec = spec or self.spec
        self.leases = {permit: lease for permit, lease in self.leases.items() if lease.until > now}

    def lose(self, at: int, rule: str) -> None:
        lease = Lease(self.spec["limit"], at + self.spec["lease"])
        if lease.until > self.now:
            self.leases = {"lost": lease}

    def decide(self, ask: Ask) -> Answer:
        limit = self.spec["limit"]
        left = limit - sum(lease.weight for lease in self.leases.values())
        reset = max((lease.until - self.now for lease in self.leases.values()), default=0)
        if ask.cost > limit:
            return Answer("cost_above_limit", limit, max(0, left), None, reset)
        if ask.cost > left:
            missing, wait = ask.cost - left, 0
            for lease in sorted(self.leases.values(), key=lambda lease: lease.until):
                missing, wait = missing - lease.weight, lease.until - self.now
                if missing <= 0:
                    break
            return Answer("no_free_slot", limit, max(0, left), wait, reset)
        if ask.cost:
            reset = max(reset, self.spec["lease"])
        return Answer("ok", limit, left - ask.cost, 0, reset)

    def take(self, ask: Ask) -> int:
        until = self.now + self.spec["lease"]
        if ask.cost:
            self.leases = {**self.leases, ask.permit: Lease(ask.cost, until)}
            self.dirty = True
        return until

    def settle(self, report: Report) -> str:
        if not report.reserved:
            # What takes no slot has none to lose.
            return "settled"
        if report.permit not in self.leases:
            return "stale"
        self.leases = {
            permit: lease for permit, lease in self.leases.items() if permit != report.permit
        }
        self.dirty = True
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        until = self.now + self.spec["lease"]
        if not reserved:
            return until
        if permit not in self.leases:
            return 0
        lease = self.leases[permit]
        until = max(until, lease.until)
        self.leases = {**self.leases, permit: Lease(lease.weight, until)}
        self.dirty = True
        return until

    def leases_at(self, now: int) -> int:
        return sum(lease.until > now for lease in self.leases.values())

    def empty(self) -> bool:
        return not self.leases
