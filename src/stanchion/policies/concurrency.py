"""`Concurrency`: so many at once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

from pydantic import StrictInt

from stanchion.decisions import Reason
from stanchion.durations import micros
from stanchion.errors import ConcurrencyLimited, Vetoed
from stanchion.policies.cost import check_fixed_cost, metrics_of
from stanchion.policies.limited import LimitedPolicy
from stanchion.store.keys import Kind

if TYPE_CHECKING:
    from stanchion.policies.cost import Metric


class Concurrency(LimitedPolicy):
    """At most `limit` slots in use at once, for each subject, over all workers.

    Each admission holds its slots under a lease: a holder that dies gives them back when `lease`
    has passed. `cost` is how many slots one event takes, a number or an event field.

    Raises:
        ConfigError: a field that cannot work; the text names it.
    """

    vetoed: ClassVar[type[Vetoed]] = ConcurrencyLimited
    full: ClassVar[Reason] = Reason.NO_FREE_SLOT

    lease: timedelta | float | str = "60s"
    cost: StrictInt | str = 1

    @property
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""
        return Kind.SLOTS

    def metrics(self) -> tuple[Metric, ...]:
        """Get what the cost is made of."""
        return metrics_of(self.owner, self.name, self.cost)

    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it."""
        return {
            "kind": self.kind.script_name,
            "limit": self.limit_of(tier),
            "lease": micros(self.lease, field=f"{self.owner}: lease"),
        }

    def check(self) -> None:
        """Check what goes beyond single fields."""
        self.declaration()
        check_fixed_cost(self.owner, self.metrics(), self.smallest, "limit")
        super().check()
