"""`RateLimit`: so much per time, with bursts."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from stanchion.durations import micros
from stanchion.errors import ConfigError, RateLimited, Vetoed
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


_OF_SUMS = {OnChange.SCALE, OnChange.REMAINING}


class RateLimit(LimitedPolicy):
    """At most `limit` per `per`, for each subject, over all workers.

    `limit` is a number, or a mapping over the event field `limit_by` with "*" for all others.
    `burst` (default `limit`; GCRA only) is how much may come at once; in any span of t seconds at
    most burst + limit * t / per is admitted. `cost` is a number or the event field to count.
    `slices` is how finely `SLIDING_WINDOW` divides its window.

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

    @property
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""
        return _KINDS[Algorithm(self.algorithm)]

    def capacity_of(self, tier: str) -> int:
        """Get the most that can be admitted at one moment."""
        return self.limit_of(tier) if self.burst is None else self.burst

    def share(self, processes: int) -> LimitedPolicy | None:
        """Get the policy with one process's share of limit and burst; None for less than a unit."""
        if self.burst is None:
            return super().share(processes)
        share = super().share(processes)
        burst = self.burst // processes
        return share and share.model_copy(update={"burst": burst}) if burst else None

    def metrics(self) -> tuple[Metric, ...]:
        """Get what the cost is made of."""
        return metrics_of(self.owner, self.name, self.cost)

    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it."""
        spec: dict[str, object] = {
            "kind": self.kind.script_name,
            "limit": self.limit_of(tier),
            "per": micros(self.per, field=f"{self.owner}: per"),
            "on_change": str(self.on_change),
        }
        if self.algorithm is Algorithm.GCRA:
            spec["burst"] = self.capacity_of(tier)
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
        self.declaration()
        capacity = self.smallest if self.burst is None else self.burst
        check_fixed_cost(self.owner, self.metrics(), capacity, "burst")
        super().check()
