"""What the control tier answers with: signals, verdicts and decisions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from stanchion.events import Event
    from stanchion.permit import Permit
else:
    # The events that tell of vetoes have verdicts for a field, so this is read at run time, and
    # they themselves are not to be had here. A rewritten event is never told to observers.
    Event = Any


class Signal(StrEnum):
    """What a veto advises the orchestrator to do; `PROCEED` when the event is allowed."""

    PROCEED = "proceed"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    FALLBACK = "fallback"


class Outcome(StrEnum):
    """How admitted work ended; `NEUTRAL` says nothing about the health of what was called."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


class CircuitState(StrEnum):
    """The states of a circuit breaker, the two forced ones included."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class Mode(StrEnum):
    """Whether a policy vetoes, only reports what it would have done, or is not asked."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


class OnOutage(StrEnum):
    """What a policy answers while the shared state cannot be asked."""

    VETO = "veto"
    ADMIT = "admit"
    LOCAL = "local"


class ColdStart(StrEnum):
    """How a subject begins of which there is no state, once all state has been lost.

    `FRESH`: as if nothing had been used. `SPENT`: as if the whole limit had been used at the moment
    of the loss. `PRORATED`: as if it had been used evenly until then.
    """

    FRESH = "fresh"
    SPENT = "spent"
    PRORATED = "prorated"


class Reason(StrEnum):
    """Why a verdict says what it says; custom policies add texts of their own."""

    OK = "ok"
    LIMIT_REACHED = "limit_reached"
    QUOTA_EXHAUSTED = "quota_exhausted"
    COST_ABOVE_LIMIT = "cost_above_limit"
    CIRCUIT_OPEN = "circuit_open"
    PROBES_IN_USE = "probes_in_use"
    RAMPING_UP = "ramping_up"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    NO_FREE_SLOT = "no_free_slot"
    QUEUED = "queued"
    TOO_MANY_SUBJECTS = "too_many_subjects"
    STORE_UNAVAILABLE = "store_unavailable"
    STATE_CORRUPT = "state_corrupt"
    POLICY_FAILED = "policy_failed"
    LOCAL_SHARE = "local_share"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One policy's answer.

    `limit` and `remaining` count in the policy's own unit; `retry_after` and `reset_after` are
    seconds, and `retry_after` is None where waiting will never help. `enforced` is False for a
    policy in shadow mode, whose veto is reported and not followed. `detail` is for people, and
    `decision_id` is what the log of a service that was asked calls this answer. `signal` and
    `advice`, JSON values by name, are what this very veto advises; without them it advises what
    the policy's `on_veto` says. `event` is what a policy made of the event that it admits, such
    as a redacted one: policies asked later see that, and so does the caller.
    """

    policy: str
    allowed: bool
    reason: str = Reason.OK
    limit: int | None = None
    remaining: int | None = None
    retry_after: float | None = None
    reset_after: float | None = None
    enforced: bool = True
    detail: str | None = None
    decision_id: str | None = None
    signal: Signal | None = None
    advice: dict[str, Any] | None = None
    event: Event | None = field(default=None, repr=False)


class _Told(NamedTuple):
    """What a decision tells beside its verdict."""

    verdicts: tuple[Verdict, ...]
    decided_at: datetime | None
    event: Event | None


class Decision:
    """The answer to `check` and `peek`: true when the event may proceed.

    `allowed` is that answer and `signal` the advice that goes with it. `verdicts` has one entry
    per policy asked, in the order of asking. `permit` is what an admission holds, to be settled
    once the outcome is known. `decided_at` is the server's time of the decision, None where the
    store was not asked. `event` is the event to go on with where a policy rewrote it, None where
    it is admitted as it was.
    """

    __slots__ = ("_allowed", "_held", "_permit", "_signal", "_source", "_tale")

    def __init__(
        self,
        allowed: bool,  # noqa: FBT001 - it is what a decision is
        signal: Signal = Signal.PROCEED,
        verdicts: tuple[Verdict, ...] = (),
        permit: Permit | None = None,
        decided_at: datetime | None = None,
        event: Event | None = None,
    ) -> None:
        self._allowed = allowed
        self._signal = signal
        self._source: tuple[Any, ...] = ()
        self._tale: _Told | None = _Told(verdicts, decided_at, event)
        self._held = True
        self._permit = permit

    @classmethod
    def drawn(cls, signal: Signal, source: tuple[Any, ...]) -> Decision:
        """Get a decision that finds out what it tells when it is first asked.

        It is allowed if its signal is to proceed. `source` are two functions and the arguments of
        both: one for verdicts, time and event, and one for the permit, None for no permit.
        """
        decision = cls.__new__(cls)
        decision._allowed = signal is Signal.PROCEED  # noqa: SLF001 - of this very class
        decision._signal = signal  # noqa: SLF001
        decision._source = source  # noqa: SLF001
        decision._tale = None  # noqa: SLF001
        decision._held = source[1] is None  # noqa: SLF001
        decision._permit = None  # noqa: SLF001
        return decision

    @property
    def _told(self) -> _Told:
        if self._tale is None:
            tell, _, *arguments = self._source
            self._tale = _Told(*tell(*arguments))
        return self._tale

    @property
    def allowed(self) -> bool:
        """Whether the event may proceed."""
        return self._allowed

    @property
    def signal(self) -> Signal:
        """What the orchestrator is advised to do."""
        return self._signal

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What each policy said that was asked, in the order of asking."""
        return self._told.verdicts

    @property
    def permit(self) -> Permit | None:
        """What an admission holds; None after a veto."""
        if not self._held:
            _, hold, *arguments = self._source
            self._permit, self._held = hold(*arguments), True
        return self._permit

    @property
    def decided_at(self) -> datetime | None:
        """The server's time of the decision; None where the store was not asked."""
        return self._told.decided_at

    @property
    def event(self) -> Event | None:
        """The event to go on with; None where it is the one that was asked about."""
        return self._told.event

    def _values(self) -> tuple[object, ...]:
        verdicts, decided_at, event = self._told
        return self._allowed, self._signal, verdicts, self.permit, decided_at, event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((self._allowed, self._signal, len(self.verdicts)))

    def __repr__(self) -> str:
        return (
            f"Decision(allowed={self._allowed}, signal={self._signal!r}, "
            f"verdicts={self.verdicts!r}, decided_at={self.decided_at!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Decision, self._values()

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def vetoes(self) -> tuple[Verdict, ...]:
        """The enforced verdicts that refused, in the order of asking."""
        return tuple(v for v in self.verdicts if v.enforced and not v.allowed)

    @property
    def policy(self) -> str | None:
        """The name of the policy that vetoed first, None when allowed."""
        return next((v.policy for v in self.vetoes), None)

    @property
    def reason(self) -> str | None:
        """The reason of the first veto, None when allowed."""
        return next((v.reason for v in self.vetoes), None)

    @property
    def advice(self) -> dict[str, Any]:
        """What goes with the signal of the first veto, such as the model to fall back to."""
        return deepcopy(next((v.advice for v in self.vetoes), None) or {})

    @property
    def retry_after(self) -> float | None:
        """Seconds until every vetoing policy could admit; None: never, or unknown; 0.0: now."""
        waits = [v.retry_after for v in self.vetoes]
        if not waits:
            return 0.0
        known = [wait for wait in waits if wait is not None]
        return max(known) if len(known) == len(waits) else None
