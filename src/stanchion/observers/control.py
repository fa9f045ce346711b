"""Learning of changes that other processes brought about: circuits, quotas, policies."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_random_exponential,
)

from stanchion.decisions import CircuitState
from stanchion.observers.containment import summary
from stanchion.observers.journal import Journal
from stanchion.observers.transitions import Transition, parse
from stanchion.store.keys import Keyspace
from stanchion.store.protocol import Published

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from types import TracebackType

    from tenacity import RetryCallState
    from tenacity.stop import StopBaseT

    from stanchion.events import Event
    from stanchion.store.protocol import Channel

_KEYS: Final = 100_000  # keys whose last change is remembered
_PATIENCE: Final = 10.0  # seconds that one reading of state may take
_SLICE: Final = 100  # states handled before the loop has a turn
_DUE: Final = 1000  # keys to read singly; with more of them, all are read
_ATTEMPTS: Final = 5  # at one key; if the server is away, the next subscription asks for all
_SUBSCRIBE: Final = "subscribe to"
_READ: Final = "read the states behind"
_BREATH: Final = 0.05  # seconds between the end of a subscription and the next


class Resync(Protocol):
    """Reads current states, of one key or of all, in the form in which changes are published."""

    async def __call__(self, key: str | None = None, /) -> Iterable[Mapping[str, str]]:
        """Get a payload for each key; `at_us` and `seq` are those of its last change."""
        ...


@dataclass(frozen=True, slots=True)
class ControlStats:
    """What became of the messages on the control channel.

    `emitted` were new and became events, `stale` were known already, `malformed` could not be
    read, and before each of the `gaps` at least one was missed. States were read `resyncs` times,
    and `failed_resyncs` times that did not work and was tried again.
    """

    received: int = 0
    emitted: int = 0
    stale: int = 0
    malformed: int = 0
    gaps: int = 0
    resyncs: int = 0
    failed_resyncs: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    seq: int
    state: CircuitState | None
    was_reset: bool


class ControlListener:
    """Turns the changes that scripts publish in a namespace into events for local observers.

    Pub/sub loses what is published while nobody listens. Each change of a key has a number, so a
    missed one shows; the key's state is then read anew, and so is everybody's after every
    (re)subscription. What is learned either way becomes one event, with the same id in every
    process, and never an older one after a newer one.
    """

    def __init__(
        self,
        channel: Channel,
        namespace: str,
        *,
        notify: Callable[[Event], None],
        resync: Resync,
    ) -> None:
        """Prepare to listen; nothing happens before `start`.

        Args:
            channel: where to subscribe; it reconnects by itself.
            namespace: whose changes to follow.
            notify: gets each event; must return at once.
            resync: reads current states.

        Raises:
            ConfigError: the namespace is malformed.
        """
        self._channel = channel
        self._name = Keyspace(namespace).control
        self._notify = notify
        self._resync = resync
        self._journal = Journal()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        # Keys to read, in order; None stands for all of them.
        self._due: dict[str | None, None] = {}
        self._is_due = asyncio.Event()
        self._synced = asyncio.Event()
        self._received = self._emitted = self._stale = self._malformed = 0
        self._gaps = self._resyncs = self._failed_resyncs = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def stats(self) -> ControlStats:
        """The counters as they are now."""
        return ControlStats(
            received=self._received,
            emitted=self._emitted,
            stale=self._stale,
            malformed=self._malformed,
            gaps=self._gaps,
            resyncs=self._resyncs,
            failed_resyncs=self._failed_resyncs,
        )

    async def start(self) -> None:
        """Begin to listen in the background; calling it twice is harmless."""
        if not self._tasks:
            self._tasks = [
                self._spawn(self._follow(), "control channel"),
                self._spawn(self._read_states(), "control states"),
            ]

    async def close(self) -> None:
        """Stop listening; calling it twice is harmless."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def synced(self, timeout: float) -> bool:
        """Wait until all states have been read since the last subscription; False at `timeout`."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError:
            return False
        return True

    @staticmethod
    def _spawn(work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        # In an empty context: this outlives whatever run happens to open the bus.
        loop = asyncio.get_running_loop()
        return loop.create_task(work, name=f"stanchion {name}", context=Context())

    # ------------------------------------------------------------------------------ the channel

    async def _follow(self) -> None:
        while True:
            await self._retrying(_SUBSCRIBE)(self._listen)
            await asyncio.sleep(_BREATH)

    async def _listen(self) -> None:
        """Follow one subscription; raises if it does not come about, returns if it ends."""
        began = False
        try:
            async with self._channel.subscribe(self._name) as messages:
                async for message in messages:
                    began = True
                    if isinstance(message, Published):
                        self._take(message.payload)
                    else:
                        self._synced.clear()
                        self._ask_for(None)
        except Exception as error:
            if not began:
                raise
            self._say("lost", "the subscription to %s has ended: %s", summary(error))

    def _take(self, payload: bytes) -> None:
        self._received += 1
        try:
            change = parse(payload)
            known = self._known.get(change.key)
            if known is not None and change.seq <= known.seq:
                self._stale += 1
                return
            self._emit(change, known)
        except (ValueError, RecursionError) as error:
            self._refuse(error)
            return
        # A reset has no part in the numbering: it ends one series, and the next starts elsewhere.
        is_reset = change.is_reset or (known is not None and known.was_reset)
        if known is not None and not is_reset and change.seq > known.seq + 1:
            self._gaps += 1
            self._ask_for(change.key)

    def _emit(self, change: Transition, known: _Known | None) -> None:
        event = change.event(None if known is None else known.state)
        self._remember(change)
        self._emitted += 1
        self._notify(event)

    def _remember(self, change: Transition) -> None:
        self._known[change.key] = _Known(change.seq, change.state, change.is_reset)
        self._known.move_to_end(change.key)
        if len(self._known) > _KEYS:
            self._known.popitem(last=False)

    # ------------------------------------------------------------------------------- the states

    def _ask_for(self, key: str | None) -> None:
        self._due[key if len(self._due) < _DUE else None] = None
        self._is_due.set()

    async def _read_states(self) -> None:
        while True:
            await self._is_due.wait()
            key = None if None in self._due else next(iter(self._due))
            if key is None:
                # Reading all of them, from now on, covers those that were asked for till now.
                self._due.clear()
            else:
                del self._due[key]
            if not self._due:
                self._is_due.clear()
            attempts = stop_never if key is None else stop_after_attempt(_ATTEMPTS)
            await self._retrying(_READ, attempts)(self._read, key)

    async def _read(self, key: str | None) -> None:
        async with asyncio.timeout(_PATIENCE):
            states = await (self._resync() if key is None else self._resync(key))
        for number, fields in enumerate(states):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            self._take_state(fields)
        self._resyncs += 1
        if key is None and None not in self._due:
            self._synced.set()

    def _take_state(self, fields: Mapping[str, str]) -> None:
        try:
            state = Transition.of(fields)
            known = self._known.get(state.key)
            if known is not None and state.seq <= known.seq:
                return
            if known is None and state.state is CircuitState.CLOSED:
                # Where a circuit is first heard of and closed, nothing has happened.
                self._remember(state)
            else:
                self._emit(state, known)
        except ValueError as error:
            self._refuse(error)

    # ----------------------------------------------------------------------------- when it fails

    def _retrying(self, what: str, stop: StopBaseT = stop_never) -> AsyncRetrying:
        def tell(state: RetryCallState) -> None:
            error = None if state.outcome is None else state.outcome.exception()
            if what == _READ:
                self._failed_resyncs += 1
            if error is not None:
                self._say(what, f"cannot {what} %s: %s", summary(error))

        return AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.1, max=5.0),
            retry=retry_if_exception_type(Exception),
            stop=stop,
            before_sleep=tell,
            retry_error_callback=tell,
        )

    def _refuse(self, error: Exception) -> None:
        self._malformed += 1
        self._say("malformed", "a message on %s is left out, it cannot be read: %s", summary(error))

    def _say(self, kind: str, text: str, *values: object) -> None:
        self._journal.say(logging.WARNING, kind, self._name, text, self._name, *values)
