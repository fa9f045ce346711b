"""Processes that live in another time: libfaketime, from Debian's package `faketime`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import RealServer, missing

if TYPE_CHECKING:
    from tests.servers import Reaper


def library() -> Path:
    """Get the library that stands in for the clock; without it the test is skipped, in CI fails."""
    for place in ("lib/*/faketime", "lib/faketime", "lib64/faketime"):
        if found := sorted(Path("/usr").glob(f"{place}/libfaketimeMT.so.1")):
            return found[0]
    return missing("no libfaketime: pip cannot install it; it is in Debian's package faketime")


def environment(ahead: int) -> dict[str, str]:
    """Get what has a process believe that it is so many seconds later than it is."""
    return {
        "LD_PRELOAD": str(library()),
        "FAKETIME": f"{ahead:+d}s",
        # How long something takes is still told by the true clock, as on a machine that is set.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


class ElsewhenServer(RealServer):
    """A server whose clock is set while it runs."""

    def __init__(self, program: str, reaper: Reaper) -> None:
        super().__init__(program, reaper, name=f"{program} under libfaketime")
        self.kind = program
        self._file = self.directory / "ahead"
        self.set_clock(0)

    def set_clock(self, ahead: int) -> None:
        """Have its clock be so many seconds ahead of the true one, from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead:+d}s\n")
        fresh.replace(self._file)

    def command(self) -> list[str]:
        given = environment(0) | {"FAKETIME_TIMESTAMP_FILE": str(self._file)}
        del given["FAKETIME"]
        given["FAKETIME_NO_CACHE"] = "1"
        return ["env", *(f"{name}={value}" for name, value in given.items()), *super().command()]
