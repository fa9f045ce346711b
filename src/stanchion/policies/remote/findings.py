"""What a Rego rule says: true or false, an object with `allow`, or the denials it has found."""

from __future__ import annotations

from typing import Final, cast

from stanchion.decisions import Verdict
from stanchion.policies.remote.replies import DENIED, reason_text, seconds_of

UNDEFINED: Final = "undefined"
_SHOWN: Final = 5
_ACCEPTED: Final = (
    "expected true, false, a list of denials, or an object whose allow is true or false"
)


def finding(
    policy: str, where: str, result: object, *, defined: bool, decision_id: str | None = None
) -> Verdict:
    """Get the verdict for the value of the document `where`; whatever says nothing is a veto.

    An object may have `reason` (text) or `reasons` (texts) and `retry_after` (seconds) beside
    `allow`. In a list or set each member is a denial: a text, or an object with `msg` or `reason`.
    """
    if not defined:
        return _veto(policy, UNDEFINED, decision_id, detail=f"{where} is undefined")
    denial: str | None = None
    wait: float | None = None
    match result:
        case bool():
            denial = None if result else DENIED
        case {"allow": bool(allowed)}:
            fields = cast("dict[str, object]", result)
            denial = None if allowed else _reason(fields)
            wait = seconds_of(fields.get("retry_after"))
        case list():
            denials = [_denial(item) for item in cast("list[object]", result)]
            denial = _joined(denials) if denials else None
        case _:
            detail = f"{where} is {_kind(result)}; {_ACCEPTED}"
            return _veto(policy, UNDEFINED, decision_id, detail=detail)
    if denial is None:
        return Verdict(policy, allowed=True, decision_id=decision_id)
    return _veto(policy, denial, decision_id, wait=wait)


def _veto(
    policy: str,
    reason: str,
    decision_id: str | None,
    *,
    wait: float | None = None,
    detail: str | None = None,
) -> Verdict:
    return Verdict(
        policy,
        allowed=False,
        reason=reason,
        retry_after=wait,
        detail=detail,
        decision_id=decision_id,
    )


def _reason(fields: dict[str, object]) -> str:
    reasons = fields.get("reasons")
    if isinstance(reasons, list) and reasons:
        return _joined([_denial(item) for item in cast("list[object]", reasons)])
    return reason_text(fields.get("reason")) or DENIED


def _denial(item: object) -> str:
    if isinstance(item, dict):
        fields = cast("dict[str, object]", item)
        item = fields.get("msg", fields.get("reason"))
    return reason_text(item) or DENIED


def _joined(denials: list[str]) -> str:
    told = list(dict.fromkeys(denials))
    more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return reason_text("; ".join(told[:_SHOWN]) + more)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object without allow"
    return "a text" if isinstance(value, str) else "a number"
