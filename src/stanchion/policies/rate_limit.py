"""`RateLimit`: so much per time, with bursts."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from stanchion.durations import micros
from stanchion.errors import ConfigError, RateLimited, Vetoed
from stanchion.policies.base import Prefetched
from stanchion.policies.change import ChangeField, OnChange
from stanchion.policies.cost import check_fixed_cost, metrics_of
from stanchion.policies.fields import either
from stanchion.policies.limited import LARGEST, LimitedPolicy
from stanchion.store.keys import Kind

if TYPE_CHECKING:
    from stanchion.policies.cost import Metric


class Algorithm(StrEnum):
    """How a rate is counted.

    `GCRA` spreads admissions evenly after a burst and keeps one number a subject.
    `SLIDING_WINDOW` counts in slices of the window, `SLIDING_LOG` exactly, one entry a request.
    `FIXED_WINDOW` counts between multiples of `per`, so twice the limit can pass at a boundary.
    """

    GCRA = "gcra"
    SLIDING_WINDOW = "sliding_window"
    SLIDING_LOG = "sliding_log"
    FIXED_WINDOW = "fixed_window"


_KINDS = {
    Algorithm.GCRA: Kind.GCRA,
    Algorithm.SLIDING_WINDOW: Kind.SLIDING_WINDOW,
    Algorithm.SLIDING_LOG: Kind.SLIDING_LOG,
    Algorithm.FIXED_WINDOW: Kind.FIXED_WINDOW,
}


_MICROS = 1_000_000
# In less, units would be dead on arrival.
_SHORTEST_LAPSE_US = 10_000
_OF_SUMS = {OnChange.SCALE, OnChange.REMAINING}


class RateLimit(LimitedPolicy):
    """At most `limit` per `per`, for each subject, over all workers.

    `limit` is a number, or a mapping over the event field `limit_by` with "*" for all others.
    `burst` (default `limit`; GCRA only) is how much may come at once; in any span of t seconds at
    most burst + limit * t / per is admitted. `cost` is a number or the event field to count.
    `slices` is how finely `SLIDING_WINDOW` divides its window.

    With `prefetch`, each process takes up to so many units ahead in one call and spends them
    without asking again, where every built-in policy of an event does so. Never more is admitted
    than without, by however many processes, one that is killed included. What it costs is
    under-use: a process holds at most twice `prefetch` unspent, and for no longer than a second
    after it last spent any. Units of GCRA die a lapse after they were asked for, which is a quarter
    of the time that the burst takes to fill up, and a second at most. The burst is smaller by what
    fills up in a lapse, since what is spent in a span t was charged in t + lapse.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    vetoed: ClassVar[type[Vetoed]] = RateLimited

    per: timedelta | float | str
    burst: StrictInt | None = Field(default=None, ge=1, le=LARGEST)
    cost: StrictInt | str = 1
    algorithm: Annotated[
        Algorithm | Literal["gcra", "sliding_window", "sliding_log", "fixed_window"],
        either(Algorithm),
    ] = Algorithm.GCRA
    slices: StrictInt = Field(default=20, ge=10, le=60)
    on_change: ChangeField = OnChange.KEEP
    prefetch: StrictInt = Field(default=0, ge=0, le=LARGEST)

    @property
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""
        return _KINDS[Algorithm(self.algorithm)]

    @property
    def prefetched(self) -> Prefetched | None:
        """What a process takes ahead; None where every decision asks the store."""
        return Prefetched(self.prefetch, self.lapse_us / _MICROS) if self.prefetch else None

    @property
    def lapse_us(self) -> int:
        """Microseconds for which units may be spent after they were asked for; 0: the window's."""
        if not self.prefetch or self.algorithm is not Algorithm.GCRA:
            return 0
        per = micros(self.per, field=f"{self.owner}: per")
        fills_us = (self.smallest if self.burst is None else self.burst) * per // self.largest
        return min(_MICROS, fills_us // 4)

    def capacity_of(self, tier: str) -> int:
        """Get the most that can be admitted at one moment."""
        burst = self.limit_of(tier) if self.burst is None else self.burst
        per = micros(self.per, field=f"{self.owner}: per")
        return burst - -(-self.lapse_us * self.limit_of(tier) // per)

    def share(self, processes: int) -> LimitedPolicy | None:
        """Get the policy with one process's share of limit and burst; None for less than a unit."""
        share = super().share(processes)
        # It lives in the process, where there is nothing to be gained by taking anything ahead.
        update: dict[str, object] = {"prefetch": 0}
        if self.burst is not None:
            update["burst"] = self.burst // processes
        return share and share.model_copy(update=update) if update.get("burst", 1) else None

    def metrics(self) -> tuple[Metric, ...]:
        """Get what the cost is made of."""
        return metrics_of(self.owner, self.name, self.cost)

    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it."""
        spec: dict[str, object] = {
            "kind": self.kind.script_name,
            "limit": self.limit_of(tier),
            "per": micros(self.per, field=f"{self.owner}: per"),
        }
        # Every subject keeps it. Up to 64 bytes long, and so without what goes without saying, it
        # leaves the hash in the server's compact form.
        if self.on_change is not OnChange.KEEP:
            spec["on_change"] = str(self.on_change)
        if self.algorithm is Algorithm.GCRA:
            if self.burst is not None:
                spec["burst"] = self.burst
            if self.lapse_us:
                spec["lapse"] = self.lapse_us
        elif self.algorithm is Algorithm.SLIDING_WINDOW:
            spec["slices"] = self.slices
        return spec

    def check(self) -> None:
        """Check what goes beyond single fields."""
        if self.burst is not None and self.algorithm is not Algorithm.GCRA:
            raise ConfigError.of(f"{self.owner}: burst", self.burst, 'only algorithm="gcra" has it')
        if self.algorithm is Algorithm.SLIDING_LOG and self.on_change in _OF_SUMS:
            raise ConfigError.of(
                f"{self.owner}: on_change",
                str(self.on_change),
                'a sliding_log keeps each entry as it is: expected "keep" or "reset"',
            )
        if self.prefetch:
            self._check_prefetch()
        self.declaration()
        capacity = min(self.capacity_of(tier) for tier in self.tiers)
        check_fixed_cost(self.owner, self.metrics(), capacity, "burst")
        super().check()

    def _check_prefetch(self) -> None:
        field = f"{self.owner}: prefetch"
        if self.algorithm not in {Algorithm.GCRA, Algorithm.FIXED_WINDOW}:
            takers = 'only algorithm="gcra" and "fixed_window" have it'
            raise ConfigError.of(field, self.prefetch, takers)
        if self.algorithm is Algorithm.GCRA and self.lapse_us < _SHORTEST_LAPSE_US:
            raise ConfigError.of(
                field, self.prefetch, "needs a burst that takes 40 ms or longer to fill up"
            )
        if min(self.capacity_of(tier) for tier in self.tiers) < 1:
            raise ConfigError.of(field, self.prefetch, "needs a burst of 2 at least")
