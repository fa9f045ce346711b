"""One script call: sent once, checked to be answered to the right caller, errors as our own."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from stanchion.errors import ConfigError, StanchionError, StoreUnavailable
from stanchion.store.cancelling import heeded
from stanchion.store.lane import Lane
from stanchion.store.outage import OutageGate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from stanchion.store.clients import Connections
    from stanchion.store.lane import Dialled, Word
    from stanchion.store.scripts import Script

    Answered = Callable[[list[Any]], None]
    Failed = Callable[[BaseException], None]

Answer = TypeVar("Answer")
_CLOSED = "the bus is not open: use `async with EventBus.from_url(...)`"
_POISONED = "a reply belonged to another call; its connection was dropped"
# The server is there but serves no writes now; another node may have taken over.
_TURNED_AWAY = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
# Calls that are no batch, at once, each on a connection of the pool.
_SINGLES = 4


class Calls:
    """The calls of one process on one event loop, behind one outage gate.

    Batches are launched on the lane, where there is one, and else through the client like single
    calls. Every reply must carry the nonce of its call.
    """

    def __init__(self, *, worker: str, channels: Sequence[str], deadline: float) -> None:
        self._worker = worker
        self._channels = tuple(channels)
        self._deadline = deadline
        self._nonces = itertools.count()
        self._gate = OutageGate()
        self._singles = asyncio.Semaphore(_SINGLES)
        self._connections: Connections | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._lane: Lane | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._boarding: list[_Flight] = []
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
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait([self._dialling])
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._lane is not None:
            self._lane.abort("the bus was closed")
        if connections is not None:
            with suppress(RedisError, OSError):
                await connections.close()

    async def drop(self) -> None:
        """Disconnect everything, so that the next call starts on fresh connections."""
        if self._lane is not None:
            self._lane.abort("the connection was dropped")
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
    ) -> Callable[[], None]:
        """Send a call now, and get what gives it up; one of the two is told what came of it."""
        connections = self.connections
        nonce = f"{self._worker}:{next(self._nonces)}"
        words = (len(keys), *keys, nonce, *self._channels, *args)
        flight = _Flight(self, script, words, nonce.encode(), answered, failed)
        try:
            flight.entered = self._gate.enter()
        except StoreUnavailable as error:
            flight.fail(error)
            return flight.give_up
        lane = self._lane
        if lane is not None and lane.alive:
            flight.board(lane)
        elif connections.dial is None:
            flight.task = self._keep(self._by_client(flight))
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

    async def _by_client(self, flight: _Flight) -> None:
        try:
            reply = await self._run(flight.script, flight.words)
        except ResponseError as error:
            self.answer(flight, error)
        except (RedisError, RedisClusterException, OSError) as error:
            self.lost(flight, error)
        except BaseException as error:
            self._gate.abandoned(flight.entered)
            flight.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.answer(flight, reply)

    def answer(self, flight: _Flight, reply: object) -> None:
        """Take what came back for a call."""
        if isinstance(reply, ResponseError):
            if self._turned_away(reply, flight.entered):
                self._keep(self.drop())
            error = StoreUnavailable(f"Redis refused: {short(reply)}")
            error.__cause__ = reply
            flight.fail(error)
        elif is_answer(reply, flight.nonce):
            self._gate.succeeded()
            flight.answer(cast("list[Any]", reply))
        else:
            self._gate.succeeded()
            flight.fail(StoreUnavailable(_POISONED))
            self._keep(self.drop())

    def lost(self, flight: _Flight, error: BaseException) -> None:
        """Note that a call's answer will not come."""
        text = short(error) or f"no answer within {self._deadline:g} s"
        self._gate.failed(text, flight.entered)
        failure = StoreUnavailable(text)
        failure.__cause__ = error
        flight.fail(failure)

    def unsent(self, flight: _Flight) -> None:
        """Note that a call never left, which says nothing of the server."""
        self._gate.abandoned(flight.entered)

    def overdue(self, flight: _Flight) -> None:
        """Give up a call, and with it the connection on which nothing came."""
        if flight in self._boarding:
            self._boarding.remove(flight)
        if flight.task is not None:
            flight.task.cancel()
        self._gate.failed(f"no answer within {self._deadline:g} s", flight.entered)
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
        raw = await self.single(self.evaluate(script, keys, [nonce, *self._channels, *args]))
        return await self.own(raw, nonce)

    async def own(self, raw: object, mark: str) -> list[Any]:
        """Get a reply as a list, if it starts with the mark of the call that it is to answer."""
        if is_answer(raw, mark.encode()):
            return cast("list[Any]", raw)
        await self.drop()
        raise StoreUnavailable(_POISONED)

    async def evaluate(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> object:
        """Run a script through the client."""
        return await self._run(script, (len(keys), *keys, *args))

    async def _run(self, script: Script, words: tuple[Word, ...]) -> object:
        run = self.connections.run
        try:
            return await run("EVALSHA", script.sha, *words)
        except NoScriptError:
            # The one answer that proves that nothing ran, and so the only call that is repeated.
            return await run("EVAL", script.text, *words)

    async def single(self, call: Coroutine[Any, Any, Answer]) -> Answer:
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
            if self._turned_away(error, entered):
                await self.drop()
            raise StoreUnavailable(f"Redis refused: {short(error)}") from error
        except (RedisError, RedisClusterException, OSError) as error:
            text = short(error) or f"no answer within {self._deadline:g} s"
            self._gate.failed(text, entered)
            raise StoreUnavailable(text) from error
        except BaseException:
            self._gate.abandoned(entered)
            raise
        self._gate.succeeded()
        return answer

    def _turned_away(self, error: ResponseError, entered: int) -> bool:
        # Older servers wrap the code inside "Error running script", so the text is searched.
        if any(code in str(error) for code in _TURNED_AWAY):
            self._gate.failed(short(error), entered)
            return True
        self._gate.succeeded()
        return False


class _Flight:
    """One batch under way."""

    __slots__ = (
        *("_answered", "_calls", "_failed", "_over"),
        *("entered", "lane", "nonce", "script", "task", "words"),
    )

    def __init__(
        self,
        calls: Calls,
        script: Script,
        words: tuple[Word, ...],
        nonce: bytes,
        answered: Answered,
        failed: Failed,
    ) -> None:
        self._calls = calls
        self._answered = answered
        self._failed = failed
        self._over = False
        self.script = script
        self.words = words
        self.nonce = nonce
        self.entered = 0
        self.lane: Lane | None = None
        self.task: asyncio.Task[Any] | None = None

    def board(self, lane: Lane) -> None:
        self.lane = lane
        try:
            lane.send(("EVALSHA", self.script.sha, *self.words), self._heard)
        except (UnicodeError, TypeError) as error:
            # It cannot be written down; those who come after it can.
            self._calls.unsent(self)
            self.fail(error)

    def _heard(self, reply: object) -> None:
        if self._over:
            return
        if isinstance(reply, NoScriptError) or _unknown_script(reply):
            # The one answer that proves that nothing ran, and so the only call that is repeated.
            cast("Lane", self.lane).send(("EVAL", self.script.text, *self.words), self._heard)
        elif isinstance(reply, (RedisError, OSError)) and not isinstance(reply, ResponseError):
            self._calls.lost(self, reply)
        else:
            self._calls.answer(self, reply)

    def answer(self, reply: list[Any]) -> None:
        if not self._over:
            self._over = True
            self._answered(reply)

    def fail(self, error: BaseException) -> None:
        if not self._over:
            self._over = True
            self._failed(error)

    def give_up(self) -> None:
        if not self._over:
            self._over = True
            self._calls.overdue(self)


def is_answer(reply: object, nonce: bytes) -> bool:
    """Whether a reply is one to the call of that nonce."""
    rows = cast("list[object]", reply) if isinstance(reply, list) else []
    return bool(rows) and rows[0] == nonce


def short(error: BaseException) -> str:
    """Get the first line of an error, for our own."""
    return str(error).split("\n", 1)[0][:200]


def _unknown_script(reply: object) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT")
