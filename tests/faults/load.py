"""Worker processes that check without a pause, and a ledger of what they were told.

Every admission is written down by its permit. A quota keeps a hold for each permit that was not
settled, so what one server knows of can be told apart from what another one had promised.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tests.contention.fleet import Fleet, fleet
from tests.faults.calls import PREFIX, UNAVAILABLE, charged
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from tests.servers import RealServer

EXHAUSTED = "quota_exhausted"
HOLDS = f"{PREFIX}quota.holds:tokens:acme"


@dataclass
class Tally:
    """What all callers of a load were told; moments are of the clock that all processes share."""

    admitted: list[tuple[str, float]] = field(default_factory=list)
    denied: dict[str, int] = field(default_factory=dict)
    #: Moments of vetoes for want of the store, and why.
    unavailable: list[float] = field(default_factory=list)
    details: dict[str, int] = field(default_factory=dict)
    worst: float = 0.0

    @property
    def permits(self) -> set[str]:
        return {permit for permit, _ in self.admitted}

    @property
    def longest_gap(self) -> float:
        """The longest time in which nobody was admitted, seconds."""
        moments = sorted(at for _, at in self.admitted)
        return max((b - a for a, b in itertools.pairwise(moments)), default=0.0)

    def recovered_after(self, moment: float) -> float:
        """Get how long after a moment the last veto for want of the store came."""
        return max((at - moment for at in self.unavailable), default=0.0)

    def add(self, told: dict[str, Any]) -> None:
        self.admitted += [(permit, at) for permit, at in told["admitted"]]
        self.unavailable += told["unavailable"]
        self.worst = max(self.worst, told["worst"])
        for mine, theirs in ((self.denied, told["denied"]), (self.details, told["details"])):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


@dataclass(frozen=True)
class Balance:
    """What callers were promised beside what a server knows of."""

    admitted: int
    #: Admissions that the server knows nothing of: decided elsewhere, and not handed on.
    missing: int
    #: Charges whose answer never came: whoever asked was told that the store was unavailable.
    unheard: int

    def over(self, limit: int) -> int:
        """Get how many more than the limit were admitted."""
        return max(0, self.admitted - limit)


def held(server: RealServer) -> set[str]:
    """Get the permits for which a server holds something."""
    members = cast("list[str]", server.control.zrange(HOLDS, 0, -1))
    return {member.rpartition(":")[0] for member in members}


def balance(tally: Tally, server: RealServer) -> Balance:
    """Compare, and see that nobody was charged twice: each permit is counted once."""
    known, promised = held(server), tally.permits
    assert len(promised) == len(tally.admitted), "a permit was given twice"
    assert charged(server) == len(known), "something was charged twice"
    return Balance(len(promised), len(promised - known), len(known - promised))


class Load:
    """A load under way."""

    def __init__(self, workers: Fleet) -> None:
        self._workers = workers

    async def count(self) -> dict[str, int]:
        """Get how many were admitted and denied so far, by reason."""
        total: dict[str, int] = {}
        for told in await self._workers.ask("count"):
            for name, count in told.items():
                total[name] = total.get(name, 0) + count
        return total

    async def admits(self, more: int, timeout: float = 20.0) -> None:
        """Wait until so many more are admitted, from now on."""
        before = (await self.count()).get("admitted", 0)

        async def enough() -> bool:
            return (await self.count()).get("admitted", 0) >= before + more

        await eventually(enough, timeout, what=f"{more} more are admitted", interval=0.05)

    async def exhausts(self, timeout: float = 30.0) -> None:
        """Wait until every worker is told that the quota is used up, and the store is there."""

        async def all_are() -> bool:
            before = await self._workers.ask("count")
            await asyncio.sleep(0.1)
            after = await self._workers.ask("count")
            return all(
                b.get(EXHAUSTED, 0) > a.get(EXHAUSTED, 0)
                and b.get("admitted", 0) == a.get("admitted", 0)
                and b.get(UNAVAILABLE, 0) == a.get(UNAVAILABLE, 0)
                for a, b in zip(before, after, strict=True)
            )

        await eventually(all_are, timeout, what="the quota is used up", interval=0.05)

    async def stop(self) -> Tally:
        """End it, and get what all were told."""
        tally = Tally()
        for told in await self._workers.ask("stop"):
            tally.add(told)
        return tally


@asynccontextmanager
async def load(
    url: str,
    policies: Iterable[Any],
    *,
    workers: int = 2,
    callers: int = 12,
    pause: float = 0.02,
    deadline: float = 0.4,
) -> AsyncGenerator[Load]:
    """Have so many processes check, each with so many callers that pause between their checks."""
    module = "tests.faults.loader"
    async with fleet(url, *policies, workers=workers, module=module) as started:
        await started.ask("begin", callers=callers, pause=pause, deadline=deadline)
        yield Load(started)
