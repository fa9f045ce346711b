"""Changing shared state by hand: reset, force, override a limit, take a provider's figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stanchion.decisions import CircuitState, ColdStart
from stanchion.durations import micros
from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.policies import Binding, BuiltInPolicy, CircuitBreaker, Concurrency, LimitedPolicy
from stanchion.policies.fields import cost_number, subject_text
from stanchion.policies.limited import DEFAULT
from stanchion.store.keys import part_of, subject_of, tag_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.chain import Chain
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

UNKNOWN = -1


class Administration:
    """Acts on the stored state of the built-in policies of a chain, one subject at a time."""

    def __init__(self, chain: Chain, store: Store, keyspace: Keyspace) -> None:
        self._chain = chain
        self._store = store
        self._keyspace = keyspace

    async def reset(self, name: str, by: Mapping[str, object]) -> int:
        """Forget what the subjects with these values have used; how many had state."""
        policy = self._built_in(name, by)
        wanted = self._texts(policy, by)
        if len(by) == len(policy.fields):
            return await self._store.reset([self._keys(policy, by)], policy.indexed)
        if policy.private and by:
            raise ConfigError(
                f"reset: {policy.owner} is private, so its keys do not tell {sorted(by)}: give all "
                f"of {policy.fields}, or none for every subject"
            )
        # As they stand in keys: normalised, escaped, and shortened where they are long.
        parts = {policy.fields.index(field): part_of(value) for field, value in wanted.items()}
        found: dict[tuple[str, str], None] = {}
        for pattern in self._keyspace.patterns(policy.kind.family, name):
            async for key in self._store.keys(pattern):
                subject = key.partition(f"}}:{policy.kind.family}:{name}:")[2]
                stored = subject.split(":")
                # Of one with other fields, declared under this name before, they say nothing.
                alike = len(stored) == len(policy.fields)
                if not parts or (alike and all(stored[at] == part for at, part in parts.items())):
                    space = self._keyspace.under(tag_of(key))
                    found[space.keys(policy.kind, name, subject)] = None
        return await self._store.reset(list(found), policy.indexed) if found else 0

    async def force(self, name: str, state: CircuitState, by: Mapping[str, object]) -> CircuitState:
        """Put a circuit into a state; the one that it was in."""
        policy = self._built_in(name, by)
        if not isinstance(policy, CircuitBreaker):
            raise ConfigError.of("policy name", name, "expected a CircuitBreaker")
        key, aux = self._keys(policy, by)
        try:
            wanted = CircuitState(state)
        except ValueError:
            accepted = [known.value for known in CircuitState]
            raise ConfigError.of("state", state, f"expected one of {accepted}") from None
        spec = Binding.declared(policy)
        return CircuitState(await self._store.force(key, aux, wanted, spec, policy.indexed))

    async def override(self, name: str, limit: int | None, by: Mapping[str, object]) -> None:
        """Give one subject a limit of its own, None to take it away."""
        policy = self._limited(name, by)
        key, _ = self._keys(policy, by)
        await self._store.override(key, None if limit is None else policy.override(limit))

    async def sync(
        self,
        name: str,
        remaining: int | None,
        reset_after: float | None,
        retry_after: float | None,
        by: Mapping[str, object],
    ) -> bool:
        """Tighten one subject's state to a provider's figures; whether that changed it."""
        policy = self._limited(name, by)
        if isinstance(policy, Concurrency):
            raise ConfigError.of("policy name", name, "expected a RateLimit or a Quota")
        figures = {
            "remaining": UNKNOWN
            if remaining is None
            else cost_number("sync", "remaining", remaining),
            "reset_us": _micros("reset_after", reset_after),
            "retry_us": _micros("retry_after", retry_after),
        }
        key, aux = self._keys(policy, by)
        specs = [Binding.declared(policy, tier) for tier in self._tiers(policy, by)]
        now_us = time.time_ns() // 1000
        for _ in range(2):
            windows = policy.windows(now_us)
            changed, now_us = await self._store.sync(
                *(key, aux, specs, figures, windows),
                cold=policy.cold_start is not ColdStart.FRESH,
                indexed=policy.indexed,
            )
            if changed is not None:
                return changed
        # Our clock named other windows than the server's does, and then the server's own did too.
        raise StoreUnavailable("the server's time jumped between two calls")

    def _built_in(self, name: str, by: Mapping[str, object]) -> BuiltInPolicy:
        policy = self._chain.get(name)
        if not isinstance(policy, BuiltInPolicy):
            known = [p.name for p in self._chain.policies if isinstance(p, BuiltInPolicy)]
            raise ConfigError.of("policy name", name, f"expected one of {known}")
        unknown = sorted(by.keys() - set(policy.fields))
        if unknown:
            raise ConfigError.of(f"{policy.owner}: by", unknown[0], f"expected of {policy.fields}")
        return policy

    def _limited(self, name: str, by: Mapping[str, object]) -> LimitedPolicy:
        policy = self._built_in(name, by)
        if not isinstance(policy, LimitedPolicy):
            raise ConfigError.of("policy name", name, "expected a policy with a limit")
        return policy

    def _tiers(self, policy: LimitedPolicy, by: Mapping[str, object]) -> list[str]:
        """Get the limits that a subject may have, the likeliest first."""
        field = policy.tier_field
        if field is not None and field in by:
            named = self._texts(policy, by)[field]
            return [named if named in policy.tiers else DEFAULT]
        return [DEFAULT, *(tier for tier in policy.tiers if tier != DEFAULT)]

    def _keys(self, policy: BuiltInPolicy, by: Mapping[str, object]) -> tuple[str, str]:
        missing = [field for field in policy.fields if field not in by]
        if missing:
            raise ConfigError(f"{policy.owner} counts by {policy.fields}: give {missing} too")
        named = self._texts(policy, by)
        texts = [named[field] for field in policy.fields]
        space = self._keyspace.of(policy.fields, texts)
        subject = subject_of(texts, private=policy.private)
        return space.keys(policy.kind, policy.name, subject)

    @staticmethod
    def _texts(policy: BuiltInPolicy, by: Mapping[str, object]) -> dict[str, str | None]:
        private = policy.private
        return {
            field: subject_text(policy.owner, field, value, private=private)
            for field, value in by.items()
        }


def _micros(field: str, value: float | None) -> int:
    if value is None:
        return UNKNOWN
    return 0 if value == 0 else micros(value, field=field)
