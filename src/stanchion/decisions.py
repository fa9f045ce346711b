"""What the control tier answers with: signals, verdicts and decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from stanchion.permit import Permit


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
    STORE_UNAVAILABLE = "store_unavailable"
    STATE_CORRUPT = "state_corrupt"
    POLICY_FAILED = "policy_failed"
    LOCAL_SHARE = "local_share"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One policy's answer.

    `limit` and `remaining` count in the policy's own unit; `retry_after` and `reset_after` are
    seconds, and `retry_after` is None where waiting will never help. `enforced` is False for a
    policy in shadow mode, whose veto is reported and not followed.
    """

    policy: str
    allowed: bool
    reason: str = Reason.OK
    limit: int | None = None
    remaining: int | None = None
    retry_after: float | None = None
    reset_after: float | None = None
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to `check` and `peek`: true when the event may proceed.

    `verdicts` has one entry per policy asked, in the order of asking. `permit` is what an
    admission holds, to be settled once the outcome is known. `decided_at` is the server's time of
    the decision, None where the store was not asked.
    """

    allowed: bool
    signal: Signal = Signal.PROCEED
    verdicts: tuple[Verdict, ...] = ()
    permit: Permit | None = field(default=None, repr=False)
    decided_at: datetime | None = None

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
    def retry_after(self) -> float | None:
        """Seconds until every vetoing policy could admit; None: never, or unknown; 0.0: now."""
        waits = [v.retry_after for v in self.vetoes]
        if not waits:
            return 0.0
        known = [wait for wait in waits if wait is not None]
        return max(known) if len(known) == len(waits) else None
