"""Which life of the shared state this is: how a loss of all of it shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What is to become of an epoch.

    `GREET` begins one where there is none. `LOSE` says that what was before has been lost now, and
    begins another; `RESTORE` says that nothing has been lost after all.
    """

    GREET = "greet"
    LOSE = "lose"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Epoch:
    """The time during which the state under one hash tag has not been lost.

    `born_us` is when somebody first asked in it, and `lost_us` when it was noticed that what was
    before had been lost, 0 where nothing is known to have been; both by the server's clock.
    `previous` is the id of the epoch that was lost, empty where none was known. `spread` is how the
    namespace is spread over shards, by whoever came first in this epoch; empty where nobody said.
    """

    tag: str
    id: str
    born_us: int
    lost_us: int = 0
    previous: str = ""
    spread: str = ""
