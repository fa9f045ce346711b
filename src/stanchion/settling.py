"""Settling: telling every policy of a permit how the work ended and what it really cost."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.decisions import Outcome
from stanchion.errors import ConfigError
from stanchion.events import Event
from stanchion.policies import Policy, Settling
from stanchion.policies.base import luck
from stanchion.policies.fields import MAX_COST
from stanchion.store.keys import Kind, check_name
from stanchion.store.protocol import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion.chain import Chain
    from stanchion.denials import Denials
    from stanchion.local import LocalShares
    from stanchion.permit import Hold, Permit
    from stanchion.prefetching import Prefetching
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
_SUBJECT = re.compile(r"[A-Za-z0-9._@+=%~:-]{1,1000}")
SETTLED = "settled"
# Subjects whose keys are kept at hand.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of a permit: one status for each policy that held something.

    A status is "settled", "stale" (settled before, lease ended, window or generation gone: nothing
    changed), "state_corrupt", "failed" (a custom policy raised) or "unknown" (a custom policy that
    is not registered here). True when all are settled.
    """

    statuses: Mapping[str, str]

    def __bool__(self) -> bool:
        return all(status == SETTLED for status in self.statuses.values())

    @property
    def stale(self) -> tuple[str, ...]:
        """The policies for which the permit no longer held anything."""
        return tuple(name for name, status in self.statuses.items() if status == "stale")


class Settler:
    """Settles permits of one namespace."""

    def __init__(
        self,
        chain: Chain,
        store: Store,
        local: LocalShares,
        prefetching: Prefetching,
        denials: Denials | None,
        keyspace: Keyspace,
        *,
        deadline: float,
        failed: Callable[[str, Event, BaseException], None],
    ) -> None:
        self._chain = chain
        self._store = store
        self._local = local
        self._prefetching = prefetching
        self._denials = denials
        self._keyspace = keyspace
        self._deadline = deadline
        self._failed = failed
        sharding = keyspace.sharding
        self._shards = 0 if sharding is None else sharding.shards
        self._known: dict[tuple[str, str, str, int], tuple[str, str, str]] = {}

    async def settle(
        self, permit: Permit, outcomes: Callable[[str], Outcome], costs: Mapping[str, int]
    ) -> Settlement:
        """Settle everything that a permit holds; `outcomes` gives the outcome for each policy.

        Raises:
            ConfigError: the permit is of another namespace, or a cost is not one that it counts.
            StoreUnavailable: Redis did not answer; leases will end what is held.
        """
        if permit.namespace != self._keyspace.namespace:
            raise ConfigError.of(
                "permit namespace", permit.namespace, f"this bus is {self._keyspace.namespace!r}"
            )
        permit.check_costs(costs)
        charged = {**permit.charges, **costs}
        statuses: dict[str, str] = {}
        rounds: dict[tuple[Outcome, bool], list[tuple[Hold, Part]]] = {}
        for hold in permit.holds:
            outcome = outcomes(hold.policy)
            part = self._part(hold, charged, outcome)
            if hold.chunk and (part.kind == Kind.QUOTA.script_name or part.actual == hold.reserved):
                # Of what was taken ahead; a rate's hears of a difference, like any other.
                statuses[hold.policy] = await self._prefetching.settle(permit.id, hold, part.actual)
            else:
                rounds.setdefault((outcome, hold.local), []).append((hold, part))
        calls = [
            (self._local.store if local else self._store).settle(
                permit.id, outcome.value, tuple([part for _, part in pairs])
            )
            for (outcome, local), pairs in rounds.items()
        ]
        answered = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        for pairs, answers in zip(rounds.values(), answered, strict=True):
            for (hold, part), answer in zip(pairs, answers, strict=True):
                statuses[hold.policy] = answer
                if self._denials is not None:
                    self._denials.forget(part.key)
        for name in permit.policies:
            statuses[name] = await self._settle_custom(name, permit, outcomes(name), charged)
        return Settlement(statuses)

    def launch(
        self, permit: Permit, outcomes: Callable[[str], Outcome]
    ) -> asyncio.Future[tuple[str, ...]] | None:
        """Settle at once what takes one call, and get the statuses to come; None for the rest.

        Whoever waits for them must not cancel them: what is cancelled may not be sent.
        """
        chosen: Outcome | None = None
        if permit.policies or permit.namespace != self._keyspace.namespace:
            return None
        for hold in permit.holds:
            outcome = outcomes(hold.policy)
            if hold.local or hold.chunk or (chosen is not None and chosen is not outcome):
                return None
            chosen = outcome
        if chosen is None:
            return None
        costs = permit.charges
        parts = tuple([self._part(hold, costs, chosen) for hold in permit.holds])
        if self._denials is not None:
            for part in parts:
                self._denials.forget(part.key)
        return self._store.settling(permit.id, chosen.value, parts)

    def parts(self, permit: Permit) -> tuple[Part, ...]:
        """Get what a permit holds under leases, as their renewal needs it."""
        return tuple(
            self._part(hold, {}, Outcome.NEUTRAL)
            for hold in permit.holds
            if hold.expires_us and not hold.local
        )

    def _part(self, hold: Hold, costs: Mapping[str, int], outcome: Outcome) -> Part:
        key, aux, subjects = self._keys(hold)
        actual, reported = 0, False
        for name, weight, amount in hold.amounts:
            reported = reported or name in costs
            actual += weight * costs.get(name, amount)
        # The scripts count no further; what is over the limit is so by then.
        actual = min(actual, MAX_COST)
        return Part(
            hold.kind,
            key,
            aux,
            hold.reserved,
            hold.numbers,
            actual,
            unknown=not reported and outcome is not Outcome.SUCCESS,
            luck=luck() if hold.kind == Kind.CIRCUIT.script_name else 0,
            subjects=subjects if hold.bounded else "",
        )

    def _keys(self, hold: Hold) -> tuple[str, str, str]:
        named = hold.kind, hold.policy, hold.subject, hold.shard
        keys = self._known.get(named)
        if keys is None:
            kind, policy = Kind.named(hold.kind), check_name("permit policy", hold.policy)
            if not _SUBJECT.fullmatch(hold.subject):
                text = "not one that this library makes"
                raise ConfigError.of("permit subject", hold.subject, text)
            if hold.shard > self._shards:
                text = f"this bus has {self._shards}: is its shard_by the one that admitted this?"
                raise ConfigError.of("permit shard", hold.shard, text)
            space = self._keyspace.at(hold.shard)
            keys = *space.keys(kind, policy, hold.subject), space.subjects(policy)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[named] = keys
        return keys

    async def _settle_custom(
        self, name: str, permit: Permit, outcome: Outcome, costs: Mapping[str, int]
    ) -> str:
        policy = self._chain.get(name)
        if not isinstance(policy, Policy) or not isinstance(policy, Settling):
            return "unknown"
        event = Event.from_cloudevent(dict(permit.event or {}))
        try:
            async with asyncio.timeout(self._deadline):
                await policy.settle(event, outcome, costs)
        except Exception as error:  # noqa: BLE001 - somebody else's code; told, never raised
            _log.warning("policy %s could not settle: %s", name, type(error).__name__)
            self._failed(name, event, error)
            return "failed"
        return SETTLED
