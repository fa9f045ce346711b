"""What the workers' journals say, put together: every call, what it was charged, how it ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.soak.journal import Line
from tests.soak.load import BY_TOKENS, UNWANTED

if TYPE_CHECKING:
    from collections.abc import Iterator

UNAVAILABLE = "store_unavailable"
#: No call takes that long, and no worker is stopped for longer.
LONGEST_US = 20_000_000


class Hold(NamedTuple):
    """What one policy took for one admission."""

    policy: str
    subject: str
    reserved: int
    expires: int
    local: bool
    chunk: int
    number: int


class Charge(NamedTuple):
    """What an admission may have cost, at least and at most."""

    least: int
    most: int


@dataclass(slots=True)
class Call:
    """One call that may have charged. Times in microseconds; `at` is the server's."""

    worker: str
    asked: int
    kind: str
    who: str
    tokens: int
    unwanted: bool
    done: int = 0
    admitted: bool = False
    doubt: bool = False
    #: The store was known to be away, and was not asked.
    unsent: bool = False
    reason: str | None = None
    at: int = 0
    permit: str = ""
    holds: tuple[Hold, ...] = ()
    #: When it was last seen to hold its leases, when it began to let go, when that was answered.
    kept: int = 0
    released: int = 0
    settled: int = 0
    actual: int | None = None
    tries: int = 0
    statuses: dict[str, str] | None = None
    #: For how long the worker's loop was away meanwhile.
    late: int = 0

    def charge(self, hold: Hold, *, refunds: bool, exact: bool, until: int) -> Charge:
        """Get what it cost a policy as of a moment; `refunds`: what nobody settled comes back.

        `exact` is what a policy is that charges the very figure that it is told.
        """
        if hold.policy not in BY_TOKENS:
            return Charge(hold.reserved, hold.reserved)
        if not self.released or self.released > until or self.actual is None:
            return Charge(0 if refunds else hold.reserved, hold.reserved)
        least, most = min(self.actual, hold.reserved), max(self.actual, hold.reserved)
        if self.statuses is None or self.settled > until:
            return Charge(0 if refunds else least, most)
        if self.statuses.get(hold.policy) == "settled":
            return Charge(self.actual, self.actual if exact else most)
        if self.tries == 1 and not refunds:
            return Charge(hold.reserved, hold.reserved)
        return Charge(0 if refunds else least, most)

    def held_until(self, policy: str, lease: int) -> int:
        """Get until when it certainly held what it had of a policy under a lease."""
        ends = (self.kept or self.at) + lease
        if not self.released:
            return ends
        if self.tries == 1 and (self.statuses or {}).get(policy) == "settled":
            return self.released
        return min(ends, self.released)


class Answer(NamedTuple):
    """How long one call of a bus took; microseconds."""

    worker: str
    verb: str
    began: int
    took: int
    bound: int
    late: int
    reason: str | None


class Change(NamedTuple):
    """One change of a circuit, as a worker heard of it."""

    policy: str
    subject: str
    generation: int
    seq: int
    previous: str
    state: str
    at: int
    open_until: int
    reason: str


class Sample(NamedTuple):
    """How big a worker was."""

    t: int
    rss_kib: int
    fds: int
    tasks: int
    threads: int
    late: int


class Stall(NamedTuple):
    """A time in which a loop did not run."""

    who: str
    began: int
    took: int


@dataclass(slots=True)
class Ledger:
    """Takes lines as they come."""

    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    changes: dict[tuple[str, str, int, str], Change] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    corrupt: list[tuple[int, str]] = field(default_factory=list)
    killed: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    admitted: int = 0
    vetoed: int = 0
    #: Of each worker, when the server first admitted something ample after `since`.
    served: dict[str, int] = field(default_factory=dict)
    since: int = 0
    permits: dict[str, Call] = field(default_factory=dict)
    _events: dict[str, Call] = field(default_factory=dict)
    _kinds: defaultdict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def await_service(self, since: int) -> None:
        """Begin to look for what each worker is first served after a moment."""
        self.since, self.served = since, {}

    def after(self, moment: int, kind: str) -> Iterator[Call]:
        """Get the calls of a kind that were asked, or may have gone on, after a moment."""
        for call in reversed(self._kinds[kind]):
            # Those of several workers are read in turns, so they are in order only by and large.
            if call.asked < moment - LONGEST_US:
                return
            yield call

    def take(self, worker: str, line: list[Any]) -> None:
        """Take one line of a worker's journal."""
        kind, *rest = line
        match kind:
            case Line.ANSWERED:
                *values, number = rest
                self.answers.append(answer := Answer(worker, *values))
                if number is not None:
                    self.calls[worker, number].late = answer.late
            case Line.CIRCUIT:
                self._changed(worker, Change(*rest))
            case Line.SAMPLE:
                self.samples.setdefault(worker, []).append(Sample(*rest))
            case Line.CORRUPT:
                self.corrupt.append((rest[0], f"{worker}: {rest[1]}"))
            case Line.WRONG:
                self.wrong.append(f"{worker}: {rest[1]}")
            case Line.END:
                self.ends[worker] = rest[1]
            case Line.STALL:
                self.stalls.append(Stall(worker, *rest))
            case Line.BORN:
                pass
            case _:
                self._take_call(worker, kind, *rest)

    def _take_call(self, worker: str, kind: str, number: Any, *rest: Any) -> None:
        """Take what is about one call."""
        if kind == Line.ASKS:
            t, event, *about = rest
            self.calls[worker, number] = self._events[event] = call = Call(worker, t, *about)
            self._kinds[call.kind].append(call)
            return
        if kind == Line.UNSENT:
            if number in self._events:
                self._events[number].unsent = True
            return
        call = self.calls[worker, number]
        match kind:
            case Line.DECIDED:
                self._decided(worker, number, *rest)
            case Line.DOUBT:
                call.done, call.doubt = rest[0], True
            case Line.RENEWED:
                call.kept = rest[0]
            case Line.SETTLES:
                call.released = call.released or rest[0]
                call.actual = rest[1] if call.actual is None else min(call.actual, rest[1])
                call.tries += 1
            case Line.SETTLED:
                call.settled, call.statuses = rest
            case _:
                pass

    def _decided(
        self,
        worker: str,
        number: int,
        t: int,
        admitted: bool,
        reason: str | None,
        policy: str | None,
        at: int,
        permit: str | None,
        holds: list[list[Any]],
    ) -> None:
        call = self.calls[worker, number]
        call.done, call.admitted, call.reason, call.at = t, admitted, reason, at
        call.doubt = not admitted and reason == UNAVAILABLE
        call.holds, call.permit = tuple(Hold(*hold) for hold in holds), permit or ""
        if not admitted:
            self.vetoed += 1
            self.reasons[reason or "?"] += 1
            return
        self.admitted += 1
        if call.permit in self.permits:
            self.wrong.append(f"{worker}: two admissions have the permit {permit}")
        self.permits[call.permit] = call
        if call.kind == "soak:plenty" and at > self.since:
            self.served.setdefault(worker, at)

    def _changed(self, worker: str, change: Change) -> None:
        key = change.policy, change.subject, change.seq, change.state
        known = self.changes.setdefault(key, change)
        if (known.generation, known.at) != (change.generation, change.at):
            self.wrong.append(f"{worker}: {change} was told differently elsewhere: {known}")
        if known.reason == "resync" != change.reason:
            self.changes[key] = change


def undone(call: Call) -> bool:
    """Get whether it was charged and given back, because of the custom policy."""
    return not call.admitted and call.reason in {UNWANTED, "policy_failed"}
