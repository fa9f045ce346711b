"""What the checks say: each invariant with its figures, and what broke it."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 5


@dataclass(slots=True)
class Invariant:
    """One thing that has to hold."""

    name: str
    #: What was looked at, in figures.
    figures: str = ""
    broken: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.broken

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.broken.append(text)

    def told(self) -> list[str]:
        """Get the first few of what broke it."""
        more = len(self.broken) - _SHOWN
        return self.broken[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
