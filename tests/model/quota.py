"""A budget per window: reserved on admission, settled to the real cost.

Windows are multiples of `per`, or those of a calendar that come with the request. What is
reserved counts as used until it is settled, until its lease ends, or until its window is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tests.model.base import Answer, Ask, Limit, Report, Spec, carried, ceil, decimal, floor

FAR = 1000


@dataclass(frozen=True)
class Hold:
    amount: int
    until: int


@dataclass
class Quota(Limit):
    start: int = -1
    end: int = -1
    since: int = -1
    used: int = 0
    carry: int = 0
    warned: int = 0
    seq: int = field(init=False)
    holds: dict[str, Hold] = field(default_factory=dict)
    limit_was: int | None = None
    #: The highest ceiling of the window, where it has been lowered since.
    most: int = 0
    #: When everything was lost, and by what rule a subject begins then.
    lost: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        self.seq = self.now

    # ---- the passing of time

    @property
    def ceiling(self) -> int:
        return self.spec["limit"] + self.carry

    @property
    def held(self) -> int:
        return sum(hold.amount for hold in self.holds.values())

    def bring(self, now: int, spec: Spec | None = None) -> None:
        self.now = now
        was, self.spec = self.spec, spec or self.spec
        if self.start < 0:
            return
        self._expire(min(now, self.end))
        if was != self.spec:
            if now < self.end:
                before, after = was["limit"] + self.carry, self.ceiling
                used = carried(self.spec["on_change"], Fraction(self.used), before, after)
                self.used = ceil(used)
                most = Fraction(max(self.most, before))
                self.most = floor(carried(self.spec["on_change"], most, before, after))
            else:
                self.limit_was = was["limit"]

    def lose(self, at: int, rule: str) -> None:
        # What that comes to shows in the window of this moment.
        self.lost = at, rule

    def _used_before(self, window: tuple[int, int]) -> int:
        start, end = window
        if self.lost is None or self.lost[0] < start:
            return 0
        at, rule = self.lost
        limit: int = self.spec["limit"]
        return limit if rule == "spent" else ceil(Fraction(limit * (at - start), end - start))

    def _expire(self, moment: int) -> None:
        """End the leases that end by a moment within the window."""
        over = [permit for permit, hold in self.holds.items() if hold.until <= moment]
        if self.spec["unsettled"] == "charge":
            self.used += sum(self.holds[permit].amount for permit in over)
        self.holds = {permit: hold for permit, hold in self.holds.items() if permit not in over}

    def _window(self, windows: tuple[int, ...]) -> tuple[int, int] | None:
        per = self.spec["per"]
        if per:
            start = self.now - self.now % per
            return start, start + per
        pairs = zip(windows[::2], windows[1::2], strict=True)
        return next((pair for pair in pairs if pair[0] <= self.now < pair[1]), None)

    def _leave(self, used: int, limit: int, most: int = 0) -> tuple[int, int]:
        """Get what one window leaves to the next: amount rolled over, and debt."""
        debt = max(0, used - max(limit, most)) if self.spec["overage"] == "debt" else 0
        return min(self.spec["rollover"], max(0, limit - used)), debt

    def enter(self, windows: tuple[int, ...]) -> bool:
        """Be in the window of this moment; False where none is known."""
        window = self._window(windows)
        if window is None:
            return False
        if self.start < 0:
            self.since, self.used = window[0], self._used_before(window)
        if self.start < 0 or self.now < self.end:
            # Declared anew in the middle, it is the same window with other ends.
            self.start, self.end = window
        if (self.start, self.end) == window:
            return True
        self._expire(self.end)
        limit = (self.spec["limit"] if self.limit_was is None else self.limit_was) + self.carry
        carry, debt = self._leave(self.used + self.held, limit, self.most)
        for _ in range(self._skipped(window, windows)):
            carry, debt = self._leave(debt, self.spec["limit"] + carry)
        self.start, self.end = window
        self.since = self.start
        self.used, self.carry, self.warned, self.limit_was = debt, carry, 0, None
        self.most = 0
        self.holds = {}
        return True

    def _skipped(self, window: tuple[int, int], windows: tuple[int, ...]) -> int:
        """Get how many whole windows lay between the last one that was used and this one."""
        per = self.spec["per"]
        if per:
            return min((window[0] - self.end) // per, FAR)
        between = [s for s in windows[::2] if self.end <= s < window[0]]
        if self.end in (*between, window[0]):
            return len(between)
        # Further back than the calendar that came along; windows are about equally long.
        return round((window[0] - self.end) / (window[1] - window[0]))

    # ---- deciding

    def decide(self, ask: Ask) -> Answer:
        # Nothing is saved up for a subject of which there is no state.
        most = self.spec["limit"] + (self.spec["rollover"] if self.start >= 0 else 0)
        if not self.enter(ask.windows):
            return Answer("window_unknown", self.spec["limit"], 0, 0, 0)
        left, reset = self.ceiling - self.used - self.held, self.end - self.now
        if ask.cost > most:
            return Answer("cost_above_limit", self.ceiling, max(0, left), None, reset)
        if ask.cost > left:
            wait, exact = self._wait(ask)
            return Answer("quota_exhausted", self.ceiling, max(0, left), wait, reset, exact)
        return Answer("ok", self.ceiling, left - ask.cost, 0, reset)

    def _wait(self, ask: Ask) -> tuple[int, bool]:
        """Try the moments at which something comes back, in their order."""
        later = sorted({hold.until for hold in self.holds.values() if hold.until < self.end})
        for moment in [*later, *self._starts(ask.windows)]:
            future = self.copy()
            future.bring(moment)
            future.enter(ask.windows)
            if ask.cost <= future.ceiling - future.used - future.held:
                return moment - self.now, True
        # No window that is known of will do.
        return self._starts(ask.windows)[-1] - self.now, False

    def _starts(self, windows: tuple[int, ...]) -> list[int]:
        per = self.spec["per"]
        if per:
            return [self.end + turn * per for turn in range(FAR)]
        return [self.end, *(start for start in windows[::2] if start > self.end)]

    def take(self, ask: Ask) -> int:
        until = self.now + self.spec["lease"]
        self.holds = {**self.holds, ask.permit: Hold(ask.cost, until)}
        self.memory[ask.permit] = self.since
        self.dirty = True
        self._warn()
        return until

    # ---- settling

    def _held(self, permit: str) -> Hold | None:
        """Get what a permit still holds, if the window in which it did is not over."""
        if self.memory.get(permit) != self.since or self.now >= self.end:
            return None
        return self.holds.get(permit)

    def settle(self, report: Report) -> str:
        hold = self._held(report.permit)
        if hold is None:
            return "stale"
        self.holds = {
            permit: hold for permit, hold in self.holds.items() if permit != report.permit
        }
        actual = 0 if report.unknown and self.spec["unsettled"] == "refund" else report.actual
        if self.spec["overage"] == "clip":
            actual = min(actual, max(hold.amount, self.ceiling - self.used - self.held))
        self.used += actual
        self.dirty = True
        self._warn()
        return "settled"

    def renew(self, permit: str, reserved: int) -> int:
        until = self.now + self.spec["lease"]
        if self.memory.get(permit) != self.since or self.now >= self.end:
            # Its window is over, and with it what could have been lost.
            return until
        hold = self.holds.get(permit)
        if hold is None:
            return 0
        until = max(until, hold.until)
        self.holds = {**self.holds, permit: Hold(hold.amount, until)}
        self.dirty = True
        return until

    def _warn(self) -> None:
        for index, share in enumerate(self.spec["warn_at"], 1):
            used = self.used + self.held
            if index > self.warned and used >= decimal(share) * self.ceiling:
                self.warned, self.seq = index, self.seq + 1
                self.told.append(
                    {
                        "type": "quota:threshold",
                        "seq": str(self.seq),
                        "threshold": str(share),
                        "used": str(used),
                        "limit": str(self.ceiling),
                        "window_end_us": str(self.end),
                    }
                )

    def leases_at(self, now: int) -> int | None:
        # They go with their window, whether or not anybody has looked since.
        return sum(hold.until > now for hold in self.holds.values()) if now < self.end else None

    def empty(self) -> bool:
        if self.now < self.end:
            return False
        used = self.used + self.held
        owed = max(0, used - max(self.ceiling, self.most)) if self.spec["overage"] == "debt" else 0
        unused = min(self.spec["rollover"], max(0, self.ceiling - used))
        idle = (self.now - self.end) // max(1, self.end - self.start)
        saved_up = -(-self.spec["rollover"] // self.spec["limit"])
        # What was not used rolls over until no more can be saved up, and for another window at
        # least; debt is never forgiven.
        return owed <= idle * self.spec["limit"] and (not unused or idle > saved_up)
