"""What the control tier tells observers: vetoes, and policies that could not be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stanchion.errors import StanchionError
from stanchion.events import PolicyFailed, PolicyVetoed
from stanchion.observers.containment import summary

if TYPE_CHECKING:
    from stanchion.decisions import Decision, Verdict
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
        verdicts=tuple(map(_told, decision.verdicts)),
        pipeline=event.pipeline,
        run_id=event.run_id,
        node=event.node,
        tenant=event.tenant,
    )


def _told(verdict: Verdict) -> Verdict:
    """Get a verdict without what it may hold of the event."""
    if verdict.event is None and verdict.advice is None:
        return verdict
    return replace(verdict, event=None, advice=None)


def failure_of(policy: str, event: Event, error: BaseException) -> PolicyFailed:
    """Get the event that tells of a policy that could not be asked, or could not settle.

    Of somebody else's error it has the place and not the text, which may quote a prompt or a key.
    """
    return PolicyFailed(
        policy=policy,
        error=str(error) if isinstance(error, StanchionError) else summary(error),
        error_type=type(error).__name__,
        asked_type=event.event_type,
        asked_id=event.id,
        pipeline=event.pipeline,
        run_id=event.run_id,
        node=event.node,
        tenant=event.tenant,
    )
