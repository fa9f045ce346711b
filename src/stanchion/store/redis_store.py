"""Shared state in Redis: one script call for whatever is asked at the same time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from stanchion.errors import StoreUnavailable
from stanchion.store import codec
from stanchion.store.calls import Calls
from stanchion.store.carrier import Carrier
from stanchion.store.clients import connect
from stanchion.store.epoch import Act, Epoch
from stanchion.store.greeting import greet
from stanchion.store.health import warn_of_eviction, warn_of_replicas
from stanchion.store.keys import Keyspace, aux_keys
from stanchion.store.protocol import Operation, Part, Reply, Request
from stanchion.store.pubsub import subscription
from stanchion.store.scripts import ScriptName, load_scripts
from stanchion.store.shard import Shard
from stanchion.store.sharding import Sharding
from stanchion.store.shards import Shards
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from stanchion.decisions import CircuitState
    from stanchion.store.clients import Connections
    from stanchion.store.protocol import Message

_log = logging.getLogger("stanchion.store")
UNDO = "undo"


class RedisStore:
    """The `Store` for every URL: memory, embedded, single, cluster and Sentinel."""

    carries: ClassVar[type[Carrier]] = Carrier

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
        self._carrier = self.carries(self._calls, self._scripts, self._worker)
        self._look: asyncio.Task[None] | None = None
        self._copies = 0
        self._shut = ""
        self._returning: set[asyncio.Future[Any]] = set()
        make = partial(
            Shard,
            carrier=self._carrier,
            deadline=deadline,
            batch=batch,
            in_flight=in_flight,
            orphaned=self._orphaned,
        )
        self._shards = Shards(keyspace, make)

    def expect_copies(self, count: int) -> None:
        """Warn, when it opens, if there are fewer replicas than that."""
        self._copies = max(self._copies, count)

    def keep_denials(self, seconds: float) -> None:
        """Have scripts note what they deny, since the caller keeps it for so long at most."""
        self._carrier.keep_us = round(seconds * 1_000_000)

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
            self._look = asyncio.create_task(self._look_over(self._calls.connections))

    async def _look_over(self, connections: Connections) -> None:
        key, patience = self._keyspace.circuits, self._deadline
        await warn_of_eviction(connections, key, patience=patience)
        if self._copies:
            await warn_of_replicas(connections, key, self._copies, patience)

    async def close(self) -> None:
        """Finish what is under way, then let go of every connection."""
        if not self._calls.is_open:
            return
        _ = self._calls.connections
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        await self._shards.decided()
        if self._returning:
            await asyncio.wait(self._returning, timeout=self._deadline)
        await self._shards.settled()
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
        return self._shards.of(request.operations[0].key).ask(request)

    def forsake(self, request: Request, answer: asyncio.Future[Reply]) -> None:
        """Give back what an answer has taken for which nobody waits any more."""
        # Before its answer has come, the batch knows that nobody waits.
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            self._orphaned(request, answer.result())

    async def peek(self, request: Request) -> Reply:
        """Say what `admit` would answer now; writes nothing."""
        self._check_open()
        return await self._shards.of(request.operations[0].key).peeks.submit(request)

    async def settle(self, permit: str, outcome: str, parts: Sequence[Part]) -> tuple[str, ...]:
        """True up a permit; see `Store.settle`."""
        return await self.settling(permit, outcome, parts)

    def settling(
        self, permit: str, outcome: str, parts: Sequence[Part]
    ) -> asyncio.Future[tuple[str, ...]]:
        """True up a permit at once, and get the answer to come; see `Store.settling`."""
        self._check_open()
        return self._settled(permit, outcome, parts)

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        """Lengthen leases; see `Store.renew`."""
        self._check_open()
        return await self._shards.submit(
            parts, lambda shard, some: shard.renewals.submit((permit, some))
        )

    def _settled(
        self, permit: str, outcome: str, parts: Sequence[Part]
    ) -> asyncio.Future[tuple[str, ...]]:
        return self._shards.submit(
            parts, lambda shard, some: shard.settlements.submit((permit, outcome, some))
        )

    async def leave(self, waiter: str, operations: Sequence[Operation]) -> None:
        """Give up a waiter's place in every line, and wake whoever is next."""
        for places in self._shards.apart([operation.key for operation in operations]).values():
            leaving = [operations[place] for place in places]
            keys, args = codec.encode_leaving([(waiter, leaving)])
            await self._call(ScriptName.LEAVE, keys, args)

    def give_back(self, permit: str, parts: Sequence[Part]) -> asyncio.Future[tuple[str, ...]]:
        """Undo an admission in the background; what cannot be undone ends with its lease."""
        answer = self._settled(permit, UNDO, parts)
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

    async def force(
        self, key: str, aux: str, state: CircuitState, spec: str, indexed: str = ""
    ) -> str:
        """Put a circuit into a state everywhere; the state it was in before."""
        space = self._shards.of(key).space
        keys = [key, aux, space.circuits, space.denied, *_index(space, indexed)]
        raw = await self._call(ScriptName.FORCE, keys, [state.value, spec])
        return cast("list[bytes]", raw[3])[0].decode()

    async def override(self, key: str, fields: Mapping[str, int] | None) -> None:
        """Give one subject a limit of its own, None to take it away; in force at once."""
        text = "" if fields is None else json.dumps(fields, separators=(",", ":"))
        await self._call(ScriptName.OVERRIDE, [self._shards.of(key).space.overrides, key], [text])

    async def sync(
        self,
        key: str,
        aux: str,
        specs: Sequence[str],
        figures: Mapping[str, int],
        windows: tuple[int, ...],
        *,
        cold: bool = False,
        indexed: str = "",
    ) -> tuple[bool | None, int]:
        """Tighten one subject's state to a provider's own figures; see `Store.sync`."""
        space = self._shards.of(key).space
        keys = [key, aux, space.overrides]
        asked: list[object] = [figures, windows]
        if cold:
            name, known = self._carrier.known(space)
            keys.append(name)
            asked.append((len(keys), known))
        keys += _index(space, indexed)
        raw = await self._call(ScriptName.SYNC, keys, [json.dumps(asked), *specs])
        changed = cast("list[int]", raw[3])[0]
        return (None if changed < 0 else changed == 1), cast("int", raw[1])

    async def reset(self, keys: Sequence[tuple[str, str]], indexed: str = "") -> int:
        """Forget subjects; how many had state. At most 500 of a shard go in one atomic call."""
        count = 0
        for places in self._shards.apart([key for key, _ in keys]).values():
            space = self._shards.of(keys[places[0]][0]).space
            index = _index(space, indexed)
            for first in range(0, len(places), 500):
                pairs = [keys[place] for place in places[first : first + 500]]
                names = [space.circuits, *itertools.chain.from_iterable(pairs), *index]
                raw = await self._call(ScriptName.RESET, names, [])
                count += cast("list[int]", raw[3])[0]
        return count

    async def inspect(self, key: str) -> tuple[str, ...]:
        """Describe one key as "name value" lines."""
        script, keys = self._scripts.get(ScriptName.INSPECT), [key, *aux_keys(key)]
        raw = await self._calls.single(self._calls.evaluate(script, keys, []), key)
        lines = await self._calls.own(raw, f"key {key}")
        return tuple(line.decode("utf-8", "replace") for line in lines)

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob, each at least once, without blocking the server."""
        walk = aiter(self._calls.connections.keys(pattern))
        while (key := await self._calls.single(_next(walk), pattern)) is not None:
            yield key

    async def changed_circuits(self) -> Mapping[str, int]:
        """Get the circuits that changed within a day, and when, in microseconds."""
        found: dict[str, int] = {}
        for space in (await self.spread()).everywhere:
            call = self._calls.connections.run("ZRANGE", space.circuits, 0, -1, "WITHSCORES")
            rows = cast("list[Any]", await self._calls.single(call, space.circuits))
            if rows and isinstance(rows[0], tuple | list):
                rows = list(itertools.chain.from_iterable(rows))
            pairs = zip(rows[::2], rows[1::2], strict=True)
            found |= {key.decode(): int(at) for key, at in pairs}
        return found

    async def spread(self) -> Keyspace:
        """Get the names of the namespace as its processes spread it, for whoever was not told."""
        if self._keyspace.sharding is not None:
            return self._keyspace
        key = self._keyspace.epoch
        call = self._calls.connections.run("HGET", key, "spread")
        told = cast("bytes | None", await self._calls.single(call, key))
        return Keyspace(self._keyspace.namespace, Sharding.parse((told or b"").decode()))

    @property
    def tags(self) -> tuple[str, ...]:
        """The hash tags that this process has asked for, the namespace's own first."""
        return self._shards.tags

    def shut(self, reason: str) -> None:
        """Refuse whatever is asked from now on, for a reason; with none, refuse it no longer."""
        self._shut = reason

    async def epoch(self, tag: str, act: Act = Act.GREET, spread: str = "") -> Epoch:
        """Find out which life of the state under a tag this is; see `Store.epoch`."""
        key, known = self._carrier.known(self._keyspace.under(tag))
        script = self._scripts.get(ScriptName.EPOCH)
        epoch = await greet(self._calls, script, key, tag, known, act, spread)
        self._carrier.epochs[tag] = epoch.id
        return epoch

    async def execute(self, *command: str) -> object:
        """Run one plain command, with the deadline and the errors of every other call."""
        return await self._calls.single(self._calls.connections.run(*command))

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish; the number of receivers that the server knows of."""
        call = self._calls.connections.run("PUBLISH", channel, payload)
        return cast("int", await self._calls.single(call, channel))

    def subscribe(
        self, *channels: str, lost: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Get messages until the context ends, across reconnections; see `Store.subscribe`."""
        connect = self._calls.connections.subscriber
        return subscription(connect, channels, patience=self._deadline, lost=lost)

    async def _call(self, name: ScriptName, keys: list[str], args: list[str]) -> list[Any]:
        return await self._calls.call(self._scripts.get(name), keys, args)

    def _check_open(self) -> None:
        _ = self._calls.connections
        if self._shut:
            raise StoreUnavailable(self._shut)


def parts_of(request: Request, reply: Reply) -> tuple[Part, ...]:
    """Get what an admission took, for giving it back unsettled."""
    taken: list[Part] = []
    answered = zip(request.operations, reply.operations, strict=True)
    for place, (operation, answer) in enumerate(answered):
        if answer.hold:
            cost = reply.granted if operation.most else operation.cost
            part = Part(
                operation.kind,
                operation.key,
                operation.aux,
                cost,
                answer.hold,
                found=reply.found[place] if reply.found else b"",
                subjects=operation.subjects,
            )
            taken.append(part)
    return tuple(taken)


def _index(space: Keyspace, policy: str) -> list[str]:
    return [space.subjects(policy)] if policy else []


async def _next(walk: AsyncIterator[str]) -> str | None:
    return await anext(walk, None)
