"""Event ids: UUIDs of version 7 (RFC 9562) that rise within one process."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NANOS_PER_MILLI: Final = 1_000_000
_POOL_BYTES: Final = 4096
# The last group of an id begins with the lowest 16 bits of the counter; the rest stands before it.
_LOW: Final = 0xFFFF


class _Ids:
    """48 bits of milliseconds, a 42-bit counter (RFC 9562, 6.2, method 1), 32 random bits.

    The counter starts anew at a random number below 2^41 in every millisecond and counts within
    it, also while the clock stands still or has been set back: 2^41 ids fit before it overflows.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start over, sharing neither random numbers nor a held lock with a parent process."""
        # Reentrant, so that a signal handler or a finalizer can make an event while its own thread
        # is making one.
        self._lock = threading.RLock()
        self._milli = 0
        self._counter = 0
        self._head = ""
        self._tails: Iterator[int] = iter(())

    def make(self) -> str:
        """Get an id above every id that this process has got before."""
        with self._lock:
            milli = time.time_ns() // _NANOS_PER_MILLI
            if milli > self._milli:
                self._milli = milli
                self._counter = int.from_bytes(os.urandom(6)) >> 7
                self._write_head()
            else:
                self._counter += 1
                if not self._counter & _LOW:
                    self._write_head()
            tail = next(self._tails, None)
            if tail is None:
                # One system call for a thousand ids.
                self._tails = iter(memoryview(os.urandom(_POOL_BYTES)).cast("I"))
                tail = next(self._tails)
            return f"{self._head}{self._counter & _LOW:04x}{tail:08x}"

    def _write_head(self) -> None:
        milli = f"{self._milli:012x}"
        version = 0x7000 | self._counter >> 30
        variant = 0x8000 | self._counter >> 16 & 0x3FFF
        self._head = f"{milli[:8]}-{milli[8:]}-{version:04x}-{variant:04x}-"


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.forget)


def uuid7() -> str:
    """Get a new UUID of version 7 as text, above every earlier one of this process."""
    return _ids.make()
