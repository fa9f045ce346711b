"""Ends the servers of a test session that was killed before it could.

A process of its own. It reads `+pid directory` and `-pid` lines; at the end of input it kills what
is left, and removes the directories.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    alive: dict[int, str] = {}
    for line in sys.stdin:
        pid, _, directory = line[1:].rstrip("\n").partition(" ")
        if line[0] == "+":
            alive[int(pid)] = directory
        else:
            alive.pop(int(pid), None)
    for pid, directory in alive.items():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
