"""`Quota`: a budget per window, reserved before and settled after."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StrictInt

from stanchion.decisions import ColdStart, Reason
from stanchion.durations import micros
from stanchion.errors import ConfigError, QuotaExceeded, Vetoed
from stanchion.policies.base import Prefetched
from stanchion.policies.calendar import Unit, windows_around
from stanchion.policies.change import ChangeField, OnChange
from stanchion.policies.cost import check_fixed_cost, metrics_of
from stanchion.policies.fields import either
from stanchion.policies.limited import LARGEST, LimitedPolicy
from stanchion.store.keys import Kind

if TYPE_CHECKING:
    from stanchion.policies.cost import Metric

_LAST_DAY = 31
_MOST_REPLICAS = 100


class Unsettled(StrEnum):
    """What becomes of a reservation whose real cost nobody reported."""

    CHARGE = "charge"
    REFUND = "refund"


class Overage(StrEnum):
    """What becomes of real cost beyond the limit: carried on as debt, or cut off."""

    DEBT = "debt"
    CLIP = "clip"


class Quota(LimitedPolicy):
    """At most `limit` per window, for each subject, over all workers.

    `per` is a duration (windows begin at its multiples since 1970, UTC) or one of hour, day, week,
    month and year in `timezone`; months begin on `anchor_day`, on the last day of a shorter month.
    `limit` is a number, or a mapping over the event field `limit_by` with "*" for all others.
    `rolling=True` counts over the last `per` instead, in `slices`. `cost` is a number, an event
    field, or a mapping of event fields to weights.

    Admission reserves the cost under a `lease`; settling replaces it by the real one, in the window
    in which it was reserved. A reservation whose real cost nobody reported, because the lease ended
    or the work failed, stays charged or is refunded (`unsettled`). Real cost above the limit
    becomes debt that the next window starts with, or is cut off (`overage`). Up to `rollover` of
    what a window left unused is added to the next. When a share in `warn_at` is reached,
    `QuotaThresholdReached` is published once a window.

    With `prefetch`, each process reserves up to so many units ahead in one call and spends them
    without asking again, where every built-in policy of an event does so. Never more is admitted
    than without. What it costs is under-use: a process holds at most twice `prefetch` unspent, for
    no longer than a second after it last spent any, unless the real cost of what it spent is still
    to come, and never past the window; one that is killed leaves it charged. A permit is then
    settled by the process that got it, before the lease ends, which nobody renews then: what is
    settled later stays charged as it was estimated.

    With `replicas`, for what is money, an admission counts only once so many replicas of the server
    have acknowledged the charge; one that they do not acknowledge in time is given back, and is as
    one for which the store could not be asked. Settling does not wait for them.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    vetoed: ClassVar[type[Vetoed]] = QuotaExceeded
    full: ClassVar[Reason] = Reason.QUOTA_EXHAUSTED
    cold_refused: ClassVar[Mapping[ColdStart, str]] = {}

    per: Unit | timedelta | float | str
    cost: StrictInt | str | Mapping[str, StrictInt] = 1
    timezone: str = "UTC"
    anchor_day: StrictInt = Field(default=1, ge=1, le=_LAST_DAY)
    rolling: bool = False
    slices: StrictInt = Field(default=30, ge=10, le=60)
    rollover: StrictInt = Field(default=0, ge=0, le=LARGEST)
    lease: timedelta | float | str = "10m"
    unsettled: Annotated[Unsettled | Literal["charge", "refund"], either(Unsettled)] = (
        Unsettled.CHARGE
    )
    overage: Annotated[Overage | Literal["debt", "clip"], either(Overage)] = Overage.DEBT
    warn_at: tuple[float, ...] = (0.8, 1.0)
    on_change: ChangeField = OnChange.KEEP
    prefetch: StrictInt = Field(default=0, ge=0, le=LARGEST)
    replicas: StrictInt = Field(default=0, ge=0, le=_MOST_REPLICAS)

    @property
    def prefetched(self) -> Prefetched | None:
        """What a process takes ahead; None where every decision asks the store."""
        if not self.prefetch:
            return None
        return Prefetched(
            self.prefetch,
            reserves=True,
            settles=not isinstance(self.cost, int),
            copies=self.copies,
        )

    @property
    def copies(self) -> int:
        """How many replicas must have what it charges before that counts."""
        return self.replicas

    @property
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""
        return Kind.ROLLING if self.rolling else Kind.QUOTA

    @property
    def unit(self) -> Unit | None:
        """The calendar unit of the window, None for a plain duration."""
        try:
            return Unit(self.per) if isinstance(self.per, str) else None
        except ValueError:
            return None

    def share(self, processes: int) -> LimitedPolicy | None:
        """Get the policy with one process's share of limit and rollover; None below a unit."""
        share = super().share(processes)
        update = {"rollover": self.rollover // processes, "prefetch": 0}
        return share and share.model_copy(update=update)

    def metrics(self) -> tuple[Metric, ...]:
        """Get what the cost is made of."""
        return metrics_of(self.owner, self.name, self.cost)

    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it."""
        per = 0 if self.unit else micros(self.per, field=f"{self.owner}: per")
        spec: dict[str, object] = {
            "kind": self.kind.script_name,
            "limit": self.limit_of(tier),
            "per": per,
            "lease": micros(self.lease, field=f"{self.owner}: lease"),
            "unsettled": str(self.unsettled),
            "overage": str(self.overage),
            "warn_at": sorted(self.warn_at),
            "on_change": str(self.on_change),
        }
        if self.rolling:
            spec["slices"] = self.slices
        else:
            spec["rollover"] = self.rollover
        if self.unit:
            # For people who read the key; the windows themselves come with each request.
            spec |= {"unit": self.unit.value, "timezone": self.timezone}
        return spec

    def windows(self, now_us: int) -> tuple[int, ...]:
        """Get the calendar windows around a moment."""
        if self.unit is None:
            return ()
        return windows_around(now_us, self.unit, ZoneInfo(self.timezone), self.anchor_day)

    def check(self) -> None:
        """Check what goes beyond single fields."""
        owner = self.owner
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError.of(
                f"{owner}: timezone", self.timezone, 'expected a name such as "Europe/Berlin"'
            ) from None
        if self.anchor_day != 1 and self.unit is not Unit.MONTH:
            raise ConfigError.of(f"{owner}: anchor_day", self.anchor_day, 'needs per="month"')
        if self.rolling and (self.unit or self.rollover):
            raise ConfigError(f"{owner}: rolling takes a duration for per, and no rollover")
        if self.prefetch and (self.rolling or self.unsettled is Unsettled.REFUND):
            raise ConfigError.of(
                f"{owner}: prefetch", self.prefetch, 'takes no rolling, and unsettled="charge" only'
            )
        if self.replicas and self.unsettled is Unsettled.REFUND:
            # A settlement that a failover forgets would be a refund of all of it.
            raise ConfigError.of(
                f"{owner}: replicas", self.replicas, 'takes unsettled="charge" only'
            )
        if any(not 0 < share <= 1 for share in self.warn_at) or len(set(self.warn_at)) < len(
            self.warn_at
        ):
            raise ConfigError.of(
                f"{owner}: warn_at", self.warn_at, "distinct shares above 0, up to 1"
            )
        self.declaration()
        # A subject without state has nothing saved up, and what is never admitted makes no state.
        check_fixed_cost(owner, self.metrics(), self.smallest, "limit")
        super().check()
