"""What the callers of the linearizability test ask for, and how they choose it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from stanchion import (
    CircuitBreaker,
    Concurrency,
    Event,
    Outcome,
    Overage,
    Quota,
    RateLimit,
    Unsettled,
)

if TYPE_CHECKING:
    from stanchion import EventBus, Permit

TASKS = 3


class Metered(Event, type="mix:metered"):
    tokens: int = 1


class Guarded(Event, type="mix:guarded"):
    tokens: int = 1


class Both(Event, type="mix:both"):
    tokens: int = 1


METERED, GUARDED = (Metered, Both), (Guarded, Both)
BY = ("tenant",)


def rate(name: str, limit: int, per: str, **fields: Any) -> RateLimit:
    return RateLimit(name=name, on=METERED, by=BY, limit=limit, per=per, cost="tokens", **fields)


#: Tight enough that each of them refuses; short enough that leases end and windows pass.
POLICIES = (
    rate("gcra", 700, "1s", burst=25),
    rate("log", 350, "500ms", algorithm="sliding_log"),
    rate("fixed", 200, "300ms", algorithm="fixed_window"),
    rate("sliding", 1200, "2s", algorithm="sliding_window", slices=10),
    Quota(
        name="window",
        on=METERED,
        by=BY,
        cost="tokens",
        limit=450,
        per="700ms",
        lease="150ms",
        unsettled=Unsettled.REFUND,
        rollover=60,
    ),
    Quota(
        name="rolling",
        on=METERED,
        by=BY,
        cost="tokens",
        limit=1000,
        per="2s",
        lease="200ms",
        rolling=True,
        slices=10,
        overage=Overage.CLIP,
    ),
    Concurrency(name="slots", on=GUARDED, by=BY, limit=6, lease="120ms"),
    CircuitBreaker(
        name="provider",
        on=GUARDED,
        by=BY,
        failure_rate=0.5,
        minimum_calls=6,
        window="1s",
        open_for="40ms",
        max_open_for="160ms",
        jitter=0.3,
        half_open_calls=2,
        lease="100ms",
        min_reporters=2,
        ramp_up="60ms",
    ),
)


class Caller:
    """Asks for this and that, as chance will have it, and settles part of what it gets."""

    def __init__(self, bus: EventBus, chance: random.Random) -> None:
        self._bus = bus
        self._chance = chance
        self._held: list[Permit] = []
        self._past: list[Permit] = []
        self.done: Counter[str] = Counter()

    async def call(self, seconds: float, pause: float) -> None:
        ends = time.monotonic() + seconds
        await asyncio.gather(*(self._one_after_another(ends, pause) for _ in range(TASKS)))

    async def _one_after_another(self, ends: float, pause: float) -> None:
        while time.monotonic() < ends:
            # Some alone, some in company: those travel in one script call.
            together = self._chance.choice((1, 1, 1, 6))
            await asyncio.gather(*(self._one() for _ in range(together)))
            await asyncio.sleep(self._chance.choice((0, 0, 0.1, 1)) * pause)

    def _event(self) -> Event:
        kind = self._chance.choice((Metered, Guarded, Both))
        return kind(tenant=self._chance.choice("ab"), tokens=self._chance.randint(1, 9))

    async def _one(self) -> None:
        choice = self._chance.random()
        if choice < 0.1:
            decision = await self._bus.peek(self._event())
            self.done["foreseen" if decision else "foreseen vetoes"] += 1
        elif choice < 0.6 or not self._held:
            decision = await self._bus.check(self._event())
            self.done["admitted" if decision else "vetoed"] += 1
            if decision.permit is not None:
                self._held.append(decision.permit)
        elif choice < 0.65:
            kept = await self._bus.renew(self._chance.choice(self._held))
            self.done["renewed" if kept else "lost"] += 1
        elif choice < 0.7 and self._past:
            await self._settle(self._chance.choice(self._past))
        else:
            # The longer held, the likelier that a lease has ended meanwhile.
            permit = self._held.pop(self._chance.randrange(len(self._held)))
            self._past = [*self._past[-50:], permit]
            await self._settle(permit)
            if len(self._held) > 20:
                del self._held[0]

    async def _settle(self, permit: Permit) -> None:
        outcome = self._chance.choices(tuple(Outcome), (5, 4, 1))[0]
        counts = any(name == "tokens" for hold in permit.holds for name, _, _ in hold.amounts)
        costs = (
            {"tokens": self._chance.randint(0, 12)}
            if counts and self._chance.random() < 0.7
            else {}
        )
        settlement = await self._bus.settle(permit, outcome, **costs)
        self.done["settled" if settlement else "stale"] += 1
