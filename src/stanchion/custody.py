"""Permits in this process's hands: their leases kept alive, and their settlement at the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from stanchion.errors import StanchionError
from stanchion.settling import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stanchion.chain import AnyPolicy, Chain
    from stanchion.decisions import Outcome
    from stanchion.heartbeat import Heartbeat
    from stanchion.permit import Permit
    from stanchion.settling import Settler
    from stanchion.store.protocol import Store

T = TypeVar("T")

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

    def keep(self, permit: Permit) -> None:
        """Keep a permit's leases alive from now on, even if this loop is blocked.

        `permit.lost` tells when that failed.
        """
        if permit.leased:
            self._heartbeat.keep(permit)

    def let_go(self, permit: Permit) -> None:
        """Keep a permit's leases alive no longer."""
        if permit.leased:
            self._heartbeat.let_go(permit)

    async def renew(self, permit: Permit) -> bool:
        """Lengthen a permit's leases by their full length; False where one had ended already."""
        parts = self._settler.parts(permit)
        if parts and 0 in await self._store.renew(permit.id, parts):
            permit.mark_lost()
        return not permit.lost

    async def conclude(self, permit: Permit, outcomes: Callable[[str], Outcome]) -> None:
        """Settle a guarded block's permit, also when this task is cancelled meanwhile.

        What goes wrong is reported, never raised.
        """
        if not permit.holds and not permit.policies:
            return
        statuses: Iterable[str]
        try:
            if (launched := self._settler.launch(permit, outcomes)) is not None:
                statuses = await _outlasting(launched)
            else:
                whole = asyncio.ensure_future(self._settler.settle(permit, outcomes, {}))
                statuses = (await _outlasting(whole)).statuses.values()
        except StanchionError as error:
            _log.warning("permit %s was not settled; its leases will end it: %s", permit.id, error)
            return
        if any(status != SETTLED for status in statuses):
            _log.info("permit %s: %s", permit.id, list(statuses))

    async def close(self) -> None:
        """Stop keeping leases alive."""
        await self._heartbeat.close()


async def _outlasting(work: asyncio.Future[T]) -> T:
    """Get what the work comes to; if this task is cancelled meanwhile, that is for afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
        except StanchionError:
            break
    if cancelled is not None:
        raise cancelled
    return work.result()
