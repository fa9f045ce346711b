"""Which server it is, and whether it has what is asked of it: a floor, and one grave fix.

CVE-2025-49844 let who may run a script run code on the server's machine; limits need scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stanchion.store.doctor.findings import Check, Finding, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

_CVE: Final = "CVE-2025-49844"
_FLOOR: Final = (7, 0)
#: The first fixed release of each line, the last of them the one that every later line has.
_FIXED: Final = {
    "Redis": ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4), (9, 0, 0)),
}


def version(hello: Mapping[str, str]) -> Finding:
    """Judge what the server says of itself in answer to HELLO."""
    product = "Valkey" if hello.get("server", "").lower() == "valkey" else "Redis"
    shown = hello.get("version", "")
    numbers = _numbers(shown)
    found = f"{product} {shown}"
    fixed = _FIXED[product]
    if not numbers:
        return _finding(Status.HINT, f"{found or product}, a version that nobody here can read", "")
    if numbers[:2] < _FLOOR:
        return _finding(
            Status.ERROR,
            f"{found}; needed is 7.0 or newer",
            f"upgrade to {product} {_shown(fixed)}",
        )
    remedy = f"upgrade to {product} {_shown(fixed)}, or newer"
    line = next((first for first in fixed if first[:2] == numbers[:2]), None)
    if line is None and numbers > fixed[-1]:
        return _finding(Status.OK, found)
    if line is None:
        # What distributions have mended in an old version does not show in its number.
        return _finding(
            Status.WARNING,
            f"{found}: no release of this line has the fix for {_CVE}",
            f"{remedy}; or see in the changelog of your distribution's package that it has the fix",
        )
    if numbers < line:
        return _finding(Status.ERROR, f"{found} runs an attacker's code ({_CVE})", remedy)
    return _finding(Status.OK, found)


def _finding(status: Status, found: str, remedy: str = "") -> Finding:
    return Finding(Check.VERSION, status, found, remedy)


def _numbers(shown: str) -> tuple[int, ...]:
    words = shown.partition("-")[0].split(".")
    return tuple(int(word) for word in words) if all(map(str.isdecimal, words)) else ()


def _shown(versions: tuple[tuple[int, ...], ...]) -> str:
    words = [".".join(map(str, one)) for one in versions]
    return f"{', '.join(words[:-1])} or {words[-1]}"
