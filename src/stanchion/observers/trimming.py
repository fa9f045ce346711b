"""What a stream lost before a group had read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stanchion.store.streams import Backlog


class Trimming:
    """Counts each trimmed entry once, however often it is looked at."""

    def __init__(self) -> None:
        self._last = ""
        self._counted = 0

    def note(self, backlog: Backlog) -> int:
        """Get how many entries have been lost that were not counted before."""
        if backlog.last != self._last:
            self._last, self._counted = backlog.last, 0
        new = max(0, backlog.trimmed - self._counted)
        self._counted += new
        return new
