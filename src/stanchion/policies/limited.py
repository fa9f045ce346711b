"""Limits that are numbers: one for all subjects, or by an event field such as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import StrictInt, ValidationInfo, field_validator

from stanchion.decisions import ColdStart
from stanchion.errors import ConfigError
from stanchion.policies.base import BuiltInPolicy

DEFAULT = "*"
LARGEST = 2**52


class LimitedPolicy(BuiltInPolicy):
    """A policy whose `limit` is a number, or a mapping over the event field `limit_by`.

    A mapping such as `{"free": 60, "pro": 600, "*": 30}` has a limit for each value of the field,
    and "*" for all others.
    """

    limit: StrictInt | Mapping[str, StrictInt]
    limit_by: str | None = None

    @field_validator("limit")
    @classmethod
    def _positive(cls, limit: int | Mapping[str, int]) -> int | Mapping[str, int]:
        each = limit.items() if isinstance(limit, Mapping) else [("", limit)]
        for tier, number in each:
            if not 1 <= number <= LARGEST:
                name = f"limit[{tier!r}]" if tier else "limit"
                raise ConfigError.of(f"{cls.__name__}: {name}", number, "expected from 1 to 2^52")
        return limit

    @field_validator("limit_by")
    @classmethod
    def _complete(cls, limit_by: str | None, info: ValidationInfo) -> str | None:
        owner, limit = f"{cls.__name__} {info.data.get('name')!r}", info.data.get("limit")
        if isinstance(limit, Mapping):
            if DEFAULT not in limit or limit_by is None:
                raise ConfigError.of(
                    f"{owner}: limit",
                    dict(cast("Mapping[str, int]", limit)),
                    'a mapping needs limit_by="<event field>", and a limit for "*": all others',
                )
        elif limit is not None and limit_by is not None:
            raise ConfigError.of(f"{owner}: limit_by", limit_by, "needs a mapping limit")
        return limit_by

    @property
    def tier_field(self) -> str | None:
        """The event field that chooses the limit, None where there is one for all."""
        return self.limit_by

    @property
    def tiers(self) -> tuple[str, ...]:
        """The values of that field that have a limit of their own, the default included."""
        return tuple(self.limit) if isinstance(self.limit, Mapping) else (DEFAULT,)

    @property
    def smallest(self) -> int:
        """The smallest of its limits."""
        return min(self.limit.values()) if isinstance(self.limit, Mapping) else self.limit

    @property
    def largest(self) -> int:
        """The largest of its limits."""
        return max(self.limit.values()) if isinstance(self.limit, Mapping) else self.limit

    def limit_of(self, tier: str) -> int:
        """Get the limit for a value of the field."""
        if isinstance(self.limit, Mapping):
            return self.limit.get(tier, self.limit[DEFAULT])
        return self.limit

    def capacity_of(self, tier: str) -> int:
        """Get the most that can be admitted at one moment."""
        return self.limit_of(tier)

    def share(self, processes: int) -> LimitedPolicy | None:
        """Get the policy with one process's share of each limit; None for less than a unit."""
        if isinstance(self.limit, Mapping):
            limit: int | Mapping[str, int] = {
                tier: number // processes for tier, number in self.limit.items()
            }
        else:
            limit = self.limit // processes
        if self.smallest // processes < 1:
            return None
        # What a process keeps by itself ends with it: there is nothing to come back to.
        return self.model_copy(update={"limit": limit, "cold_start": ColdStart.FRESH})

    def override(self, limit: int) -> dict[str, int]:
        """Get what replaces the declaration where a subject has a limit of its own.

        Raises:
            ConfigError: the limit is not a whole number from 1.
        """
        if type(limit) is not int or not 1 <= limit <= LARGEST:
            raise ConfigError.of(f"{self.owner}: limit", limit, "expected from 1 to 2^52")
        return {"limit": limit}
