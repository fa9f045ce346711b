"""Shared state in Redis: one script call for whatever is asked at the same time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from stanchion.errors import ConfigError, StanchionError, StoreUnavailable
from stanchion.store import codec
from stanchion.store.batch import Batcher
from stanchion.store.cancelling import heeded
from stanchion.store.clients import Connections, connect
from stanchion.store.health import warn_of_eviction
from stanchion.store.keys import aux_keys
from stanchion.store.outage import OutageGate
from stanchion.store.protocol import Operation, Part, Reply, Request
from stanchion.store.pubsub import subscription
from stanchion.store.scripts import ScriptName, load_scripts
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from stanchion.decisions import CircuitState
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Message

Answer = TypeVar("Answer")
_log = logging.getLogger("stanchion.store")
UNDO = "undo"
_CLOSED = "the bus is not open: use `async with EventBus.from_url(...)`"
# The server is there but serves no writes now; another node may have taken over.
_TURNED_AWAY = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
# Calls that are no batch, at once: with three batches of each of four kinds they fill the pool.
_SINGLES = 4


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
        self._nonces = itertools.count()
        self._gate = OutageGate()
        self._singles = asyncio.Semaphore(_SINGLES)
        self._connections: Connections | None = None
        self._look: asyncio.Task[None] | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._returning: set[asyncio.Future[Any]] = set()
        self._admissions = Batcher[Request, Reply](
            self._send_admissions,
            deadline=deadline,
            size=batch,
            in_flight=in_flight,
            orphaned=self._orphaned,
        )
        self._peeks = Batcher[Request, Reply](
            self._send_peeks, deadline=deadline, size=batch, in_flight=in_flight
        )
        self._settlements = Batcher[codec.Settlement, tuple[str, ...]](
            self._send_settlements, deadline=deadline, size=batch, in_flight=in_flight
        )
        self._renewals = Batcher[codec.Renewal, tuple[int, ...]](
            self._send_renewals, deadline=deadline, size=batch, in_flight=in_flight
        )

    @property
    def worker(self) -> str:
        """Who this process is to breakers that want several distinct reporters."""
        return self._worker

    def twin(self) -> RedisStore:
        """Get a store for the same place, for use on another event loop; open it there."""
        twin = RedisStore(self._url, self._keyspace, deadline=self._deadline, clock=self._clock)
        if self._connections is None:
            raise StanchionError(_CLOSED)
        twin._again = self._connections.again
        return twin

    async def open(self) -> None:
        """Connect, and start the embedded server where the URL names one.

        A server that does not answer is no error here: every check then says so.
        """
        if self._connections is None:
            if self._again is not None:
                self._connections = self._again()
            else:
                self._connections = await connect(self._target, deadline=self._deadline)
                # Servers of our own making evict nothing.
                if self._target.scheme not in {Scheme.MEMORY, Scheme.EMBEDDED}:
                    look = warn_of_eviction(
                        self._connections, self._keyspace.circuits, patience=self._deadline
                    )
                    self._look = asyncio.create_task(look)
            self._home = (os.getpid(), asyncio.get_running_loop())

    async def close(self) -> None:
        """Finish what is under way, then let go of every connection."""
        if self._connections is None:
            return
        self._open_connections()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        for batcher in (self._admissions, self._peeks):
            await batcher.close()
        if self._returning:
            await asyncio.wait(self._returning, timeout=self._deadline)
        for batcher in (self._settlements, self._renewals):
            await batcher.close()
        connections, self._connections = self._connections, None
        with suppress(RedisError, OSError):
            await connections.close()

    async def admit(self, request: Request) -> Reply:
        """Decide and charge, all policies or none; see `Store.admit`."""
        self._open_connections()
        answer = self._admissions.submit(request)
        try:
            return await answer
        except asyncio.CancelledError:
            # It may have come in the same turn of the loop as the cancellation.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._orphaned(request, answer.result())
            raise

    async def peek(self, request: Request) -> Reply:
        """Say what `admit` would answer now; writes nothing."""
        self._open_connections()
        return await self._peeks.submit(request)

    async def settle(self, permit: str, outcome: str, parts: Sequence[Part]) -> tuple[str, ...]:
        """True up a permit; see `Store.settle`."""
        self._open_connections()
        return await self._settlements.submit((permit, outcome, parts))

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        """Lengthen leases; see `Store.renew`."""
        self._open_connections()
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
        raw = await self._call(
            ScriptName.FORCE, [key, aux, self._keyspace.circuits], [state.value, spec]
        )
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
        raw = await self._single(self._evaluate(ScriptName.INSPECT, [key, *aux_keys(key)], []))
        lines = await self._own(raw, f"key {key}")
        return tuple(line.decode("utf-8", "replace") for line in lines)

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob, each at least once, without blocking the server."""
        walk = aiter(self._open_connections().keys(pattern))
        while (key := await self._single(_next(walk))) is not None:
            yield key

    async def changed_circuits(self) -> Mapping[str, int]:
        """Get the circuits that changed within a day, and when, in microseconds."""
        call = self._open_connections().run("ZRANGE", self._keyspace.circuits, 0, -1, "WITHSCORES")
        rows = cast("list[Any]", await self._single(call))
        if rows and isinstance(rows[0], tuple | list):
            rows = list(itertools.chain.from_iterable(rows))
        return {key.decode(): int(at) for key, at in zip(rows[::2], rows[1::2], strict=True)}

    async def execute(self, *command: str) -> object:
        """Run one plain command, with the deadline and the errors of every other call."""
        return await self._single(self._open_connections().run(*command))

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish; the number of receivers that the server knows of."""
        call = self._open_connections().run("PUBLISH", channel, payload)
        return cast("int", await self._single(call))

    def subscribe(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Get messages until the context ends, across reconnections."""
        connect = self._open_connections().subscriber
        return subscription(connect, channels, patience=self._deadline)

    async def _send_admissions(
        self, requests: Sequence[Request], expires: float
    ) -> Sequence[Reply]:
        keys, args = codec.encode_requests(
            requests, self._keyspace.overrides, self._keyspace.circuits
        )
        return codec.decode_replies(await self._call(ScriptName.ADMIT, keys, args, expires))

    async def _send_peeks(self, requests: Sequence[Request], expires: float) -> Sequence[Reply]:
        keys, args = codec.encode_requests(
            requests, self._keyspace.overrides, self._keyspace.circuits
        )
        return codec.decode_replies(await self._call(ScriptName.PEEK, keys, args, expires))

    async def _send_settlements(
        self, settlements: Sequence[codec.Settlement], expires: float
    ) -> Sequence[tuple[str, ...]]:
        keys, args = codec.encode_settlements(settlements, self._keyspace.circuits)
        return codec.decode_statuses(
            await self._call(ScriptName.SETTLE, keys, [self._worker, *args], expires)
        )

    async def _send_renewals(
        self, renewals: Sequence[codec.Renewal], expires: float
    ) -> Sequence[tuple[int, ...]]:
        keys, args = codec.encode_renewals(renewals)
        return codec.decode_lease_ends(await self._call(ScriptName.RENEW, keys, args, expires))

    async def _call(
        self, name: ScriptName, keys: list[str], args: list[str], expires: float | None = None
    ) -> list[object]:
        """Run a script once; the reply must carry the nonce of this very call."""
        nonce = f"{self._worker}:{next(self._nonces)}"
        channels = (self._keyspace.control, self._keyspace.wake)
        call = self._evaluate(name, keys, [nonce, *channels, *args])
        raw = await (self._single(call) if expires is None else self._guarded(call, expires))
        return await self._own(raw, nonce)

    async def _own(self, raw: object, mark: str) -> list[Any]:
        """Get a reply as a list, if it starts with the mark of the call that it is to answer."""
        if isinstance(raw, list) and raw and cast("list[object]", raw)[0] == mark.encode():
            return cast("list[Any]", raw)
        await self._drop()
        raise StoreUnavailable("a reply belonged to another call; its connection was dropped")

    async def _evaluate(self, name: ScriptName, keys: list[str], args: list[str]) -> object:
        script = self._scripts[name]
        run = self._open_connections().run
        try:
            return await run("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:
            # The one answer that proves that nothing ran, and so the only call that is repeated.
            return await run("EVAL", script.text, len(keys), *keys, *args)

    async def _single(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        """Await a call that is no batch; of these only a few are under way at a time."""
        expires = asyncio.get_running_loop().time() + self._deadline
        try:
            async with asyncio.timeout_at(expires):
                await self._singles.acquire()
        except BaseException as error:
            call.close()
            if isinstance(error, TimeoutError):
                raise StoreUnavailable("too many calls of this process before it") from error
            raise
        try:
            with heeded():
                return await self._guarded(call, expires)
        finally:
            self._singles.release()

    async def _guarded(self, call: Coroutine[Any, Any, Answer], expires: float) -> Answer:
        """Await a client call behind the gate, with the deadline, and errors as our own."""
        try:
            entered = self._gate.enter()
        except StoreUnavailable:
            call.close()
            raise
        try:
            async with asyncio.timeout_at(expires):
                answer = await call
        except ResponseError as error:
            await self._refused(error, entered)
            raise StoreUnavailable(f"Redis refused: {_short(error)}") from error
        except (RedisError, RedisClusterException, OSError) as error:
            text = _short(error) or f"no answer within {self._deadline:g} s"
            self._gate.failed(text, entered)
            raise StoreUnavailable(text) from error
        except BaseException:
            self._gate.abandoned(entered)
            raise
        self._gate.succeeded()
        return answer

    async def _refused(self, error: ResponseError, entered: int) -> None:
        # Older servers wrap the code inside "Error running script", so the text is searched.
        if any(code in str(error) for code in _TURNED_AWAY):
            self._gate.failed(_short(error), entered)
            await self._drop()
        else:
            self._gate.succeeded()

    async def _drop(self) -> None:
        with suppress(RedisError, OSError):
            await self._open_connections().drop()

    def _open_connections(self) -> Connections:
        """Get the connections, in the process and on the loop that they were opened for."""
        if self._home is None or self._connections is None:
            raise StanchionError(_CLOSED)
        pid, loop = self._home
        if pid != os.getpid():
            raise ConfigError("this bus was opened in another process: open one after the fork")
        if loop is not asyncio.get_running_loop():
            raise ConfigError("this bus was opened on another event loop: open one on each loop")
        return self._connections


def parts_of(request: Request, reply: Reply) -> tuple[Part, ...]:
    """Get what an admission took, for giving it back unsettled."""
    taken: list[Part] = []
    for operation, answer in zip(request.operations, reply.operations, strict=True):
        if answer.hold:
            taken.append(
                Part(operation.kind, operation.key, operation.aux, operation.cost, answer.hold)
            )
    return tuple(taken)


async def _next(walk: AsyncIterator[str]) -> str | None:
    return await anext(walk, None)


def _short(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
