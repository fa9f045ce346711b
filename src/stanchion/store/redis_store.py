"""Shared state in Redis: one script call for whatever is asked at the same time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from stanchion.store import codec
from stanchion.store.batch import Batcher
from stanchion.store.calls import Calls
from stanchion.store.clients import connect
from stanchion.store.health import warn_of_eviction
from stanchion.store.keys import aux_keys
from stanchion.store.protocol import Operation, Part, Reply, Request
from stanchion.store.pubsub import subscription
from stanchion.store.scripts import ScriptName, load_scripts
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from stanchion.decisions import CircuitState
    from stanchion.store.clients import Connections
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Message
    from stanchion.store.scripts import Script

_log = logging.getLogger("stanchion.store")
UNDO = "undo"
# Bytes of keys and declarations that one call carries, give or take what is short.
_WEIGHT = 64 * 1024
_weigh = attrgetter("weight")


class RedisStore:
    """The `Store` for every URL: memory, embedded, single, cluster and Sentinel."""

    def __init__(
        self,
        url: str,
        keyspace: Keyspace,
        *,
        deadline: float = 1.0,
        clock: str = "include/clock",
        batch: int = 32,
        in_flight: int = 3,
    ) -> None:
        self._url, self._clock = url, clock
        self._target = parse_url(url)
        self._again: Callable[[], Connections] | None = None
        self._keyspace = keyspace
        self._deadline = deadline
        self._scripts = load_scripts(clock=clock)
        self._worker = secrets.token_hex(6)
        self._calls = Calls(
            worker=self._worker, channels=(keyspace.control, keyspace.wake), deadline=deadline
        )
        self._shared = keyspace.overrides, keyspace.circuits, keyspace.denied
        self._keep_us = 0
        self._look: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Future[Any]] = set()
        limits: Any = {"deadline": deadline, "size": batch, "in_flight": in_flight}
        self._admissions = Batcher[Request, Reply](
            self._launch_admissions,
            weigh=_weigh,
            weight=_WEIGHT,
            orphaned=self._orphaned,
            **limits,
        )
        self._peeks = Batcher[Request, Reply](
            self._launch_peeks, weigh=_weigh, weight=_WEIGHT, **limits
        )
        self._settlements = Batcher[codec.Settlement, tuple[str, ...]](
            self._launch_settlements, **limits
        )
        self._renewals = Batcher[codec.Renewal, tuple[int, ...]](self._launch_renewals, **limits)

    def keep_denials(self, seconds: float) -> None:
        """Have scripts note what they deny, since the caller keeps it for so long at most."""
        self._keep_us = round(seconds * 1_000_000)

    @property
    def worker(self) -> str:
        """Who this process is to breakers that want several distinct reporters."""
        return self._worker

    def twin(self) -> RedisStore:
        """Get a store for the same place, for use on another event loop; open it there."""
        twin = RedisStore(self._url, self._keyspace, deadline=self._deadline, clock=self._clock)
        twin._again = self._calls.again
        return twin

    def beside(self) -> Connections:
        """Get connections to the same place, for work that must not hold up what is decided."""
        return self._calls.again()

    async def open(self) -> None:
        """Connect, and start the embedded server where the URL names one.

        A server that does not answer is no error here: every check then says so.
        """
        if self._calls.is_open:
            return
        if self._again is not None:
            self._calls.open(self._again())
            return
        self._calls.open(await connect(self._target, deadline=self._deadline))
        # Servers of our own making evict nothing.
        if self._target.scheme not in {Scheme.MEMORY, Scheme.EMBEDDED}:
            look = warn_of_eviction(
                self._calls.connections, self._keyspace.circuits, patience=self._deadline
            )
            self._look = asyncio.create_task(look)

    async def close(self) -> None:
        """Finish what is under way, then let go of every connection."""
        if not self._calls.is_open:
            return
        self._check_open()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        for batcher in (self._admissions, self._peeks):
            await batcher.close()
        if self._returning:
            await asyncio.wait(self._returning, timeout=self._deadline)
        for batcher in (self._settlements, self._renewals):
            await batcher.close()
        await self._calls.close()

    async def admit(self, request: Request) -> Reply:
        """Decide and charge, all policies or none; see `Store.admit`."""
        answer = self.asking(request)
        try:
            return await answer
        except asyncio.CancelledError:
            self.forsake(request, answer)
            raise

    def asking(self, request: Request) -> asyncio.Future[Reply]:
        """Decide and charge at once, and get the answer to come; see `Store.asking`."""
        self._check_open()
        return self._admissions.submit(request)

    def forsake(self, request: Request, answer: asyncio.Future[Reply]) -> None:
        """Give back what an answer has taken for which nobody waits any more."""
        # Before its answer has come, the batch knows that nobody waits.
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            self._orphaned(request, answer.result())

    async def peek(self, request: Request) -> Reply:
        """Say what `admit` would answer now; writes nothing."""
        self._check_open()
        return await self._peeks.submit(request)

    async def settle(self, permit: str, outcome: str, parts: Sequence[Part]) -> tuple[str, ...]:
        """True up a permit; see `Store.settle`."""
        return await self.settling(permit, outcome, parts)

    def settling(
        self, permit: str, outcome: str, parts: Sequence[Part]
    ) -> asyncio.Future[tuple[str, ...]]:
        """True up a permit at once, and get the answer to come; see `Store.settling`."""
        self._check_open()
        return self._settlements.submit((permit, outcome, parts))

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        """Lengthen leases; see `Store.renew`."""
        self._check_open()
        return await self._renewals.submit((permit, parts))

    async def leave(self, waiter: str, operations: Sequence[Operation]) -> None:
        """Give up a waiter's place in every line, and wake whoever is next."""
        keys, args = codec.encode_leaving([(waiter, operations)])
        await self._call(ScriptName.LEAVE, keys, args)

    def give_back(self, permit: str, parts: Sequence[Part]) -> asyncio.Future[tuple[str, ...]]:
        """Undo an admission in the background; what cannot be undone ends with its lease."""
        answer = self._settlements.submit((permit, UNDO, parts))
        self._return(answer)
        return answer

    def _return(self, answer: asyncio.Future[Any]) -> None:
        self._returning.add(answer)
        answer.add_done_callback(self._returned)

    def _returned(self, answer: asyncio.Future[Any]) -> None:
        self._returning.discard(answer)
        if not answer.cancelled() and (error := answer.exception()) is not None:
            _log.warning("what nobody holds was not given back, and ends with its lease: %s", error)

    def _orphaned(self, request: Request, reply: Reply) -> None:
        if reply.admitted and (parts := parts_of(request, reply)):
            self.give_back(request.permit, parts)
        elif reply.ticket and request.place is not None:
            leaving = self.leave(request.place.waiter, request.operations)
            self._return(asyncio.create_task(leaving))

    async def force(self, key: str, aux: str, state: CircuitState, spec: str) -> str:
        """Put a circuit into a state everywhere; the state it was in before."""
        keys = [key, aux, self._keyspace.circuits, self._keyspace.denied]
        raw = await self._call(ScriptName.FORCE, keys, [state.value, spec])
        return cast("list[bytes]", raw[3])[0].decode()

    async def override(self, key: str, fields: Mapping[str, int] | None) -> None:
        """Give one subject a limit of its own, None to take it away; in force at once."""
        text = "" if fields is None else json.dumps(fields, separators=(",", ":"))
        await self._call(ScriptName.OVERRIDE, [self._keyspace.overrides, key], [text])

    async def sync(
        self,
        key: str,
        aux: str,
        specs: Sequence[str],
        figures: Mapping[str, int],
        windows: tuple[int, ...],
    ) -> tuple[bool | None, int]:
        """Tighten one subject's state to a provider's own figures; see `Store.sync`."""
        keys = [key, aux, self._keyspace.overrides]
        raw = await self._call(ScriptName.SYNC, keys, [json.dumps([figures, windows]), *specs])
        changed = cast("list[int]", raw[3])[0]
        return (None if changed < 0 else changed == 1), cast("int", raw[1])

    async def reset(self, keys: Sequence[tuple[str, str]]) -> int:
        """Forget subjects; how many had state. At most 500 go in one atomic call."""
        count = 0
        for first in range(0, len(keys), 500):
            pairs = itertools.chain.from_iterable(keys[first : first + 500])
            names = [self._keyspace.circuits, *pairs]
            raw = await self._call(ScriptName.RESET, names, [])
            count += cast("list[int]", raw[3])[0]
        return count

    async def inspect(self, key: str) -> tuple[str, ...]:
        """Describe one key as "name value" lines."""
        script, keys = self._scripts.get(ScriptName.INSPECT), [key, *aux_keys(key)]
        raw = await self._calls.single(self._calls.evaluate(script, keys, []))
        lines = await self._calls.own(raw, f"key {key}")
        return tuple(line.decode("utf-8", "replace") for line in lines)

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob, each at least once, without blocking the server."""
        walk = aiter(self._calls.connections.keys(pattern))
        while (key := await self._calls.single(_next(walk))) is not None:
            yield key

    async def changed_circuits(self) -> Mapping[str, int]:
        """Get the circuits that changed within a day, and when, in microseconds."""
        call = self._calls.connections.run("ZRANGE", self._keyspace.circuits, 0, -1, "WITHSCORES")
        rows = cast("list[Any]", await self._calls.single(call))
        if rows and isinstance(rows[0], tuple | list):
            rows = list(itertools.chain.from_iterable(rows))
        return {key.decode(): int(at) for key, at in zip(rows[::2], rows[1::2], strict=True)}

    async def execute(self, *command: str) -> object:
        """Run one plain command, with the deadline and the errors of every other call."""
        return await self._calls.single(self._calls.connections.run(*command))

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish; the number of receivers that the server knows of."""
        call = self._calls.connections.run("PUBLISH", channel, payload)
        return cast("int", await self._calls.single(call))

    def subscribe(
        self, *channels: str, lost: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Get messages until the context ends, across reconnections; see `Store.subscribe`."""
        connect = self._calls.connections.subscriber
        return subscription(connect, channels, patience=self._deadline, lost=lost)

    def _launch_admissions(
        self,
        requests: Sequence[Request],
        landed: Callable[[Sequence[Reply]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        keys, args, kinds = codec.encode_requests(requests, self._shared, self._keep_us)
        script = self._scripts.get(ScriptName.ADMIT, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_replies(raw)), failed
        )

    def _launch_peeks(
        self,
        requests: Sequence[Request],
        landed: Callable[[Sequence[Reply]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        keys, args, kinds = codec.encode_requests(requests, self._shared)
        script = self._scripts.get(ScriptName.PEEK, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_replies(raw)), failed
        )

    def _launch_settlements(
        self,
        settlements: Sequence[codec.Settlement],
        landed: Callable[[Sequence[tuple[str, ...]]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        keys, args, kinds = codec.encode_settlements(settlements, self._shared[1:])
        script = self._scripts.get(ScriptName.SETTLE, kinds)
        args.insert(0, self._worker)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_statuses(raw)), failed
        )

    def _launch_renewals(
        self,
        renewals: Sequence[codec.Renewal],
        landed: Callable[[Sequence[tuple[int, ...]]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        keys, args, kinds = codec.encode_renewals(renewals)
        script = self._scripts.get(ScriptName.RENEW, kinds)
        return self._launch(
            script, keys, args, lambda raw: landed(codec.decode_lease_ends(raw)), failed
        )

    def _launch(
        self,
        script: Script,
        keys: list[str],
        args: list[str],
        answered: Callable[[list[Any]], None],
        failed: Callable[[BaseException], None],
    ) -> Callable[[], None]:
        return self._calls.launch(script, keys, args, answered, failed)

    async def _call(self, name: ScriptName, keys: list[str], args: list[str]) -> list[Any]:
        return await self._calls.call(self._scripts.get(name), keys, args)

    def _check_open(self) -> None:
        _ = self._calls.connections


def parts_of(request: Request, reply: Reply) -> tuple[Part, ...]:
    """Get what an admission took, for giving it back unsettled."""
    taken: list[Part] = []
    for operation, answer in zip(request.operations, reply.operations, strict=True):
        if answer.hold:
            cost = reply.granted if operation.most else operation.cost
            taken.append(Part(operation.kind, operation.key, operation.aux, cost, answer.hold))
    return tuple(taken)


async def _next(walk: AsyncIterator[str]) -> str | None:
    return await anext(walk, None)
