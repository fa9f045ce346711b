"""One script call: sent once, checked to be answered to the right caller, errors as our own."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from stanchion.errors import ConfigError, StanchionError, StoreUnavailable
from stanchion.store.aside import Aside
from stanchion.store.awaited import is_answer
from stanchion.store.cancelling import heeded
from stanchion.store.flight import Flight, short, turned_away
from stanchion.store.lane import Lane
from stanchion.store.outage import OutageGate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from stanchion.store.awaited import Awaited
    from stanchion.store.clients import Connections
    from stanchion.store.flight import Answered, Failed
    from stanchion.store.lane import Dialled, Word
    from stanchion.store.scripts import Script

Answer = TypeVar("Answer")
_CLOSED = "the bus is not open: use `async with EventBus.from_url(...)`"
_POISONED = "a reply belonged to another call; its connection was dropped"
# Calls that are no batch, at once, each on a connection of the pool.
_SINGLES = 4
# Calls that are batches, at once on the connections to one node. Together they are the pool.
_BATCHES = 12


class Calls:
    """The calls of one process on one event loop, behind an outage gate for each node.

    Batches are launched on the lane, where there is one, and else through the client like single
    calls. Every reply must carry the nonce of its call.
    """

    def __init__(self, *, worker: str, channels: Sequence[str], deadline: float) -> None:
        self._worker = worker
        self._channels = tuple(channels)
        self._deadline = deadline
        self._nonces = itertools.count()
        # One for each node: of a cluster some may be away.
        self._gates: defaultdict[str, OutageGate] = defaultdict(OutageGate)
        self._berths = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(_BATCHES))
        self._singles = asyncio.Semaphore(_SINGLES)
        self._connections: Connections | None = None
        self._aside: Aside | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._lane: Lane | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._boarding: list[Flight] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    # -------------------------------------------------------------------------- connections

    def open(self, connections: Connections) -> None:
        """Use these connections, in this process and on this loop."""
        self._connections = connections
        self._home = (os.getpid(), asyncio.get_running_loop())

    @property
    def is_open(self) -> bool:
        """Whether there are connections."""
        return self._connections is not None

    @property
    def again(self) -> Callable[[], Connections]:
        """What makes connections to the same place, for another event loop."""
        if self._connections is None:
            raise StanchionError(_CLOSED)
        return self._connections.again

    @property
    def connections(self) -> Connections:
        """The connections, in the process and on the loop that they were opened for."""
        if self._home is None or self._connections is None:
            raise StanchionError(_CLOSED)
        pid, loop = self._home
        if pid != os.getpid():
            raise ConfigError("this bus was opened in another process: open one after the fork")
        if loop is not asyncio.get_running_loop():
            raise ConfigError("this bus was opened on another event loop: open one on each loop")
        return self._connections

    async def close(self) -> None:
        """Let go of every connection."""
        connections, self._connections = self._connections, None
        aside, self._aside = self._aside, None
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait([self._dialling])
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._lane is not None:
            self._lane.abort("the bus was closed")
        if aside is not None:
            await aside.close()
        if connections is not None:
            with suppress(RedisError, OSError):
                await connections.close()

    async def drop(self) -> None:
        """Disconnect everything, so that the next call starts on fresh connections."""
        if self._lane is not None:
            self._lane.abort("the connection was dropped")
        if self._aside is not None:
            await self._aside.drop()
        with suppress(RedisError, OSError):
            await self.connections.drop()

    # ------------------------------------------------------------------------------ batches

    def launch(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[str],
        answered: Answered,
        failed: Failed,
        awaited: Awaited | None = None,
    ) -> Callable[[], None]:
        """Send a call now, and get what gives it up; one of the two is told what came of it.

        With `awaited`, replicas are waited for behind it, on a connection where no other call has
        to wait for them as well.
        """
        connections = self.connections
        nonce = f"{self._worker}:{next(self._nonces)}"
        words = (len(keys), *keys, nonce, *self._channels, *args)
        node = connections.node_of(keys[0])
        gate = self._gates[node]
        flight = Flight(self, gate, script, words, nonce.encode(), answered, failed)
        try:
            flight.entered = gate.enter()
        except StoreUnavailable as error:
            flight.fail(error)
            return flight.give_up
        lane = self._lane
        if awaited is not None:
            flight.task = self._keep(
                self._by_client(flight, self._berths[f"{node} and replicas"], awaited)
            )
        elif lane is not None and lane.alive:
            flight.board(lane)
        elif connections.dial is None:
            flight.task = self._keep(self._by_client(flight, self._berths[node]))
        else:
            self._boarding.append(flight)
            if self._dialling is None:
                self._dialling = asyncio.create_task(self._dial(connections.dial))
        return flight.give_up

    async def _dial(self, dial: Callable[[], Dialled]) -> None:
        error: BaseException | None = None
        try:
            self._lane = await Lane.over(dial())
        except Exception as lost:  # noqa: BLE001 - whoever waits gets it; nobody awaits this task
            error = lost
        finally:
            self._dialling = None
        boarding, self._boarding = self._boarding, []
        for flight in boarding:
            if error is not None:
                self.lost(flight, error)
            elif self._lane is not None:
                flight.board(self._lane)
        if self._connections is None and self._lane is not None:
            self._lane.abort("the bus was closed")

    async def _by_client(
        self, flight: Flight, berths: asyncio.Semaphore, awaited: Awaited | None = None
    ) -> None:
        try:
            async with berths:
                run = self.connections.run if awaited is None else self._running(flight, awaited)
                reply = await self._run(flight.script, flight.words, run)
        except ResponseError as error:
            self.answer(flight, error)
        except (RedisError, RedisClusterException, OSError) as error:
            self.lost(flight, error)
        except BaseException as error:
            flight.gate.abandoned(flight.entered)
            flight.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.answer(flight, reply)

    def _running(self, flight: Flight, awaited: Awaited) -> Callable[..., Awaitable[object]]:
        if self._aside is None:
            self._aside = Aside(self.again())
        awaited.expects(flight.nonce)
        return partial(self._aside.run, awaited)

    def answer(self, flight: Flight, reply: object) -> None:
        """Take what came back for a call."""
        if isinstance(reply, ResponseError):
            if turned_away(reply, flight.gate, flight.entered):
                self._keep(self.drop())
            error = StoreUnavailable(f"Redis refused: {short(reply)}")
            error.__cause__ = reply
            flight.fail(error)
        elif is_answer(reply, flight.nonce):
            flight.gate.succeeded()
            flight.answer(cast("list[Any]", reply))
        else:
            flight.gate.succeeded()
            flight.fail(StoreUnavailable(_POISONED))
            self._keep(self.drop())

    def lost(self, flight: Flight, error: BaseException) -> None:
        """Note that a call's answer will not come."""
        text = short(error) or f"no answer within {self._deadline:g} s"
        flight.gate.failed(text, flight.entered)
        failure = StoreUnavailable(text)
        failure.__cause__ = error
        flight.fail(failure)

    def unsent(self, flight: Flight) -> None:
        """Note that a call never left, which says nothing of the server."""
        flight.gate.abandoned(flight.entered)

    def overdue(self, flight: Flight) -> None:
        """Give up a call, and with it the connection on which nothing came."""
        if flight in self._boarding:
            self._boarding.remove(flight)
        if flight.task is not None:
            flight.task.cancel()
        flight.gate.failed(f"no answer within {self._deadline:g} s", flight.entered)
        if flight.lane is not None:
            flight.lane.abort("an answer on this connection is overdue")

    def _keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------------- single calls

    async def call(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> list[Any]:
        """Run a script once by itself; the reply must carry the nonce of this very call."""
        nonce = f"{self._worker}:{next(self._nonces)}"
        call = self.evaluate(script, keys, [nonce, *self._channels, *args])
        raw = await self.single(call, keys[0] if keys else "")
        return await self.own(raw, nonce)

    async def own(self, raw: object, mark: str) -> list[Any]:
        """Get a reply as a list, if it starts with the mark of the call that it is to answer."""
        if is_answer(raw, mark.encode()):
            return cast("list[Any]", raw)
        await self.drop()
        raise StoreUnavailable(_POISONED)

    async def evaluate(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> object:
        """Run a script through the client."""
        return await self._run(script, (len(keys), *keys, *args), self.connections.run)

    @staticmethod
    async def _run(
        script: Script, words: tuple[Word, ...], run: Callable[..., Awaitable[object]]
    ) -> object:
        try:
            return await run("EVALSHA", script.sha, *words)
        except NoScriptError:
            # The one answer that proves that nothing ran, and so the only call that is repeated.
            return await run("EVAL", script.text, *words)

    async def single(self, call: Coroutine[Any, Any, Answer], key: str = "") -> Answer:
        """Await a call that is no batch; of these only a few are under way at a time.

        `key` says which node it goes to.
        """
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
                return await self._guarded(call, key, expires)
        finally:
            self._singles.release()

    async def _guarded(self, call: Coroutine[Any, Any, Answer], key: str, expires: float) -> Answer:
        """Await a client call behind the gate, with the deadline, and errors as our own."""
        gate = self._gates[self._node_of(key)]
        try:
            entered = gate.enter()
        except StoreUnavailable:
            call.close()
            raise
        try:
            async with asyncio.timeout_at(expires):
                answer = await call
        except ResponseError as error:
            if turned_away(error, gate, entered):
                await self.drop()
            raise StoreUnavailable(f"Redis refused: {short(error)}") from error
        except (RedisError, RedisClusterException, OSError) as error:
            text = short(error) or f"no answer within {self._deadline:g} s"
            gate.failed(text, entered)
            raise StoreUnavailable(text) from error
        except BaseException:
            gate.abandoned(entered)
            raise
        gate.succeeded()
        return answer

    def _node_of(self, key: str) -> str:
        return "" if self._connections is None else self._connections.node_of(key)
