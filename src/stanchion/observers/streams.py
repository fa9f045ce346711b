"""Reading events from a Redis Stream: replayed from any point, or shared by a group."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from stanchion.durations import seconds
from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.events import Event, Selector, check_selector, matches
from stanchion.observers.containment import summary
from stanchion.observers.journal import Journal
from stanchion.observers.origin import ORIGIN, read
from stanchion.observers.sinks.redis_stream import STREAM
from stanchion.observers.trimming import Trimming
from stanchion.store.keys import Keyspace
from stanchion.store.streams import FIRST, Backlog, NoGroup, stream_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from types import TracebackType

    from tenacity import RetryCallState

    from stanchion.store.protocol import Channel
    from stanchion.store.streams import Entry

BEGINNING: Final = "0"
NOW: Final = "$"
_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_POLL: Final = 0.1  # seconds between looks for a stream that is not there yet
_BLOCK: Final = 5.0  # seconds that one read waits at the server
_PAGE: Final = 1000
_LONGEST_PAUSE: Final = 5.0


class Delivery(NamedTuple):
    """An event and the id of its entry."""

    id: str
    event: Event


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What became of the entries that were read.

    `received` are all of them, and `claimed` are those of them that another consumer had been
    handed and had not acknowledged. `malformed` were no events, and are acknowledged. `lost` were
    taken over by another consumer while they were worked on here. `missed` were trimmed before any
    consumer of the group had read them. `in_hand` are not acknowledged.
    """

    received: int = 0
    claimed: int = 0
    malformed: int = 0
    lost: int = 0
    missed: int = 0
    in_hand: int = 0


class StreamReader:
    """An async iterator of deliveries; use it as `async with`.

    Without `group`, it replays the stream from `start` and then follows it. With one, the entries
    are shared by the consumers of that group: each goes to one of them, and is pending until that
    one calls `ack`. What a dead consumer had in hand is taken over after `claim_after`; while this
    one lives, what it has in hand stays its own, however long that takes. So an event is handled
    at least once, and by a second consumer only if the first was silent for so long.

    A server that is away is waited for. A stream that is not there yet is waited for as well.
    """

    def __init__(
        self,
        place: str | Channel,
        *,
        namespace: str = "default",
        key: str | None = None,
        group: str | None = None,
        consumer: str | None = None,
        start: str = NOW,
        claim_after: timedelta | float | str = "30s",
        on: Selector = "*",
        deadline: timedelta | float | str = "2s",
    ) -> None:
        """Choose what to read; nothing connects before `open`.

        Args:
            place: a URL, or the store of a bus.
            namespace: whose stream, where `key` does not say.
            key: its name; by default `stanchion:{<namespace>}:stream`.
            group: the name of a group, which is made where there is none.
            consumer: this one's name in the group; by default made of host, process and chance.
            start: "0" from the beginning, "$" what comes from now on, or what comes after the entry
                with this id. For a group it counts where the group is made.
            claim_after: how long a consumer must have been silent.
            on: the events to get; others are acknowledged unseen.
            deadline: seconds that the server has for an answer.

        Raises:
            ConfigError: an argument cannot work.
        """
        if start not in {BEGINNING, NOW} and not _ID.fullmatch(start):
            raise ConfigError.of("start", start, 'expected "0", "$", or an id such as 1700000000-0')
        for field, value in (("group", group), ("consumer", consumer), ("key", key)):
            if value is not None and (not isinstance(cast("object", value), str) or not value):
                raise ConfigError.of(field, value, "expected text that is not empty")
        if consumer is not None and group is None:
            raise ConfigError.of("consumer", consumer, "it goes with a group")
        check_selector(on)
        self.key = key or Keyspace(namespace).stream
        self.group = group
        self.consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._start = start
        self._claim_after = seconds(claim_after, field="claim_after")
        self._on: Selector = on
        self._stream = stream_at(place, self.key, deadline=seconds(deadline, field="deadline"))
        self._journal = Journal()
        self._trimming = Trimming()
        self._position = FIRST if start == BEGINNING else start
        self._is_ready = False
        self._recovering: str | None = FIRST
        self._claiming = FIRST
        self._claim_at = 0.0
        self._in_hand: dict[str, None] = {}
        self._done: dict[str, None] = {}
        self._ready: list[Delivery] = []
        self._keeping: asyncio.Task[None] | None = None
        self._received = self._claimed = self._malformed = self._lost = self._missed = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        while not self._ready:
            self._ready = (await self.take())[::-1]
        return self._ready.pop()

    @property
    def stats(self) -> ReaderStats:
        """The counters as they are now."""
        return ReaderStats(
            received=self._received,
            claimed=self._claimed,
            malformed=self._malformed,
            lost=self._lost,
            missed=self._missed,
            in_hand=len(self._in_hand),
        )

    async def open(self) -> None:
        """Connect, and find where to begin; calling it twice is harmless.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        await self._stream.open()
        try:
            newest = await self._stream.last()
            if self._start == NOW and not self._is_ready:
                self._position = newest
            with suppress(NoGroup):
                await self._prepare()
            await self.backlog()
        except BaseException:
            await self._stream.close()
            raise
        if self.group is not None and self._keeping is None:
            loop = asyncio.get_running_loop()
            name = f"stanchion stream {self.key}"
            self._keeping = loop.create_task(self._keep(), name=name, context=Context())

    async def close(self) -> None:
        """Say what has been handled, and leave the rest to the other consumers of the group."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        try:
            if self.group is not None:
                await self._flush()
                with suppress(StoreUnavailable):
                    await self._stream.forget(self.group, self.consumer)
        finally:
            await self._stream.close()

    async def take(self, most: int = 100, wait: float = _BLOCK) -> list[Delivery]:
        """Get up to `most` deliveries; none where none came within `wait` seconds.

        While the server is away it waits for that, however long it takes.
        """
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()
        ends = time.monotonic() + wait
        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE),
            retry=retry_if_exception_type(StoreUnavailable),
            before_sleep=self._tell,
            sleep=asyncio.sleep,
        )
        while True:
            left = max(0.0, ends - time.monotonic())
            found: list[Delivery] = []
            async for attempt in retrying.copy():
                with attempt:
                    found = await self._pull(most, min(left, _BLOCK))
            if found or time.monotonic() >= ends:
                return found

    async def ack(self, *deliveries: Delivery) -> None:
        """Say that these have been handled.

        Where the server is away it is said later; who is killed before that has them handled again.
        """
        if self.group is None:
            return
        for delivery in deliveries:
            self._in_hand.pop(delivery.id, None)
            self._done[delivery.id] = None
        await self._flush()

    async def backlog(self) -> Backlog:
        """Get how far the group is; all zero without one.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if self.group is None:
            return Backlog()
        found = await self._stream.backlog(self.group)
        missed = self._trimming.note(found)
        if missed:
            self._missed += missed
            text = "%d entries of %s were trimmed before the group %s had read them"
            self._journal.say(
                logging.WARNING, "trimmed", "group", text, missed, self.key, self.group
            )
        return found

    # ---------------------------------------------------------------------------------- reading

    async def _pull(self, most: int, block: float) -> list[Delivery]:
        try:
            if not self._is_ready:
                await self._prepare()
            if self.group is None:
                entries = await self._stream.read(self._position, most, block)
                if entries:
                    self._position = entries[-1].id
            else:
                entries = await self._shared(self.group, most, block)
        except NoGroup:
            # The stream is yet to be made, or it has gone and whatever comes is new.
            self._is_ready, self._start, self._position = False, BEGINNING, FIRST
            self._in_hand.clear()
            self._done.clear()
            await asyncio.sleep(min(block, _POLL))
            return []
        return await self._events(entries)

    async def _prepare(self) -> None:
        if self.group is not None:
            after = self._position if self._start == NOW else self._start
            await self._stream.create_group(self.group, after)
            self._recovering, self._claiming, self._claim_at = FIRST, FIRST, 0.0
        self._is_ready = True

    async def _shared(self, group: str, most: int, block: float) -> list[Entry]:
        if self._recovering is not None:
            # What a process of this name had in hand when it ended.
            mine = await self._stream.read_group(
                group, self.consumer, most, 0.0, after=self._recovering
            )
            self._recovering = mine[-1].id if mine else None
            if mine:
                return mine
        if time.monotonic() >= self._claim_at:
            self._claiming, theirs = await self._stream.claim(
                group, self.consumer, self._claim_after, self._claiming, most
            )
            if self._claiming == FIRST:
                self._claim_at = time.monotonic() + self._claim_after / 2
            fresh = [entry for entry in theirs if entry.id not in self._in_hand]
            if fresh:
                self._claimed += len(fresh)
                return fresh
        block = min(block, max(0.05, self._claim_at - time.monotonic()))
        return await self._stream.read_group(group, self.consumer, most, block)

    async def _events(self, entries: Sequence[Entry]) -> list[Delivery]:
        found: list[Delivery] = []
        for entry in entries:
            self._received += 1
            event = self._event(entry)
            if event is not None and matches(self._on, event):
                found.append(Delivery(entry.id, event))
            elif self.group is not None:
                self._done[entry.id] = None
        if self.group is not None:
            self._in_hand.update((delivery.id, None) for delivery in found)
            # Those that nobody here wanted, and those that the server did not take before.
            await self._flush()
        return found

    def _event(self, entry: Entry) -> Event | None:
        try:
            document, _ = read(entry.payload or b"")
            # So that what was read here is not written here again.
            document[ORIGIN] = f"{STREAM}{self.key}"
            return Event.from_cloudevent(document)
        except (ValueError, RecursionError) as error:
            self._malformed += 1
            text = "entry %s of %s is no event and is left out: %s"
            self._journal.say(
                logging.WARNING, "malformed", "entry", text, entry.id, self.key, summary(error)
            )
            return None

    # --------------------------------------------------------------------------------- the group

    async def _flush(self) -> None:
        ids = list(self._done)
        if self.group is None or not ids:
            return
        try:
            for first in range(0, len(ids), _PAGE):
                page = ids[first : first + _PAGE]
                await self._stream.acknowledge(self.group, page)
                for done in page:
                    self._done.pop(done, None)
        except StoreUnavailable as error:
            text = "%d entries of %s are to be acknowledged later: %s"
            self._journal.say(logging.WARNING, "ack", "ack", text, len(self._done), self.key, error)

    async def _keep(self) -> None:
        """Tell the group now and then that what is in hand is worked on."""
        group = cast("str", self.group)
        while True:
            await asyncio.sleep(self._claim_after / 3)
            try:
                await self._flush()
                await self.backlog()
                ids = sorted(self._in_hand, key=_order)
                for first in range(0, len(ids), _PAGE):
                    page = ids[first : first + _PAGE]
                    mine = await self._stream.pending(
                        group, self.consumer, page[0], page[-1], 2 * _PAGE
                    )
                    if mine:
                        await self._stream.keep(group, self.consumer, mine)
                    for lost in set(page) - set(mine):
                        self._lost += self._in_hand.pop(lost, 0) is None
            except StoreUnavailable as error:
                text = "cannot say that %d entries of %s are worked on: %s"
                self._journal.say(
                    logging.WARNING, "keep", "keep", text, len(self._in_hand), self.key, error
                )

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._journal.say(
            logging.WARNING, "read", "read", "cannot read %s (%s); trying again", self.key, error
        )


def _order(entry: str) -> tuple[int, int]:
    millis, _, number = entry.partition("-")
    return int(millis), int(number or 0)
