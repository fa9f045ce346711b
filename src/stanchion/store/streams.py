"""A Redis Stream: entries appended, replayed, and handed out to the consumers of a group."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast, runtime_checkable

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.store.cancelling import heeded
from stanchion.store.clients import connect
from stanchion.store.scripts import ScriptName, load_scripts
from stanchion.store.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stanchion.store.clients import Connections

FIELD: Final = b"event"
FIRST: Final = "0-0"
_SEEN_MS: Final = 3_600_000
_NOT_THERE: Final = ("no such key", "requires the key to exist")


class Entry(NamedTuple):
    """One entry: its id, and what is in its field `event`; None where it has no such field."""

    id: str
    payload: bytes | None


class Backlog(NamedTuple):
    """How far a group is.

    `behind` entries have still to be handed out, None where the server does not know; `pending` are
    handed out and not acknowledged. `trimmed` were removed after the entry `last`, which was handed
    out last, and before anybody was handed them.
    """

    behind: int | None = 0
    pending: int = 0
    last: str = FIRST
    trimmed: int = 0


class NoGroup(StoreUnavailable):
    """The stream, or the group on it, is not there."""


@runtime_checkable
class HasConnections(Protocol):
    """A store that makes connections to its place for work that must not hold up its own."""

    def beside(self) -> Connections:
        """Get connections to the same place; they own no server."""
        ...


def stream_at(place: str | object, key: str, *, deadline: float) -> RedisStream:
    """Get a stream at a URL, or beside the state that a store keeps.

    Raises:
        ConfigError: the URL cannot work, or the store has no place for streams.
    """
    if isinstance(place, str):
        target = parse_url(place)
        return RedisStream(lambda: connect(target, deadline=deadline), key, deadline=deadline)
    if isinstance(place, HasConnections):
        return RedisStream(partial(_beside, place), key, deadline=deadline)
    raise ConfigError(f"a {type(place).__qualname__} has no streams: give a URL")


class RedisStream:
    """One stream, over connections that nothing else uses; on one event loop.

    Every call has the deadline, and raises `StoreUnavailable` where the server did not answer in
    time or refused.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connections]], key: str, *, deadline: float
    ) -> None:
        self.key = key
        self._connect = connect
        self._deadline = deadline
        self._connections: Connections | None = None
        self._skipped = 0
        script = load_scripts().get(ScriptName.APPEND)
        assert script is not None
        self._script = script
        # On a cluster both keys must have the same hash tag.
        tagged = "{" in key and "}" in key.partition("{")[2]
        self._seen = f"{key}.seen" if tagged else f"{{{key}}}.seen"

    async def open(self) -> None:
        """Connect; a server that does not answer shows with the first call."""
        if self._connections is None:
            self._connections = await self._connect()

    async def close(self) -> None:
        """Let go of every connection; calling it twice is harmless."""
        connections, self._connections = self._connections, None
        if connections is not None:
            with suppress(RedisError, OSError):
                await connections.close()

    async def append(
        self, events: Sequence[tuple[str, bytes]], *, keep: int | None, age: float | None
    ) -> list[str | None]:
        """Add events atomically, and trim; the id of each entry, None for what is there already.

        An event is given as an id and a payload. The id is for what every process tells of, so
        that it is added once; empty for any other.
        """
        args: list[str | bytes] = [
            *(str(keep or 0), str(round((age or 0) * 1000)), str(_SEEN_MS)),
            *(part for event in events for part in event),
        ]
        call = ("2", self.key, self._seen, *args)
        try:
            raw = await self._run("EVALSHA", self._script.sha, *call)
        except NoScriptError:
            raw = await self._run("EVAL", self._script.text, *call)
        return [entry.decode() or None for entry in cast("list[bytes]", raw)]

    async def last(self) -> str:
        """Get the id of the newest entry that there ever was, "0-0" where there is no stream."""
        try:
            found = _pairs(await self._run("XINFO", "STREAM", self.key))
        except NoGroup:
            return FIRST
        return cast("bytes", found[b"last-generated-id"]).decode()

    async def read(self, after: str, count: int, block: float) -> list[Entry]:
        """Get entries after an id, waiting up to `block` seconds for the first of them."""
        command = ("XREAD", "COUNT", str(count), "BLOCK", _millis(block), "STREAMS", self.key)
        return _entries(await self._run(*command, after, block=block))

    async def create_group(self, group: str, after: str) -> None:
        """Make a group that begins after an id, unless there is one.

        Raises:
            NoGroup: there is no such stream yet.
        """
        try:
            await self._run("XGROUP", "CREATE", self.key, group, after)
        except StoreUnavailable as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read_group(
        self, group: str, consumer: str, count: int, block: float, *, after: str = ">"
    ) -> list[Entry]:
        """Get entries for a consumer: new ones, or with `after` its own that are pending.

        Raises:
            NoGroup: the stream or the group is not there.
        """
        wait = ("BLOCK", _millis(block)) if block > 0 else ()
        command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", str(count), *wait, "STREAMS")
        return _entries(await self._run(*command, self.key, after, block=block))

    async def claim(
        self, group: str, consumer: str, idle: float, after: str, count: int
    ) -> tuple[str, list[Entry]]:
        """Take over what was handed out `idle` seconds ago or earlier and not acknowledged.

        Gets where to go on, "0-0" at the end, and the entries. What has been trimmed is forgotten.

        Raises:
            NoGroup: the stream or the group is not there.
        """
        command = ("XAUTOCLAIM", self.key, group, consumer, _millis(idle), after)
        raw = cast("list[Any]", await self._run(*command, "COUNT", str(count)))
        found = cast("list[tuple[bytes | None, Any]]", raw[1])
        entries = [_entry((entry, fields)) for entry, fields in found if entry is not None]
        return cast("bytes", raw[0]).decode(), entries

    async def pending(
        self, group: str, consumer: str, first: str, last: str, count: int
    ) -> list[str]:
        """Get ids between two that a consumer has been handed and has not acknowledged."""
        command = ("XPENDING", self.key, group, first, last, str(count), consumer)
        raw = await self._run(*command, parse_detail=True)
        return [
            cast("bytes", one["message_id"]).decode() for one in cast("list[dict[str, Any]]", raw)
        ]

    async def keep(self, group: str, consumer: str, ids: Sequence[str]) -> None:
        """Say that a consumer still works on these, so that nobody takes them over."""
        command = ("XCLAIM", self.key, group, consumer, "0", *ids, "JUSTID")
        await self._run(*command, parse_justid=True)

    async def acknowledge(self, group: str, ids: Sequence[str]) -> int:
        """Say that these have been handled; how many of them were pending."""
        return cast("int", await self._run("XACK", self.key, group, *ids))

    async def backlog(self, group: str) -> Backlog:
        """Get how far a group is; all zero where there is no such group."""
        try:
            raw = cast("list[list[Any]]", await self._run("XINFO", "GROUPS", self.key))
            stream = _pairs(await self._run("XINFO", "STREAM", self.key))
        except NoGroup:
            return Backlog()
        for found in map(_pairs, raw):
            if found[b"name"] == group.encode():
                return self._backlog(found, stream)
        return Backlog()

    def _backlog(self, group: dict[bytes, Any], stream: dict[bytes, Any]) -> Backlog:
        pending, length = cast("int", group[b"pending"]), cast("int", stream[b"length"])
        last, newest = (
            cast("bytes", group[b"last-delivered-id"]),
            cast("bytes", stream[b"last-generated-id"]),
        )
        # How many of all that were ever added the group is past; None where the server lost count.
        read: int | None = group.get(b"entries-read")
        added: int | None = stream.get(b"entries-added")
        if read is None or added is None:
            return Backlog(group.get(b"lag"), pending, last.decode())
        if _order(last) >= _order(newest):
            # Redis 7.0 does not count what it skips where entries have been trimmed.
            self._skipped = added - read
            return Backlog(0, pending, last.decode())
        read += self._skipped
        first = stream[b"first-entry"]
        is_gap = first is None or _order(last) < _order(first[0])
        trimmed = max(0, added - length - read) if is_gap else 0
        # Not what the server calls the lag: to some versions what has been trimmed is yet to come.
        return Backlog(max(0, min(length, added - read)), pending, last.decode(), trimmed)

    async def forget(self, group: str, consumer: str) -> None:
        """Remove a consumer that has nothing pending."""
        if not await self.pending(group, consumer, "-", "+", 1):
            await self._run("XGROUP", "DELCONSUMER", self.key, group, consumer)

    async def _run(self, *command: str | bytes, block: float = 0.0, **options: Any) -> object:
        if self._connections is None:
            raise StoreUnavailable("the stream is not open")
        client = cast("Any", self._connections.client)
        try:
            with heeded():
                async with asyncio.timeout(block + self._deadline):
                    if isinstance(client, RedisCluster):
                        # Where it stands by itself: the key is not always the second word.
                        await client.initialize()
                        options["target_nodes"] = client.get_node_from_key(self.key)
                    return await client.execute_command(*command, **options)
        except NoScriptError:
            raise
        except ResponseError as error:
            text = str(error).split("\n", 1)[0][:200]
            absent = text.startswith("NOGROUP") or any(words in text for words in _NOT_THERE)
            kind = NoGroup if absent else StoreUnavailable
            raise kind(f"Redis refused: {text}") from error
        except (RedisError, RedisClusterException, OSError) as error:
            text = str(error).split("\n", 1)[0][:200]
            raise StoreUnavailable(
                text or f"no answer within {block + self._deadline:g} s"
            ) from error


def _pairs(raw: object) -> dict[bytes, Any]:
    words = cast("list[Any]", raw)
    return dict(zip(words[::2], words[1::2], strict=True))


def _order(entry: bytes) -> tuple[int, int]:
    millis, _, number = entry.partition(b"-")
    return int(millis), int(number)


async def _beside(place: HasConnections) -> Connections:
    return place.beside()


def _millis(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _entries(raw: object) -> list[Entry]:
    streams = cast("list[Any]", raw or [])
    return [_entry(one) for one in streams[0][1]] if streams else []


def _entry(raw: tuple[bytes, Any]) -> Entry:
    entry, fields = raw
    # None where the entry has been trimmed while it was pending.
    return Entry(entry.decode(), cast("dict[bytes, bytes]", fields or {}).get(FIELD))
