"""What the observability tier logs about itself: rate-limited, and never a user's data."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

LOGGER: Final = logging.getLogger("stanchion.observers")
_LINES: Final = 5
_PERIOD: Final = 10.0  # seconds


@dataclass(slots=True)
class _Ration:
    since: float
    lines: int = 0
    left_out: int = 0


class Journal:
    """A log that lets five lines of one kind about one subject through every ten seconds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rations: dict[tuple[str, str], _Ration] = {}

    def say(self, level: int, kind: str, subject: str, text: str, *values: object) -> None:
        """Log one line about `subject`, unless its ration is used up.

        The next line that gets through says how many did not.
        """
        with self._lock:
            left_out = self._admit((kind, subject))
        if left_out is None:
            return
        if left_out:
            text, values = f"{text} (%d more like this were not logged)", (*values, left_out)
        # A handler or filter of the application that raises is not our caller's concern, and there
        # is no second log to say so in.
        with contextlib.suppress(Exception):
            LOGGER.log(level, text, *values)

    def forget(self, subject: str) -> None:
        """Drop the rations of a subject that is gone."""
        with self._lock:
            for key in [key for key in self._rations if key[1] == subject]:
                del self._rations[key]

    def _admit(self, key: tuple[str, str]) -> int | None:
        now = time.monotonic()
        ration = self._rations.get(key)
        if ration is None:
            ration = self._rations[key] = _Ration(now)
        elif now - ration.since >= _PERIOD:
            ration.since, ration.lines = now, 0
        if ration.lines >= _LINES:
            ration.left_out += 1
            return None
        ration.lines += 1
        left_out, ration.left_out = ration.left_out, 0
        return left_out
