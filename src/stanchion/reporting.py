"""What the control tier tells observers: vetoes, and policies that could not be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion.events import PolicyFailed, PolicyVetoed

if TYPE_CHECKING:
    from stanchion.decisions import Decision
    from stanchion.events import Event


def veto_of(event: Event, decision: Decision) -> PolicyVetoed:
    """Get the event that tells of a veto; it carries every verdict, and nothing of the payload."""
    return PolicyVetoed(
        policy=decision.policy or "",
        reason=decision.reason or "",
        asked_type=event.event_type,
        asked_id=event.id,
        signal=decision.signal,
        retry_after=decision.retry_after,
        verdicts=decision.verdicts,
        pipeline=event.pipeline,
        run_id=event.run_id,
        node=event.node,
        tenant=event.tenant,
    )


def failure_of(policy: str, event: Event, error: BaseException) -> PolicyFailed:
    """Get the event that tells of a policy that could not be asked, or could not settle."""
    return PolicyFailed(
        policy=policy,
        error=str(error),
        error_type=type(error).__name__,
        asked_type=event.event_type,
        asked_id=event.id,
        pipeline=event.pipeline,
        run_id=event.run_id,
        node=event.node,
        tenant=event.tenant,
    )
