"""What an event costs a policy: a number, a field of the event, or several with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stanchion.errors import ConfigError
from stanchion.policies.fields import cost_number

Cost = int | str | Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Metric:
    """One part of a cost: the event field it is estimated from (or none), and its weight."""

    name: str
    weight: int = 1
    amount: int | None = None


def metrics_of(owner: str, name: str, cost: Cost) -> tuple[Metric, ...]:
    """Get the metrics of a declared cost; a plain number counts under the policy's `name`.

    Raises:
        ConfigError: a number or weight that is negative or not whole, or no metric at all.
    """
    if isinstance(cost, str):
        return (Metric(cost),)
    if isinstance(cost, int):
        return (Metric(name, 1, cost_number(owner, "cost", cost)),)
    if not cost:
        raise ConfigError.of(f"{owner}: cost", cost, "expected at least one metric")
    return tuple(
        Metric(metric, cost_number(owner, f"{metric} weight", weight))
        for metric, weight in cost.items()
    )


def check_fixed_cost(owner: str, metrics: tuple[Metric, ...], most: int, what: str) -> None:
    """Check that a cost that is the same for every event can ever be admitted.

    Raises:
        ConfigError: it is above `most`, which is the policy's `what`.
    """
    if all(metric.amount is not None for metric in metrics):
        total = sum(metric.weight * (metric.amount or 0) for metric in metrics)
        if total > most:
            raise ConfigError.of(
                f"{owner}: cost", total, f"above the {what} of {most}: never admitted"
            )
