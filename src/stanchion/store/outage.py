"""A small breaker around Redis itself, so that an outage does not cost every caller a deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stanchion.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_FAILURES = 3
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 2.0


@dataclass(slots=True)
class OutageGate:
    """Lets calls through while Redis answers; after three failures in a row one probe at a time.

    Calls that fail together are one failure: whatever ended them was one event, and a single one,
    such as a lost connection, shuts nothing. Between probes calls fail at once. The pause starts at
    0.25 s and doubles up to 2 s. `what` begins what is said meanwhile.
    """

    clock: Callable[[], float] = time.monotonic
    what: str = "Redis has not been answering"
    _failures: int = 0
    _round: int = 0
    _pause: float = _FIRST_PAUSE
    _until: float = 0.0
    _probing: bool = False
    _last: str = field(default="", repr=False)

    def enter(self) -> int:
        """Pass, or raise StoreUnavailable at once because Redis has not been answering.

        Gets the round of failures that the call belongs to, for telling how it went.
        """
        if self._failures >= _FAILURES:
            if self._probing or self.clock() < self._until:
                raise StoreUnavailable(f"{self.what}: {self._last}")
            self._probing = True
        return self._round

    def succeeded(self) -> None:
        """Note that Redis answered."""
        self._failures, self._pause, self._probing = 0, _FIRST_PAUSE, False

    def abandoned(self, entered: int) -> None:
        """Note that a call ended without saying anything about Redis."""
        if entered == self._round:
            self._probing = False

    def failed(self, text: str, entered: int) -> None:
        """Note that Redis did not answer, or answered that it cannot serve."""
        if entered != self._round:
            # It was under way when another one failed, and says nothing new.
            return
        self._last, self._probing = text, False
        self._round += 1
        self._failures += 1
        if self._failures >= _FAILURES:
            self._until = self.clock() + self._pause
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
