"""Reading what a service says beside yes and no: why, for how long, and under which id."""

from __future__ import annotations

from typing import Final

DENIED: Final = "denied"
_LONGEST: Final = 500


def reason_text(told: object) -> str:
    """Get a reason in one line of a bounded length, empty where there is none."""
    if not isinstance(told, str):
        return ""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(told.split()))
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."


def id_of(told: object) -> str | None:
    """Get what the service's own log calls the answer, None where it says nothing."""
    return reason_text(told) or None


def seconds_of(told: object) -> float | None:
    """Get the seconds after which to come back, None where no such number was given."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told < 1e9:
        return None
    return float(told)
