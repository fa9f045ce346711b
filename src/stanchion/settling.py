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
from stanchion.store.keys import Kind
from stanchion.store.protocol import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion.chain import Chain
    from stanchion.local import LocalShares
    from stanchion.permit import Hold, Permit
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
_SUBJECT = re.compile(r"[A-Za-z0-9._@+=%~:-]{1,1000}")
SETTLED = "settled"


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
        keyspace: Keyspace,
        *,
        deadline: float,
        failed: Callable[[str, Event, BaseException], None],
    ) -> None:
        self._chain = chain
        self._store = store
        self._local = local
        self._keyspace = keyspace
        self._deadline = deadline
        self._failed = failed

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
        rounds: dict[tuple[Outcome, bool], list[Hold]] = {}
        for hold in permit.holds:
            rounds.setdefault((outcomes(hold.policy), hold.local), []).append(hold)
        calls = [
            (self._local.store if local else self._store).settle(
                permit.id, outcome.value, tuple(self._part(h, charged, outcome) for h in holds)
            )
            for (outcome, local), holds in rounds.items()
        ]
        for holds, answers in zip(rounds.values(), await asyncio.gather(*calls), strict=True):
            statuses |= {h.policy: answer for h, answer in zip(holds, answers, strict=True)}
        for name in permit.policies:
            statuses[name] = await self._settle_custom(name, permit, outcomes(name), charged)
        return Settlement(statuses)

    def parts(self, permit: Permit) -> tuple[Part, ...]:
        """Get what a permit holds under leases, as their renewal needs it."""
        return tuple(
            self._part(hold, {}, Outcome.NEUTRAL)
            for hold in permit.holds
            if hold.expires_us and not hold.local
        )

    def _part(self, hold: Hold, costs: Mapping[str, int], outcome: Outcome) -> Part:
        kind = Kind.named(hold.kind)
        if not _SUBJECT.fullmatch(hold.subject):
            raise ConfigError.of("permit subject", hold.subject, "not one that this library makes")
        key, aux = self._keyspace.keys(kind, hold.policy, hold.subject)
        reported = any(name in costs for name, _, _ in hold.amounts)
        return Part(
            hold.kind,
            key,
            aux,
            hold.reserved,
            hold.numbers,
            actual=sum(weight * costs.get(name, amount) for name, weight, amount in hold.amounts),
            unknown=not reported and outcome is not Outcome.SUCCESS,
            luck=luck(),
        )

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
