"""What the tests of quotas that wait for replicas share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.faults.calls import charged, quota
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import Quota
    from tests.followers import Followers
    from tests.servers import RealServer


def money(replicas: int = 1, **fields: Any) -> Quota:
    """Make a quota that waits for so many replicas."""
    return quota(replicas=replicas, **fields)


def hang(followers: Followers, count: int) -> None:
    """Have so many replicas acknowledge nothing."""
    for replica in followers.replicas[:count]:
        replica.pause()


def acknowledged(detail: str | None) -> tuple[int, int]:
    """Get how many replicas have acknowledged, of how many, by the text of a veto."""
    said = re.fullmatch(r"(\d+) of (\d+) replicas acknowledged within 0\.\d+ s", detail or "")
    assert said is not None, detail
    return int(said[1]), int(said[2])


async def given_back(server: RealServer, units: int = 0) -> None:
    """Wait until no more than so many units are charged."""
    await eventually(lambda: charged(server) == units, what="what did not count is given back")
