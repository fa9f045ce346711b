"""A small breaker around one service, so that its outage does not cost every caller a timeout."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stanchion.errors import PolicyFailed

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES: Final = 3
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 5.0


@dataclass(slots=True)
class ServiceGate:
    """Lets calls through while a service answers; after three failures in a row one at a time.

    Calls that fail together are one failure, since one event ended them. Between trials calls
    fail at once. The pause starts at 0.25 s and doubles up to 5 s; a service that names a time
    after which to come back is left alone for so long, up to the same 5 s.
    """

    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _round: int = 0
    _pause: float = FIRST_PAUSE
    _until: float = 0.0
    _trying: bool = False
    _last: str = field(default="", repr=False)

    @property
    def shut(self) -> bool:
        """Whether calls fail at once now."""
        return self._failures >= FAILURES and (self._trying or self.clock() < self._until)

    def enter(self) -> int:
        """Pass, and get the round that the call belongs to, for telling how it went.

        Raises:
            PolicyFailed: the service has not been answering; at once.
        """
        if self.shut:
            left = max(0.0, self._until - self.clock()) or FIRST_PAUSE
            raise PolicyFailed(f"has not been answering: {self._last}", retry_after=left)
        self._trying = self._failures >= FAILURES
        return self._round

    def succeeded(self) -> None:
        """Note that the service answered."""
        self._failures, self._pause, self._trying = 0, FIRST_PAUSE, False

    def abandoned(self, entered: int) -> None:
        """Note that a call ended without saying anything about the service."""
        if entered == self._round:
            self._trying = False

    def failed(self, text: str, entered: int, retry_after: float | None = None) -> None:
        """Note that the service did not answer, or answered that it cannot serve."""
        if entered != self._round:
            # It was under way when another one failed, and says nothing new.
            return
        self._last, self._trying = text, False
        self._round += 1
        self._failures += 1
        if self._failures >= FAILURES:
            self._until = self.clock() + min(LONGEST_PAUSE, max(self._pause, retry_after or 0.0))
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
