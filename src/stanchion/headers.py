"""Telling HTTP clients about their limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.decisions import Decision, Verdict


def response_headers(decision: Decision, *, legacy: bool = False) -> Mapping[str, str]:
    """Get the headers that tell a client what a decision said, ready for an HTTP response.

    `RateLimit-Policy` and `RateLimit` have an item for each policy with a limit: its quota `q`,
    what remains `r`, and the seconds `t` until it is whole again
    (draft-ietf-httpapi-ratelimit-headers-10). A veto that waiting can turn has `Retry-After`, in
    whole seconds, rounded up (RFC 9110, 10.2.3). With `legacy`, `X-RateLimit-Limit`, `-Remaining`
    and `-Reset` (seconds) tell of the one policy that refused, or that has the least share left.
    Policies in shadow mode are not told of: they hold nobody up.
    """
    limits = [verdict for verdict in decision.verdicts if verdict.enforced and verdict.limit]
    headers: dict[str, str] = {}
    if limits:
        headers["RateLimit-Policy"] = ", ".join(f'"{v.policy}";q={v.limit}' for v in limits)
        headers["RateLimit"] = ", ".join(_item(v) for v in limits)
    if not decision.allowed and decision.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(decision.retry_after))
    if legacy and limits:
        tightest = min(limits, key=_share)
        headers["X-RateLimit-Limit"] = str(tightest.limit)
        headers["X-RateLimit-Remaining"] = str(tightest.remaining or 0)
        headers["X-RateLimit-Reset"] = str(math.ceil(tightest.reset_after or 0.0))
    return headers


def _item(verdict: Verdict) -> str:
    reset = "" if verdict.reset_after is None else f";t={math.ceil(verdict.reset_after)}"
    return f'"{verdict.policy}";r={verdict.remaining or 0}{reset}'


def _share(verdict: Verdict) -> tuple[bool, float]:
    return verdict.allowed, (verdict.remaining or 0) / (verdict.limit or 1)
