"""Where the command line writes, and how it ends."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from stanchion.observers.sinks.console import escaped

if TYPE_CHECKING:
    from typing import TextIO

_PIPED_WIDTH = 110


class Exit(IntEnum):
    """What the process says of itself when it ends."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


def console(file: TextIO | None = None) -> Console:
    """Get a console for a stream, by default standard output; plain where it is no terminal."""
    stream = sys.stdout if file is None else file
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False)


def complain(text: str) -> None:
    """Tell on standard error what went wrong, on one line, as this program's word."""
    line = " ".join(text.split())
    sys.stderr.write(f"stanchion: {escaped(line)}\n")


def cell(text: str, style: str = "") -> Text:
    """Get text for a table: no markup, and nothing that acts on a terminal."""
    return Text(escaped(text), style=style)


def say(text: str) -> None:
    """Write one line to standard output, with nothing in it that acts on a terminal."""
    sys.stdout.write(f"{escaped(text)}\n")


def print_json(document: object) -> None:
    """Write a JSON document to standard output; what would act on a terminal stays escaped."""
    lines = json.dumps(document, indent=2, ensure_ascii=False).split("\n")
    sys.stdout.writelines(f"{escaped(line)}\n" for line in lines)
