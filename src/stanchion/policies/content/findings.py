"""What detectors find in a text, and the text without it."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(StrEnum):
    """What a finding is, and the reason of the veto for it."""

    TERM = "term"
    PATTERN = "pattern"
    SECRET = "secret"  # noqa: S105 - a kind, not one
    PERSONAL = "personal_data"


class Finding(NamedTuple):
    """A place in a text; `label` says what is there, and nothing here repeats it."""

    kind: Kind
    label: str
    start: int
    end: int


class Detector(Protocol):
    """Finds one kind of thing in texts."""

    def find(self, text: str) -> Iterable[Finding]:
        """Get what is there, in any order."""
        ...


def redacted(text: str, findings: Iterable[Finding]) -> str:
    """Get the text with the label in place of each finding; those that overlap become one."""
    parts: list[str] = []
    done = 0
    for found in sorted(findings, key=lambda one: (one.start, -one.end)):
        if found.start >= done:
            parts += text[done : found.start], f"[{found.label}]"
        done = max(done, found.end)
    parts.append(text[done:])
    return "".join(parts)


def counted(findings: Iterable[Finding]) -> str:
    """Get a line for people: what was found, and how often."""
    counts = Counter(found.label for found in findings)
    return ", ".join(label if n == 1 else f"{n} x {label}" for label, n in sorted(counts.items()))
