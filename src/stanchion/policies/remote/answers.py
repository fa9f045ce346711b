"""Answers kept for a while, so that the same question is not asked again and again."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from stanchion.decisions import Verdict


class _Kept(NamedTuple):
    verdict: Verdict
    since: float
    until: float


class Answers:
    """The verdicts of the last `size` questions, admissions and denials for a time of their own.

    A denial that names a time after which to come back is kept no longer than that.
    """

    def __init__(
        self,
        *,
        admit: float,
        deny: float,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admit = admit
        self._deny = deny
        self._size = size
        self._clock = clock
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, question: Hashable) -> Verdict | None:
        """Get what the question was answered with, None where that is not known or too old."""
        kept = self._kept.get(question)
        if kept is None:
            return None
        now = self._clock()
        if now >= kept.until:
            del self._kept[question]
            return None
        self._kept.move_to_end(question)
        verdict = kept.verdict
        if verdict.retry_after is None:
            return verdict
        return replace(verdict, retry_after=max(0.0, verdict.retry_after - (now - kept.since)))

    def put(self, question: Hashable, verdict: Verdict) -> None:
        """Keep an answer, and let go of the one that was not asked for the longest time."""
        life = self._admit if verdict.allowed else self._deny
        if not verdict.allowed and verdict.retry_after is not None:
            life = min(life, verdict.retry_after)
        if life <= 0:
            return
        now = self._clock()
        self._kept[question] = _Kept(verdict, now, now + life)
        self._kept.move_to_end(question)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget(self) -> None:
        """Let go of every answer."""
        self._kept.clear()
