"""What is asked of one hash tag at the same time, on its way in one script call."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from stanchion.store import codec
from stanchion.store.acknowledged import Acknowledged
from stanchion.store.batch import Batcher
from stanchion.store.protocol import Reply, Request

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from stanchion.store.carrier import Carrier
    from stanchion.store.keys import Keyspace

# Bytes of keys and declarations that one call carries, give or take what is short.
_WEIGHT = 64 * 1024
_weigh = attrgetter("weight")


class Shard:
    """The batches of one hash tag; no call has keys of two."""

    __slots__ = (
        *("_acknowledged", "_carrier", "_limits", "_orphaned"),
        *("admissions", "peeks", "renewals", "settlements", "space"),
    )

    def __init__(
        self,
        space: Keyspace,
        carrier: Carrier,
        *,
        deadline: float,
        batch: int,
        in_flight: int,
        orphaned: Callable[[Request, Reply], None],
    ) -> None:
        limits: Any = {"deadline": deadline, "size": batch, "in_flight": in_flight}
        self.space = space
        self._carrier, self._limits, self._orphaned = carrier, limits, orphaned
        self._acknowledged: dict[int, Acknowledged] = {}
        self.admissions = Batcher[Request, Reply](
            partial(carrier.admissions, space),
            weigh=_weigh,
            weight=_WEIGHT,
            orphaned=orphaned,
            **limits,
        )
        self.peeks = Batcher[Request, Reply](
            partial(carrier.peeks, space), weigh=_weigh, weight=_WEIGHT, **limits
        )
        self.settlements = Batcher[codec.Settlement, tuple[str, ...]](
            partial(carrier.settlements, space), **limits
        )
        self.renewals = Batcher[codec.Renewal, tuple[int, ...]](
            partial(carrier.renewals, space), **limits
        )

    def ask(self, request: Request) -> Future[Reply]:
        """Decide and charge, and get the answer to come."""
        # What nothing can take the place of need not be kept anywhere else.
        if not request.copies or not self._carrier.replicated:
            return self.admissions.submit(request)
        acknowledged = self._acknowledged.get(request.copies)
        if acknowledged is None:
            acknowledged = self._acknowledged[request.copies] = Acknowledged(
                request.copies,
                partial(self._carrier.admissions, self.space),
                orphaned=self._orphaned,
                **self._limits,
            )
        return acknowledged.submit(request)

    async def decided(self) -> None:
        """Fail what still waits to be decided, and let what is under way finish."""
        for batches in (self.admissions, self.peeks, *self._acknowledged.values()):
            await batches.close()

    async def settled(self) -> None:
        """Let what is being settled and renewed finish."""
        await self.settlements.close()
        await self.renewals.close()
