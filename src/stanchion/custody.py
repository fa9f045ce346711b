"""Permits in this process's hands: their leases kept alive, and their settlement at the end."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from stanchion.errors import StanchionError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from stanchion.chain import AnyPolicy, Chain
    from stanchion.decisions import Outcome
    from stanchion.heartbeat import Heartbeat
    from stanchion.permit import Permit
    from stanchion.settling import Settler
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")


class Custody:
    """What a guard does with a permit between admission and the end of the work."""

    def __init__(self, chain: Chain, store: Store, settler: Settler, heartbeat: Heartbeat) -> None:
        self._chain = chain
        self._store = store
        self._settler = settler
        self._heartbeat = heartbeat

    def policy(self, name: str) -> AnyPolicy | None:
        """Get a policy by name, None where it is not registered."""
        return self._chain.get(name)

    @asynccontextmanager
    async def hold(self, permit: Permit) -> AsyncGenerator[None]:
        """Keep a permit's leases alive while the context lasts, even if this loop is blocked."""
        self.keep(permit)
        try:
            yield
        finally:
            self.let_go(permit)

    def keep(self, permit: Permit) -> None:
        """Keep a permit's leases alive from now on; `permit.lost` tells when that failed."""
        self._heartbeat.keep(permit, self._settler.parts(permit))

    def let_go(self, permit: Permit) -> None:
        """Keep a permit's leases alive no longer."""
        self._heartbeat.let_go(permit)

    async def renew(self, permit: Permit) -> bool:
        """Lengthen a permit's leases by their full length; False where one had ended already."""
        parts = self._settler.parts(permit)
        if parts and 0 in await self._store.renew(permit.id, parts):
            permit.mark_lost()
        return not permit.lost

    async def conclude(self, permit: Permit, outcomes: Callable[[str], Outcome]) -> None:
        """Settle a guarded block's permit; what goes wrong is reported, never raised."""
        if not permit.holds and not permit.policies:
            return
        try:
            settlement = await self._settler.settle(permit, outcomes, {})
        except StanchionError as error:
            _log.warning("permit %s was not settled; its leases will end it: %s", permit.id, error)
            return
        if not settlement:
            _log.info("permit %s: %s", permit.id, dict(settlement.statuses))

    async def close(self) -> None:
        """Stop keeping leases alive."""
        await self._heartbeat.close()
