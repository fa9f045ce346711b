"""Deciding alone while the shared state cannot be asked: each process within its own share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stanchion.decisions import OnOutage
from stanchion.errors import ConfigError
from stanchion.policies import Binding, BuiltInPolicy
from stanchion.policies.binding import estimates
from stanchion.store.protocol import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.events import Event
    from stanchion.policies.binding import Asked
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Reply, Store
    from stanchion.store.redis_store import RedisStore


class LocalShares:
    """Policies with `on_outage="local"`, asked in this process with 1/processes of their limits.

    The same scripts decide, on state of this process alone. It is kept until the bus closes, so an
    outage that comes and goes hands out no share twice.
    """

    def __init__(self, keyspace: Keyspace, processes: int | None, *, deadline: float) -> None:
        if processes is not None and (type(processes) is not int or processes < 1):
            raise ConfigError.of("processes", processes, "expected a whole number from 1")
        self._keyspace = keyspace
        self._processes = processes
        self._deadline = deadline
        self._made: RedisStore | None = None
        self._wanted = False
        self._opening = asyncio.Lock()
        self._bindings: dict[tuple[int, type[Event]], tuple[BuiltInPolicy, Binding | None]] = {}

    @property
    def store(self) -> Store:
        """Where what was admitted locally is settled."""
        return self._own

    @property
    def _own(self) -> RedisStore:
        if self._made is None:
            from stanchion.store.redis_store import RedisStore

            self._made = RedisStore("memory://", self._keyspace, deadline=self._deadline)
        return self._made

    def check(self, policy: object) -> None:
        """Check that a policy's share is known, or raise ConfigError."""
        if not isinstance(policy, BuiltInPolicy) or policy.on_outage is not OnOutage.LOCAL:
            return
        if self._processes is None:
            raise ConfigError(
                f'{policy.owner}: on_outage="local" shares the limit out among processes: say how '
                "many with EventBus.from_url(..., processes=N)"
            )
        self._wanted = True

    async def open(self) -> None:
        """Get ready, if any policy may ask: what it takes the first time nobody is to wait for."""
        if self._wanted:
            async with self._opening:
                await self._own.open()

    async def ask(
        self,
        run: Sequence[Binding],
        event: Event,
        permit: str,
        now_us: int,
        *,
        charge: bool,
    ) -> tuple[Sequence[Asked], Reply] | None:
        """Ask the shares of these policies together; None where one of them is below one unit."""
        async with self._opening:
            await self._own.open()
        bound = [self._share(binding.policy, type(event)) for binding in run]
        shares = [binding for binding in bound if binding is not None]
        if len(shares) < len(bound):
            return None
        caps = estimates(shares, event)
        asked = [binding.ask(event, now_us, caps) for binding in shares]
        request = Request(permit, tuple(one.operation for one in asked))
        return asked, await (self._own.admit(request) if charge else self._own.peek(request))

    async def close(self) -> None:
        """Forget what was used."""
        if self._made is not None:
            await self._made.close()

    def _share(self, policy: BuiltInPolicy, event_class: type[Event]) -> Binding | None:
        # A policy that holds a mapping has no hash; kept here, nothing else gets its identity.
        key = id(policy), event_class
        if key not in self._bindings:
            share = policy.share(self._processes or 1)
            bound = share and Binding(share, event_class, self._keyspace)
            self._bindings[key] = policy, bound
        return self._bindings[key][1]
