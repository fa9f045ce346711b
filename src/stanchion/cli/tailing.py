"""`stanchion tail`: events as they happen, or as a stream has kept them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion import ConfigError
from stanchion.cli.ending import Ending, hush
from stanchion.cli.output import Exit, complain
from stanchion.cli.places import check_shared, shown
from stanchion.durations import seconds
from stanchion.errors import StoreUnavailable
from stanchion.events import InvalidEvent, check_selector, matches
from stanchion.observers import ControlListener, listen
from stanchion.observers.dead_letters import dead_of, epitaph
from stanchion.observers.sinks.console import json_line, line, wants_colour
from stanchion.observers.streams import BEGINNING, NOW, StreamReader
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping

    from stanchion.events import Event

_DEADLINE: Final = 2.0
_WAITING: Final = 10_000  # events between the server and the terminal
_WORDS: Final = {"start": BEGINNING, "now": NOW}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events to show: of one of these types, and with all of these values."""

    on: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, on: Iterable[str], where: Iterable[str]) -> Filter:
        """Get a filter from the words of a command line.

        Raises:
            ConfigError: a word is neither a type nor a glob, or not of the form field=value.
        """
        selectors = tuple(on)
        if selectors:
            check_selector(selectors)
        pairs: list[tuple[str, str]] = []
        for word in where:
            field, equals, value = word.partition("=")
            if not equals or not field:
                raise ConfigError.of("where", word, "expected field=value, as in tenant=acme")
            pairs.append((field, value))
        return cls(selectors, tuple(pairs))

    def __call__(self, event: Event) -> bool:
        """Get whether to show an event."""
        if self.on and not matches(self.on, event):
            return False
        if not self.where:
            return True
        try:
            document = event.to_cloudevent()
        except InvalidEvent:
            return False
        return all(_is_like(_value(document, field), value) for field, value in self.where)


@dataclass(frozen=True, slots=True)
class Tail:
    """What to show, and how; `start` is None for pub/sub."""

    url: str
    namespace: str
    filter: Filter
    start: str | None
    key: str | None
    dead: bool
    count: int | None
    as_json: bool


def start_of(word: str) -> str:
    """Get where in a stream to begin: "0", "$", an id, or how long ago.

    Raises:
        ConfigError: it is none of these.
    """
    word = _WORDS.get(word, word)
    if word in {BEGINNING, NOW} or re.fullmatch(r"\d+(-\d+)?", word):
        return word
    try:
        ago = seconds(word, field="from")
    except ConfigError:
        accepted = 'expected "0" or "start", "$" or "now", an id such as 1700000000000-0, or "10m"'
        raise ConfigError.of("from", word, accepted) from None
    return f"{max(0, round((time.time() - ago) * 1000))}-0"


async def tail(wanted: Tail) -> Exit:
    """Print events until there were enough of them, Ctrl-C, or nobody reads them any more.

    Raises:
        ConfigError: the URL or the namespace cannot work.
    """
    check_shared(wanted.url)
    ending = Ending()
    colour = not wanted.as_json and wants_colour(sys.stdout)
    left = wanted.count
    try:
        with ending.listening():
            async with AsyncExitStack() as stack:
                events = _from_stream if wanted.start is not None else _from_channels
                source = events(wanted, stack)
                while (event := await _next(source, ending)) is not None:
                    if not wanted.filter(event):
                        continue
                    text = json_line(event) if wanted.as_json else line(event, colour=colour)
                    if wanted.dead and not wanted.as_json and (why := epitaph(event)):
                        text = f"{text} | {why}"
                    sys.stdout.write(f"{text}\n")
                    sys.stdout.flush()
                    left = None if left is None else left - 1
                    if left == 0:
                        break
    except BrokenPipeError:
        hush()
    except StoreUnavailable as error:
        complain(f"cannot read {shown(wanted.url)}: {error}")
        return Exit.FAILED
    except asyncio.CancelledError:
        if not ending.stop.is_set():
            raise
    return ending.status


async def _next(source: AsyncGenerator[Event], ending: Ending) -> Event | None:
    """Get the next event, None when there is a reason to end."""
    coming = asyncio.ensure_future(anext(source))
    stopping = asyncio.ensure_future(ending.stop.wait())
    try:
        await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
        return None if ending.stop.is_set() else coming.result()
    finally:
        for task in (coming, stopping):
            task.cancel()
        await asyncio.gather(coming, stopping, return_exceptions=True)


async def _from_stream(wanted: Tail, stack: AsyncExitStack) -> AsyncGenerator[Event]:
    key = wanted.key or Keyspace(wanted.namespace).stream
    reader = StreamReader(
        wanted.url,
        namespace=wanted.namespace,
        key=dead_of(key) if wanted.dead else key,
        start=wanted.start or NOW,
        deadline=_DEADLINE,
    )
    await stack.enter_async_context(reader)
    _say(f"{reader.key} of {shown(wanted.url)}")
    async for delivery in reader:
        yield delivery.event


async def _from_channels(wanted: Tail, stack: AsyncExitStack) -> AsyncGenerator[Event]:
    """Get what observers publish, and what the scripts say of circuits and quotas."""
    keyspace = Keyspace(wanted.namespace)
    store = RedisStore(wanted.url, keyspace, deadline=_DEADLINE)
    await store.open()
    stack.push_async_callback(store.close)
    # A server that is not there is said before anything is waited for.
    await store.changed_circuits()
    waiting: asyncio.Queue[Event] = asyncio.Queue(_WAITING)
    overflowed = False
    subscribed = False

    def notify(event: Event) -> None:
        nonlocal overflowed
        if waiting.full():
            waiting.get_nowait()
            if not overflowed:
                complain("events come faster than they can be written: the oldest are left out")
            overflowed = True
        waiting.put_nowait(event)

    def on_gap() -> None:
        nonlocal subscribed
        if subscribed:
            complain(
                "the connection was lost and is back: what was published meanwhile is not here"
            )
        else:
            _say(f"{keyspace.events} of {shown(wanted.url)}")
        subscribed = True

    async def follow() -> None:
        async with listen(store, wanted.namespace, on_gap=on_gap) as events:
            async for event in events:
                notify(event)

    listener = ControlListener(store, wanted.namespace, notify=notify, resync=_nothing)
    await stack.enter_async_context(listener)
    following = asyncio.create_task(follow())
    stack.push_async_callback(_ended, following)
    while True:
        yield await waiting.get()


async def _nothing(key: str | None = None, /) -> Iterable[Mapping[str, str]]:
    """Tell of no state: what is shown is what happens."""
    del key
    return ()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _say(what: str) -> None:
    sys.stderr.write(f"stanchion: events of {what}; Ctrl-C to end\n")
    sys.stderr.flush()


def _value(document: Mapping[str, Any], field: str) -> object:
    """Get what is at a dotted path of the data, or else an attribute of that name."""
    found: object = document.get("data")
    for name in field.split("."):
        found = cast("dict[str, object]", found).get(name) if isinstance(found, dict) else None
    return document.get(field) if found is None else found


def _is_like(value: object, pattern: str) -> bool:
    text = value if isinstance(value, str) else json.dumps(value)
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(text, pattern.replace("[", "[[]"))
    return text == pattern
