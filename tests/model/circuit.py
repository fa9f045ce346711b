"""A circuit breaker: what it has seen, and the probes it has out."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import HOUR, Answer, Ask, Limit, Report, Spec, ceil, ceil_div, decimal, floor

SLICES = 10
EVERYBODY = 10**6
UNWATCHED = 0


@dataclass(frozen=True)
class Result:
    at: int
    failed: bool
    slow: bool


@dataclass(frozen=True)
class Ticket:
    """An admission whose outcome is awaited."""

    generation: int
    since: int
    until: int


@dataclass
class Circuit(Limit):
    state: str = "closed"
    forced: str = ""
    lifted: str = ""
    generation: int = field(init=False)
    seq: int = field(init=False)
    open_until: int = 0
    opens: int = 0
    passed: int = 0
    streak: int = 0
    closed_at: int | None = None
    results: tuple[Result, ...] = ()
    reporters: dict[str, int] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    changed: int = field(init=False)

    def __post_init__(self) -> None:
        self.generation = self.seq = self.changed = self.now

    @property
    def shown(self) -> str:
        return self.forced or self.state

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        was, self.spec = self.spec, spec or self.spec
        if was.get("window") != self.spec.get("window"):
            # Another window in time begins empty, as does one in time after one in calls.
            self.results = ()
        if "calls" in self.spec:
            # Shortened, it has forgotten the calls before for good.
            self.results = self.results[-self.spec["calls"] :]
        self.tickets = {permit: t for permit, t in self.tickets.items() if t.until > now}
        # A ration that was lowered leaves room for one more probe at least.
        self.passed = min(self.passed, self.spec["half_open_calls"] - 1)

    def _seen(self) -> list[Result]:
        """Get the results in the window: the last calls, or the filling slice and nine before."""
        if "calls" in self.spec:
            return list(self.results)
        width = ceil_div(self.spec["window"], SLICES)
        oldest = self.now // width - SLICES
        return [result for result in self.results if result.at // width > oldest]

    # ---- deciding

    def lose(self, at: int, rule: str) -> None:
        raise NotImplementedError("what a circuit has seen is no use of a limit")

    def decide(self, ask: Ask) -> Answer:
        if self.forced:
            stopped = Answer("forced_open", None, None, None, None)
            return stopped if self.forced == "forced_open" else Answer("ok")
        if self.state == "closed":
            return self._decide_closed(ask)
        if self.state == "open" and self.now < self.open_until:
            wait = self.open_until - self.now
            return Answer("circuit_open", None, None, wait, wait)
        ration = self.spec["half_open_calls"]
        out = sorted(ticket.until for ticket in self.tickets.values())
        left = ration if self.state == "open" else ration - self.passed - len(out)
        if left <= 0:
            wait = out[-left] - self.now
            return Answer("probes_in_use", ration, 0, wait, wait)
        if not ask.cost:
            return Answer("ok", ration, left, 0, 0)
        return Answer("ok", ration, left - 1, 0, self.spec["lease"])

    def _decide_closed(self, ask: Ask) -> Answer:
        ramp_up = self.spec["ramp_up"]
        if ramp_up and self.closed_at is not None:
            # The share that is let through grows from a tenth to everybody.
            place = Fraction(ask.luck, EVERYBODY)
            turn = self.closed_at + max(0, ceil((place - Fraction(1, 10)) * 10 / 9 * ramp_up))
            if self.now < turn:
                return Answer("ramping_up", None, None, turn - self.now, turn - self.now)
        return Answer("ok")

    def take(self, ask: Ask) -> int:
        if self.forced:
            self.memory[ask.permit] = UNWATCHED
            return 0
        if self.state == "open":
            self._enter("half_open", "halfopened", "open_time_over")
        life = self.spec["lease"]
        if self.state == "closed":
            life = max(life, HOUR)
        until = self.now + life
        self.tickets = {**self.tickets, ask.permit: Ticket(self.generation, self.now, until)}
        self.dirty = True
        return until

    # ---- settling

    def settle(self, report: Report) -> str:
        if report.permit in self.memory:
            return "settled"
        ticket = self.tickets.get(report.permit)
        if ticket is None or ticket.generation != self.generation:
            return "stale"
        self.tickets = {
            permit: ticket for permit, ticket in self.tickets.items() if permit != report.permit
        }
        self.dirty = True
        if report.outcome in {"neutral", "undo"}:
            return "settled"
        slow_call = self.spec.get("slow_call")
        slow = slow_call is not None and self.now - ticket.since >= slow_call
        result = Result(self.now, report.outcome == "failure", slow)
        if self.state == "half_open":
            self._probe(result, report.luck)
        else:
            self._count(result, report)
        return "settled"

    def _probe(self, result: Result, luck: int) -> None:
        if result.failed or result.slow:
            self._open("probe_failed" if result.failed else "probe_slow", luck)
            return
        self.passed += 1
        if self.passed == self.spec["half_open_calls"]:
            self._close("probes_succeeded")

    def _count(self, result: Result, report: Report) -> None:
        self.results = (*self.results, result)[-self.spec.get("calls", 0) :]
        self.streak = self.streak + 1 if result.failed else 0
        if (result.failed or result.slow) and self.spec["reporters"] > 1:
            # Where one is enough, nobody asks who it was.
            self.reporters = {**self.reporters, report.worker: self.now}
        reason = self._reason()
        if reason and self._agreed():
            self._open(reason, report.luck)

    def _reason(self) -> str | None:
        seen = self._seen()
        consecutive = self.spec.get("consecutive")
        if consecutive and self.streak >= consecutive:
            return "consecutive_failures"
        if len(seen) < self.spec["minimum_calls"]:
            return None
        for share, count, reason in (
            ("failure_rate", sum(result.failed for result in seen), "failure_rate"),
            ("slow_rate", sum(result.slow for result in seen), "slow_call_rate"),
        ):
            rate = self.spec.get(share)
            if rate is not None and count and count >= decimal(rate) * len(seen):
                return reason
        return None

    def _agreed(self) -> bool:
        """Whether enough workers have seen a failure or a slow call lately."""
        needed = self.spec["reporters"]
        since = self.now - self.spec["window"] if "window" in self.spec else -1
        return needed <= 1 or sum(at > since for at in self.reporters.values()) >= needed

    # ---- transitions

    def _enter(self, state: str, kind: str, reason: str, open_until: int = 0) -> None:
        previous, self.state = self.lifted or self.state, state
        self.generation += 1
        self.passed, self.streak, self.results = 0, 0, ()
        self.reporters, self.tickets = {}, {}
        self.open_until = open_until
        self._tell(kind, previous, reason)

    def _tell(self, kind: str, previous: str, reason: str) -> None:
        self.seq, self.changed, self.dirty = self.seq + 1, self.now, True
        self.told.append(
            {
                "type": f"circuit:{kind}",
                "seq": str(self.seq),
                "generation": str(self.generation),
                "previous": previous,
                "state": self.shown,
                "open_until_us": str(self.open_until if self.state == "open" else 0),
                "reason": reason,
            }
        )

    def _open(self, reason: str, luck: int) -> None:
        first = self.spec["open_for"]
        pause = min(first * 2**self.opens, max(first, self.spec["max_open_for"]))
        # Jitter lengthens the pause and never shortens it.
        jitter = decimal(self.spec["jitter"]) * Fraction(luck, EVERYBODY)
        self.opens += 1
        self._enter("open", "opened", reason, self.now + floor(pause * (1 + jitter)))

    def _close(self, reason: str) -> None:
        self.opens, self.closed_at = 0, self.now
        self._enter("closed", "closed", reason)

    def force(self, state: str) -> str:
        """Put it into a state; get the one it was in."""
        previous = self.shown
        if state in {"forced_open", "disabled"}:
            self.forced = state
            self.generation += 1
            self.tickets = {}
            self._tell("forced", previous, "forced")
            return previous
        self.forced, self.lifted = "", previous
        if state == "open":
            self._open("forced", 0)
        elif state == "half_open":
            self._enter("half_open", "halfopened", "forced")
        else:
            self._close("forced")
            self.closed_at = None
        self.lifted = ""
        return previous

    def renew(self, permit: str, reserved: int) -> int:
        until = self.now + self.spec["lease"]
        if permit in self.memory:
            return until
        ticket = self.tickets.get(permit)
        if ticket is None or ticket.generation != self.generation:
            return 0
        until = max(until, ticket.until)
        renewed = Ticket(ticket.generation, ticket.since, until)
        self.tickets = {**self.tickets, permit: renewed}
        self.dirty = True
        return until

    def leases_at(self, now: int) -> int:
        return sum(ticket.until > now for ticket in self.tickets.values())

    def empty(self) -> bool:
        idle = self.now - self.changed >= HOUR
        resting = self.state == "closed" or (idle and self.now >= self.open_until)
        return not self.forced and resting and not self._lately() and not self.tickets

    def _lately(self) -> list[Result]:
        """Get the results that are not to be forgotten; the last calls are so within an hour."""
        if "calls" in self.spec:
            return [result for result in self._seen() if result.at > self.now - HOUR]
        return self._seen()
