"""What the control tier asks of shared state, and the values that pass between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stanchion.store.epoch import Act

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from stanchion.decisions import CircuitState
    from stanchion.store.epoch import Epoch


class Operation(NamedTuple):
    """One policy's part in a request: its declaration, its keys and its numbers.

    `kind` is the script's name of the kind of limit. `spec` is the declaration as JSON, the same
    text for every request of one policy. `windows` are calendar windows as start, end, start, end,
    ... in microseconds. `line` are the keys of the subject's line, for a request that waits.
    `most`, for an operation that is asked by itself, has as much taken beyond its cost as there is,
    up to that. `cold` says that the declaration has a rule for a start after a loss of all state.
    `subjects` is the key of the policy's index of them, where it says how many may have state.
    """

    kind: str
    spec: str
    key: str
    aux: str
    cost: int
    shadow: bool = False
    windows: tuple[int, ...] = ()
    line: tuple[str, str] | None = None
    most: int = 0
    cold: bool = False
    subjects: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in line: whose, its ticket (0: yet to be given), and how long it is kept."""

    waiter: str
    ticket: int
    lease_us: int


class OpReply(NamedTuple):
    """One policy's answer in the units of the script: microseconds, and -1 for none or never."""

    reason: str
    limit: int
    remaining: int
    wait_us: int
    reset_us: int
    expires_us: int
    hold: tuple[int, ...]

    @classmethod
    def of(cls, row: Sequence[Any]) -> OpReply:
        """Get the answer that a row of a script's reply is."""
        reason, limit, remaining, wait_us, reset_us, expires_us, *hold = row
        return cls(reason.decode(), limit, remaining, wait_us, reset_us, expires_us, (*hold,))


class Reply:
    """The answer to one request, with the server's time and the call's place in the order.

    `ticket` is the place in line that a waiting request now has, 0 for none. `granted` is how much
    was taken for an operation with `most`. `found` is what an admission that may be undone found,
    one text for each operation, for the part that undoes it.
    """

    __slots__ = (
        *("_answers", "_rows", "admitted", "found", "granted"),
        *("now_us", "sequence", "ticket"),
    )

    def __init__(
        self,
        rows: Sequence[Sequence[Any]],
        admitted: int,
        now_us: int,
        sequence: int = 0,
        ticket: int = 0,
        granted: int = 0,
        found: Sequence[bytes] = (),
    ) -> None:
        self.admitted = admitted == 1
        self.now_us = now_us
        self.sequence = sequence
        self.ticket = ticket
        self.granted = granted
        self.found = found
        self._rows = rows
        self._answers: tuple[OpReply, ...] | None = None

    @property
    def operations(self) -> tuple[OpReply, ...]:
        """Each policy's answer; made of the reply's rows when first asked for, as few ask."""
        if self._answers is None:
            self._answers = tuple(map(OpReply.of, self._rows))
        return self._answers


class Part(NamedTuple):
    """What one policy of a permit holds, and what is to become of it.

    `actual` is the real cost; `unknown` says that nobody reported one. `found` is the reply's own,
    for an undo that leaves the store as the admission found it, and `subjects` the operation's.
    """

    kind: str
    key: str
    aux: str
    reserved: int
    hold: tuple[int, ...]
    actual: int = 0
    unknown: bool = True
    luck: int = 0
    found: bytes = b""
    subjects: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """A message that arrived on a channel."""

    channel: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription began, or began again: what was published in between is lost."""

    channel: str


Message = Published | Subscribed


class Channel(Protocol):
    """Publish and subscribe, at most once."""

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Get the number of receivers that the server knows of.

        Raises:
            StoreUnavailable: the server did not take it in time.
        """
        ...

    def subscribe(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Get messages, with a `Subscribed` for each channel after every (re)connection."""
        ...


class Request(NamedTuple):
    """One event's operations, decided together under the permit's id.

    Requests that ask the same share one tuple of operations. `luck`, in 0..999999, stands for
    chance where the script needs some. `weight` is about how many bytes it adds to a call. `copies`
    is how many replicas must have what it charges before it is an admission. `undoable` says that
    others are asked after it, whose veto will undo it.
    """

    permit: str
    operations: tuple[Operation, ...]
    place: Place | None = None
    luck: int = 0
    weight: int = 0
    copies: int = 0
    undoable: bool = False


class Store(Channel, Protocol):
    """Shared policy state. Every call has a deadline and raises `StoreUnavailable` past it."""

    @property
    def worker(self) -> str:
        """Who this process is to breakers that want several distinct reporters."""
        ...

    def keep_denials(self, seconds: float) -> None:
        """Have it noted what is denied, since the caller keeps it for so long at most."""
        ...

    def expect_copies(self, count: int) -> None:
        """Have a warning logged, when it opens, if there are fewer replicas than that."""
        ...

    def twin(self) -> Store:
        """Get a store for the same place, for use on another event loop; open it there."""
        ...

    def subscribe(
        self, *channels: str, lost: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Do as `Channel.subscribe`; `lost` is called when a connection is known to be gone."""
        ...

    async def open(self) -> None:
        """Connect; calling it twice is harmless."""
        ...

    async def close(self) -> None:
        """Let go of every connection, and of a server that was started for this store alone."""
        ...

    async def admit(self, request: Request) -> Reply:
        """Decide and charge, all policies or none, atomically with concurrent requests."""
        ...

    def asking(self, request: Request) -> Future[Reply]:
        """Do as `admit` does, at once; whoever gives up waiting for the answer calls `forsake`."""
        ...

    def forsake(self, request: Request, answer: Future[Reply]) -> None:
        """Give back what an answer has taken, or yet takes, for which nobody waits any more."""
        ...

    async def peek(self, request: Request) -> Reply:
        """Say what `admit` would answer now; writes nothing."""
        ...

    async def settle(self, permit: str, outcome: str, parts: Sequence[Part]) -> tuple[str, ...]:
        """True up a permit; one of "settled", "stale", "state_corrupt" for each part."""
        ...

    def settling(self, permit: str, outcome: str, parts: Sequence[Part]) -> Future[tuple[str, ...]]:
        """Do as `settle` does, at once; if the answer to come is cancelled, it may not be done."""
        ...

    async def leave(self, waiter: str, operations: Sequence[Operation]) -> None:
        """Give up a waiter's place in every line, and wake whoever is next."""
        ...

    def give_back(self, permit: str, parts: Sequence[Part]) -> Future[tuple[str, ...]]:
        """Undo an admission in the background, as if it had never been; returns at once.

        What it gets may be waited for, and need not be.
        """
        ...

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        """Lengthen leases; for each part its new end in microseconds, 0 where it is lost."""
        ...

    async def force(
        self, key: str, aux: str, state: CircuitState, spec: str, indexed: str = ""
    ) -> str:
        """Put a circuit into a state everywhere; the state it was in before.

        `indexed` names the policy, if it says how many of its subjects may have state.
        """
        ...

    async def override(self, key: str, fields: Mapping[str, int] | None) -> None:
        """Give one subject a limit of its own, None to take it away; in force at once."""
        ...

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
        """Tighten one subject's state to a provider's own figures; `indexed` as for `force`.

        It is counted under that one of the declarations under which it was last, else the first.
        Whether that changed it, None where the windows are not the server's; and its time in us.
        """
        ...

    async def reset(self, keys: Sequence[tuple[str, str]], indexed: str = "") -> int:
        """Forget subjects, given as (state key, aux key); how many had state.

        All are of one policy; `indexed` as for `force`.
        """
        ...

    def keys(self, pattern: str) -> AsyncIterator[str]:
        """Walk the keys that match a glob, each at least once, without blocking the server."""
        ...

    async def changed_circuits(self) -> Mapping[str, int]:
        """Get the circuits that changed within a day, and when, in microseconds."""
        ...

    async def inspect(self, key: str) -> tuple[str, ...]:
        """Describe one key as "name value" lines."""
        ...

    async def execute(self, *command: str) -> object:
        """Run one plain command, with the deadline and the errors of every other call."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """The hash tags that this process has asked for, the namespace's own first."""
        ...

    async def epoch(self, tag: str, act: Act = Act.GREET, spread: str = "") -> Epoch:
        """Find out which life of the state under a tag this is, which decisions go by from then on.

        What was known before shows whether state has been lost, and is noted for everybody.
        `spread` is how the caller spreads the namespace over shards, empty where it does not say.
        """
        ...

    def shut(self, reason: str) -> None:
        """Refuse whatever is asked from now on, for a reason; with none, refuse it no longer."""
        ...
