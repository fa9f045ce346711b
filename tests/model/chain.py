"""Several limits that are asked together: all of them charge, or none does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.model.base import Answer, Ask, Limit, Report, Spec
from tests.model.circuit import Circuit
from tests.model.fixed_window import FixedWindow
from tests.model.gcra import Gcra
from tests.model.quota import Quota
from tests.model.rolling import Rolling
from tests.model.sliding_log import SlidingLog
from tests.model.sliding_window import SlidingWindow
from tests.model.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS: dict[str, type[Limit]] = {
    "gcra": Gcra,
    "sliding_window": SlidingWindow,
    "sliding_log": SlidingLog,
    "fixed_window": FixedWindow,
    "quota": Quota,
    "rolling": Rolling,
    "circuit": Circuit,
    "slots": Slots,
}


@dataclass(frozen=True)
class Step:
    """One limit of a request, by the name of its subject's state."""

    key: str
    spec: Spec
    ask: Ask
    shadow: bool = False


@dataclass(frozen=True)
class Outcome:
    """One limit's answer to a request, and the end of the lease that it took."""

    answer: Answer
    until: int = 0
    held: bool = False


#: Whose admissions leave no name in the store.
NAMELESS = (Gcra, SlidingWindow, FixedWindow)


@dataclass
class Subject:
    """What is kept under one key. Time never runs backwards for it."""

    limit: Limit
    written_at: int


def _policy(key: str) -> str:
    return key.partition("}:")[2].split(":")[1]


def _from(now: int, limit: Limit, answer: Answer) -> Answer:
    """Get an answer with its times counted from a server's clock that is behind.

    For what was written when it was ahead, time stands still until it has caught up.
    """
    behind = limit.now - now
    wait = answer.wait + behind if answer.wait else answer.wait
    reset = answer.reset + behind if answer.reset else answer.reset
    return replace(answer, wait=wait, reset=reset)


@dataclass
class Chain:
    """Everything that one namespace keeps, and what it has published and not yet been asked for."""

    subjects: dict[str, Subject] = field(default_factory=dict)
    told: list[dict[str, str]] = field(default_factory=list)
    kept: int = 0
    memories: dict[str, dict[str, int]] = field(default_factory=dict)
    #: What an admission found and what it left, by permit and key, where that can be gone back to.
    found: dict[tuple[str, str], tuple[Subject | None, Subject]] = field(default_factory=dict)
    #: What was found again, as if nothing had been.
    undone: set[tuple[str, str]] = field(default_factory=set)
    #: What was put into force or told for good, whatever is undone.
    final: int = 0
    #: When it was noticed that everything had been lost; and whether that is yet to be noticed.
    lost_at: int | None = None
    unnoticed: bool = False

    def _view(self, now: int, key: str, spec: Spec | None) -> Limit | None:
        """Get a copy of a subject's state as it is now, a new one where there is none."""
        subject = self.subjects.get(key)
        if subject is not None:
            limit = subject.limit.copy()
            if spec is None or spec["kind"] == limit.spec["kind"]:
                limit.redeclared = spec is not None and spec != limit.spec
                limit.bring(max(now, subject.written_at), spec)
                return limit
            # Another algorithm cannot read what this one kept.
            now = max(now, subject.written_at)
        if spec is None:
            return None
        limit = KINDS[spec["kind"]](spec, now)
        limit.memory = self.memories.setdefault(key, {})
        lost_at = now if self.unnoticed else self.lost_at
        if subject is None and lost_at is not None and "cold" in spec:
            limit.lose(min(lost_at, now), spec["cold"])
        return limit

    def lose_everything(self) -> None:
        """Be a server that has come back empty."""
        self.subjects = {}
        self.lost_at, self.unnoticed = None, True

    def greet(self, now: int) -> None:
        """Have it noticed by somebody who knew what was before."""
        if self.unnoticed:
            self.lost_at, self.unnoticed = now, False

    def notice(self, now: int, steps: Sequence[Step]) -> None:
        """Have it noticed where one of the declarations has a rule for it."""
        if any("cold" in step.spec for step in steps):
            self.greet(now)

    def _keep(self, key: str, limit: Limit) -> None:
        policy, _, subject = key.partition("}:")[2].partition(":")[2].partition(":")
        for event in limit.told:
            at = {"v": "1", "key": key, "policy": policy, "subject": subject}
            self.told.append({**at, "at_us": str(limit.now), **event})
        if limit.dirty:
            self.kept += 1
            self.subjects[key] = Subject(limit, limit.now)

    def _bounded(self, step: Step, answer: Answer) -> Answer:
        """Refuse a subject that would be one too many, for so long as is yet to be found out."""
        most = step.spec.get("max_subjects")
        if most is None or step.key in self.subjects:
            return answer
        if answer.reason in {"window_unknown", "cost_above_limit"}:
            return answer
        if sum(_policy(key) == _policy(step.key) for key in self.subjects) < most:
            return answer
        # It may begin as if all were used.
        return Answer("too_many_subjects", most, 0, 1, 1, exact="cold" not in step.spec)

    def _judge(self, now: int, steps: Sequence[Step]) -> tuple[bool, list[Limit], list[Answer]]:
        views = [self._view(now, step.key, step.spec) for step in steps]
        limits = [view for view in views if view is not None]
        answers = [
            _from(now, limit, limit.decide(step.ask))
            for limit, step in zip(limits, steps, strict=True)
        ]
        answers = [self._bounded(*pair) for pair in zip(steps, answers, strict=True)]
        admitted = all(
            answer.ok or step.shadow for answer, step in zip(answers, steps, strict=True)
        )
        if not admitted:
            # Where others refuse, whoever would admit says what is left with nothing charged.
            answers = [
                _from(now, limit, limit.decide(replace(step.ask, cost=0))) if answer.ok else answer
                for limit, step, answer in zip(limits, steps, answers, strict=True)
            ]
        return admitted, limits, answers

    def admit(self, now: int, steps: Sequence[Step]) -> tuple[bool, list[Outcome]]:
        """Decide, and charge if all that are enforced admit."""
        self.notice(now, steps)
        admitted, limits, answers = self._judge(now, steps)
        outcomes: list[Outcome] = []
        for step, limit, answer in zip(steps, limits, answers, strict=True):
            # What was used is carried over as of now, even where that is not enough.
            limit.dirty = limit.redeclared and answer.reason != "window_unknown"
            if admitted and answer.ok:
                until = limit.take(step.ask)
                self._charge(step, limit)
                outcomes.append(Outcome(answer, until, held=True))
            else:
                self.final += limit.dirty
                self._keep(step.key, limit)
                outcomes.append(Outcome(answer))
        return admitted, outcomes

    def _charge(self, step: Step, limit: Limit) -> None:
        """Keep what an admission took, and what it found, if the two can be told apart again."""
        before = self.subjects.get(step.key)
        again = before is not None and before.written_at == limit.now and not limit.redeclared
        if again and isinstance(limit, NAMELESS) and not step.ask.cost:
            # Counting nothing a second time at one moment changes nothing.
            self.kept += 1
            return
        other = before is not None and before.limit.spec["kind"] != step.spec["kind"]
        # What is published is not taken back; a changed declaration is in force even after a veto.
        final = other or limit.redeclared or limit.told
        self.final += bool(final)
        self._keep(step.key, limit)
        if limit.dirty and not final:
            self.found[step.ask.permit, step.key] = before, self.subjects[step.key]

    def undo(self, permit: str, key: str) -> bool:
        """Go back to what an admission found, if nobody has written since; whether that was so."""
        before, after = self.found.get((permit, key), (None, None))
        if after is None or self.subjects.get(key) is not after:
            return False
        if before is None:
            del self.subjects[key]
        else:
            self.subjects[key] = before
        self.undone.add((permit, key))
        return True

    def peek(self, now: int, steps: Sequence[Step]) -> tuple[bool, list[Outcome]]:
        """Decide and charge nothing."""
        admitted, _, answers = self._judge(now, steps)
        return admitted, [Outcome(answer) for answer in answers]

    def settle(self, now: int, key: str, kind: str, report: Report) -> str:
        """True up one part of a permit."""
        limit = self._view(now, key, None)
        if limit is None and not report.reserved and not report.actual:
            # What took nothing leaves nothing that could be lost.
            return "settled"
        if limit is None or limit.spec["kind"] != kind:
            return "stale"
        if (report.permit, key) in self.undone and isinstance(limit, NAMELESS):
            return "stale"
        status = limit.settle(report)
        self._keep(key, limit)
        return status

    def renew(self, now: int, key: str, kind: str, permit: str, reserved: int) -> int:
        """Lengthen the lease of one part of a permit; 0 where it is lost."""
        limit = self._view(now, key, None)
        if limit is None or limit.spec["kind"] != kind:
            # A reservation goes with its window, and nobody can have taken it from its holder.
            return now if kind in {"quota", "rolling"} else 0
        until = limit.renew(permit, reserved)
        self._keep(key, limit)
        return until

    def force(self, now: int, key: str, spec: Spec, state: str) -> str:
        """Put a circuit into a state; get the one it was in."""
        limit = self._view(now, key, spec)
        assert isinstance(limit, Circuit)
        previous = limit.force(state)
        self._keep(key, limit)
        return previous

    def reset(self, now: int, keys: Sequence[str]) -> int:
        """Forget subjects; get how many had state."""
        known = [key for key in keys if key in self.subjects]
        for key in known:
            family, _, rest = key.partition("}:")[2].partition(":")
            policy, _, subject = rest.partition(":")
            circuit = family == "circuit"
            self.told.append(
                {
                    "v": "1",
                    "key": key,
                    "policy": policy,
                    "subject": subject,
                    "at_us": str(now),
                    "type": "circuit:closed" if circuit else "policy:changed",
                    "seq": str(now),
                    "generation": str(now),
                    "previous": "",
                    "state": "closed" if circuit else "",
                    "open_until_us": "0",
                    "reason": "reset",
                    "change": "reset",
                }
            )
            del self.subjects[key]
        return len(known)

    def lapse(self, now: int, key: str) -> bool:
        """Forget a subject because nobody has asked for long; whether that loses nothing."""
        limit = self._view(now, key, None)
        assert limit is not None
        del self.subjects[key]
        return limit.empty()

    def circuits(self) -> dict[str, Circuit]:
        """Get every circuit that is kept, by key."""
        return {
            key: subject.limit
            for key, subject in self.subjects.items()
            if isinstance(subject.limit, Circuit)
        }

    def drain(self) -> list[dict[str, str]]:
        """Get what was published since the last call."""
        told, self.told = self.told, []
        return told
