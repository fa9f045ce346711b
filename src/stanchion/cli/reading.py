"""What a key's state says, in the words of a table: how much is in use, and what comes when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion import PolicyState


@dataclass(frozen=True, slots=True)
class Usage:
    """One subject's line: `used` of `limit` where they are known, a word on it, what comes next."""

    used: int | None
    limit: int | None
    state: str
    coming: str

    @property
    def share(self) -> float | None:
        """How much of the limit is in use, 1.0 for all of it; None where that is not known."""
        if self.used is None or not self.limit:
            return None
        return self.used / self.limit

    @property
    def amount(self) -> str:
        """What is in use of the limit, as text."""
        if self.used is None or self.limit is None:
            return "-"
        return f"{self.used:,} of {self.limit:,}"


def usage_of(state: PolicyState) -> Usage:
    """Get what a state says."""
    values = state.values
    if "error" in values:
        return Usage(None, None, "unreadable", values["error"])
    if "absent" in values:
        return Usage(None, None, "unused", "")
    if state.kind == "circuit":
        return _circuit(values)
    used, limit = _number(values, "in_use"), _number(values, "capacity")
    if used is None or limit is None:
        return Usage(None, None, "", "")
    # What has come back in part is in use until it is whole.
    word = "full" if values.get("remaining") == "0" else ""
    return Usage(math.ceil(used), int(limit), word, _COMING.get(state.kind, _nothing)(values))


def span(seconds: float) -> str:
    """Get a duration as a person says it: two figures that matter, and a unit."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    return f"{seconds * 1000:.0f} ms"


def _circuit(values: Mapping[str, str]) -> Usage:
    state = values.get("now", "")
    opens = _number(values, "open_until_in")
    if state == "open" and opens is not None:
        coming = f"probes in {span(opens)}" if opens > 0 else "probes now"
    elif state == "half_open":
        ration = values.get("declared.half_open_calls", "?")
        coming = f"{values.get('probes', '?')} of {ration} probes out"
    elif _number(values, "window_calls"):
        coming = f"{values.get('window_failures')} of {values['window_calls']} calls failed"
    else:
        coming = ""
    return Usage(None, None, state, coming)


def _rate(values: Mapping[str, str]) -> str:
    per, tat = _duration(values, "declared.per"), _number(values, "tat_in")
    if tat is not None:
        return f"all back in {span(tat)}" if tat > 0 else ""
    start = _number(values, "start_in")
    if start is not None and per is not None:
        return f"resets in {span(start + per)}"
    return "" if per is None else f"over the last {span(per)}"


def _quota(values: Mapping[str, str]) -> str:
    ends, per = _number(values, "end_in"), _duration(values, "declared.per")
    if ends is None:
        return "" if per is None else f"over the last {span(per)}"
    held = _number(values, "held") or 0
    reserved = f", {held:,.0f} reserved" if held else ""
    return f"resets in {span(ends)}{reserved}" if ends > 0 else ""


def _slots(values: Mapping[str, str]) -> str:
    until = _number(values, "until_in")
    return f"last lease ends in {span(until)}" if until and until > 0 else ""


def _nothing(values: Mapping[str, str]) -> str:
    del values
    return ""


_COMING = {"rate": _rate, "quota": _quota, "slots": _slots}


def _number(values: Mapping[str, str], name: str) -> float | None:
    try:
        return float(values[name])
    except (KeyError, ValueError):
        return None


def _duration(values: Mapping[str, str], name: str) -> float | None:
    text = values.get(name, "")
    return _number({name: text.removesuffix("s")}, name)
