"""Recorded traffic, read from CSV."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from stanchion import ConfigError
from stanchion.cli.demo.plan import Call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded calls in order, `seconds` from the first to the last as they were recorded."""

    calls: tuple[Call, ...]
    seconds: float

    @property
    def largest(self) -> int:
        """The longest answer of all."""
        return max(call.generated for call in self.calls)

    def sped_up(self, speed: float) -> Trace:
        """Get the same calls, `speed` times closer together."""
        calls = tuple(call.model_copy(update={"due": call.due / speed}) for call in self.calls)
        return Trace(calls, self.seconds / speed)

    def until(self, seconds: float) -> Trace:
        """Get the calls of the first so many seconds."""
        if seconds >= self.seconds:
            return self
        return Trace(tuple(call for call in self.calls if call.due < seconds), seconds)

    def share(self, worker: int, workers: int) -> tuple[Call, ...]:
        """Get the calls of one worker, counted from 1: dealt out in turn."""
        return self.calls[worker - 1 :: workers]


def read_trace(path: Path) -> Trace:
    """Get the calls of a CSV file with the columns TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        ConfigError: no such file, or not such a one; the text names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = sorted(_rows(path, csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"trace {path}: {reason}") from error
    if not rows:
        raise ConfigError(f"trace {path}: there are no calls in it")
    first, last = rows[0][0], rows[-1][0]
    calls = tuple(
        Call(due=(at - first) / _MICROS, prompt=prompt, generated=generated)
        for at, prompt, generated in rows
    )
    return Trace(calls, (last - first) / _MICROS)


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, int, int]]:
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"trace {path}: no column {', '.join(missing)}; expected a line {','.join(COLUMNS)}, "
            "and one line for each call under it"
        )
    for row in reader:
        try:
            at, prompt, generated = (row[column] or "" for column in COLUMNS)
            yield _moment(at), _tokens(COLUMNS[1], prompt), _tokens(COLUMNS[2], generated)
        except ValueError as error:
            raise ConfigError(f"trace {path}, line {reader.line_num}: {error}") from None


def _moment(text: str) -> int:
    # Recorded with more digits of a second than Python reads.
    found = _TIMESTAMP.fullmatch(text.strip())
    moment = None
    if found is not None:
        with suppress(ValueError):
            moment = datetime.fromisoformat(found[1] + (found[3] or "+00:00"))
    if found is None or moment is None:
        raise ValueError(f"{COLUMNS[0]}={text!r}: expected YYYY-MM-DD HH:MM:SS.fraction")
    return round(moment.timestamp()) * _MICROS + int(f"{found[2] or '':0<6}"[:6])


def _tokens(column: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{column}={text!r}: expected a whole number from 0")
    return int(text)
