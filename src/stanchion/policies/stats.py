"""What a policy has been asked and has answered."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stanchion.decisions import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion.decisions import Verdict


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """What one policy was asked and answered in this process, since it was made.

    `asked` is how many answers were wanted: `admitted` and `vetoed` were given, `failed` are those
    that could not be had, and the rest was given up by whoever asked. `timed_out` and `refused`
    (at once, by the policy's breaker) are among the failed; `cached` and `shared` (with another
    one's question) among the asked. `calls` is how often the service itself, or the store, was
    asked, `latency_sum` and `latency_max` are the seconds that this took; a policy that decides by
    itself has none of these. What a policy in shadow mode would have vetoed counts as vetoed.
    """

    asked: int = 0
    admitted: int = 0
    vetoed: int = 0
    failed: int = 0
    timed_out: int = 0
    refused: int = 0
    cached: int = 0
    shared: int = 0
    calls: int = 0
    latency_sum: float = 0.0
    latency_max: float = 0.0


class Counters:
    """Counts for a `PolicyStats`; several event loops may count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Any] = {}
        self._sum = 0.0
        self._max = 0.0

    @property
    def stats(self) -> PolicyStats:
        """What has been counted so far."""
        with self._lock:
            return PolicyStats(**self._counts, latency_sum=self._sum, latency_max=self._max)

    async def of(
        self,
        answer: Awaitable[Verdict],
        kinds: Callable[[BaseException], tuple[str, ...]] = lambda _: (),
    ) -> Verdict:
        """Get an answer, and count that it was wanted and what it was.

        `kinds` says as what else an error counts, beside as a failure.
        """
        self.count("asked")
        try:
            verdict = await answer
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.count("failed", *kinds(error))
            raise
        if verdict.reason == Reason.STORE_UNAVAILABLE:
            self.count("failed")
        else:
            self.count("admitted" if verdict.allowed else "vetoed")
        return verdict

    def count(self, *names: str) -> None:
        """Add one to each of these."""
        with self._lock:
            for name in names:
                self._counts[name] = self._counts.get(name, 0) + 1

    def called(self, seconds: float) -> None:
        """Add a call of the service that took so long."""
        with self._lock:
            self._counts["calls"] = self._counts.get("calls", 0) + 1
            self._sum += seconds
            self._max = max(self._max, seconds)
