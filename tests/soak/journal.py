"""What a worker writes down: one JSON array a line, at once, so that it outlives a SIGKILL.

`t` is the worker's clock and `at` the server's, both of the same machine, in microseconds; `n`
numbers the calls of one worker.

    born       t  pid
    asks       n  t  event  type  who  tokens  unwanted     before the call that may charge
    decided    n  t  admitted  reason  policy  at  permit  holds     `at` is 0: not by the store
    doubt      n  t  why                                no answer: it may have been charged
    unsent     event                                    and it was not: the store was not asked
    renewed    n  t                                     begun at t, and the lease was still ours
    settles    n  t  actual                             before the call that settles
    settled    n  t  statuses                           null: there was no answer, or nobody asked
    answered   verb  t  took  bound  late  reason  n     `late`: how much of it the loop was away
    circuit    policy  subject  generation  seq  previous  state  at  open_until  reason
    sample     t  rss_kib  fds  tasks  threads  late
    stall      t  took                                  the loop did not run; the relay's as well
    corrupt    t  text                                  a state that could not be read
    wrong      t  text                                  an invariant that the worker saw broken
    end        t  facts
"""

from __future__ import annotations

import json
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Line(StrEnum):
    """What a line is about."""

    BORN = "born"
    ASKS = "asks"
    DECIDED = "decided"
    DOUBT = "doubt"
    UNSENT = "unsent"
    RENEWED = "renewed"
    SETTLES = "settles"
    SETTLED = "settled"
    ANSWERED = "answered"
    CIRCUIT = "circuit"
    SAMPLE = "sample"
    STALL = "stall"
    CORRUPT = "corrupt"
    WRONG = "wrong"
    END = "end"


def now_us() -> int:
    return time.time_ns() // 1000


class Journal:
    """Writes lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: Line, *values: Any) -> None:
        line = json.dumps([kind, *values], separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def wrong(self, text: str) -> None:
        self.write(Line.WRONG, now_us(), text)

    def close(self) -> None:
        os.close(self._file)


class Reader:
    """Reads the lines that have come since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def new(self) -> Iterator[list[Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
