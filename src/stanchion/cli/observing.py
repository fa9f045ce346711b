"""`stanchion observe`: sinks in a process of their own, so that workers need none of them."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stanchion import ConfigError, EventBus
from stanchion.cli.ending import Ending
from stanchion.cli.output import Exit, complain
from stanchion.cli.places import check_shared, shown
from stanchion.config import Settings, read_settings
from stanchion.errors import StoreUnavailable
from stanchion.observers import listen
from stanchion.observers.registration import Registration
from stanchion.observers.relay import Relay, check_no_circle, names_of, selector_of
from stanchion.observers.streams import StreamReader
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from stanchion.observers.stats import ObserverStats

_DEADLINE: Final = 2.0
_COUNTERS: Final = ("received", "delivered", "failed", "timed_out", "dropped", "retried", "queued")


@dataclass(frozen=True, slots=True)
class Observe:
    """What to run and where its events come from; `start` is None for pub/sub."""

    config: Path
    start: str | None
    key: str | None
    group: str
    claim_after: str
    every: float
    drain: float
    attempts: int
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Report:
    """One observer's numbers.

    `behind` are entries that its group has not been handed, and `missed` those that were trimmed
    before it was. `dead` are kept as dead letters; None where there is no stream.
    """

    name: str
    stats: ObserverStats
    behind: int | None = None
    missed: int = 0
    dead: int | None = None

    def document(self) -> dict[str, Any]:
        numbers = {name: getattr(self.stats, name) for name in _COUNTERS}
        lag = round(self.stats.lag, 3)
        state = self.stats.state.value
        stream = {"behind": self.behind, "missed": self.missed, "dead": self.dead}
        return {**numbers, "lag": lag, "state": state, **stream}

    def text(self) -> str:
        stats = self.stats
        words = [f"{stats.delivered:,} delivered"]
        lost = stats.failed + stats.timed_out + stats.dropped
        waiting = stats.queued + stats.in_hand
        words += [f"{lost:,} not"] if lost else []
        words += [f"{self.dead:,} dead letters"] if self.dead else []
        words += [f"{waiting:,} waiting"] if waiting else []
        words += [f"{self.behind:,} behind"] if self.behind else []
        words += [f"{self.missed:,} trimmed unread"] if self.missed else []
        words += [f"{stats.lag:.1f} s late"] if stats.lag >= 1 else []
        return f"{self.name}: {', '.join(words)} ({stats.state})"


async def observe(wanted: Observe) -> Exit:
    """Run the observers of a file until SIGTERM or Ctrl-C, and then deliver what is in hand.

    Raises:
        ConfigError: the file, or something in it, cannot work here.
    """
    settings = read_settings(wanted.config)
    check_shared(settings.url)
    if not settings.observers:
        raise ConfigError(f"{wanted.config}: observers: expected one at least")
    keyspace = Keyspace(settings.namespace)
    key = None if wanted.start is None else wanted.key or keyspace.stream
    check_no_circle(settings.observers, settings.url, key)
    store = RedisStore(settings.url, keyspace, deadline=_DEADLINE)
    ending = Ending()
    try:
        with ending.listening():
            await store.open()
            # A server that is not there is said at once.
            await store.changed_circuits()
            run = _pub_sub if key is None else _stream
            return await run(wanted, settings, store, ending)
    except StoreUnavailable as error:
        complain(f"cannot read {shown(settings.url)}: {error}")
        return Exit.FAILED
    except asyncio.CancelledError:
        if not ending.stop.is_set():
            raise
        return ending.status
    finally:
        await store.close()


# ----------------------------------------------------------------------------------- from pub/sub


async def _pub_sub(wanted: Observe, settings: Settings, store: RedisStore, ending: Ending) -> Exit:
    keyspace = Keyspace(settings.namespace)
    bus = EventBus(store, keyspace, observers=settings.observers, redact=settings.redact)

    def reports() -> list[_Report]:
        return [_Report(name, stats) for name, stats in bus.observers.stats().items()]

    async def follow() -> None:
        async with listen(store, settings.namespace, on_gap=began) as events:
            async for event in events:
                await bus.observers.notify_with_backpressure(event)

    def began() -> None:
        _say(f"observing {keyspace.events} of {shown(settings.url)}: {', '.join(names)}")

    await bus.open()
    names = list(bus.observers.stats())
    tasks = [asyncio.create_task(follow()), _telling(wanted, reports)]
    tasks.append(asyncio.create_task(_until(ending.stop)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await _cancelled(tasks)
        unfinished = await bus.observers.close(wanted.drain)
    finally:
        await _cancelled(tasks)
        await bus.close()
    _tell(wanted, reports(), final=True)
    _raise_first(tasks)
    lost = {name: left.events for name, left in unfinished.items() if left.events}
    for name, number in lost.items():
        complain(f"{name} did not take {number} events in time: they are lost")
    return Exit.FAILED if lost and ending.status is Exit.OK else ending.status


# ---------------------------------------------------------------------------------- from a stream


async def _stream(wanted: Observe, settings: Settings, store: RedisStore, ending: Ending) -> Exit:
    relays: list[Relay] = []
    names = names_of(settings.observers)
    for name, one in zip(names, settings.observers, strict=True):
        reader = StreamReader(
            store,
            namespace=settings.namespace,
            key=wanted.key,
            group=f"{wanted.group}.{name}",
            start=wanted.start or "0",
            claim_after=wanted.claim_after,
            on=selector_of(one),
            deadline=_DEADLINE,
        )
        registration = Registration(one.observer, {**one.terms, "name": name})
        relays.append(
            Relay(
                registration,
                reader,
                channel=store,
                namespace=settings.namespace,
                redact=settings.redact,
                attempts=wanted.attempts,
            )
        )
    for relay in relays:
        for other in relays:
            relay.watch(other)
    behind: dict[str, int | None] = {}

    def reports() -> list[_Report]:
        return [
            _Report(
                relay.name,
                relay.stats,
                behind.get(relay.name),
                relay.reader.stats.missed,
                relay.dead,
            )
            for relay in relays
        ]

    async def look() -> None:
        for relay in relays:
            behind[relay.name] = (await relay.reader.backlog()).behind

    key = relays[0].reader.key
    runs = [asyncio.create_task(relay.run(ending.stop, wanted.drain)) for relay in relays]
    telling = _telling(wanted, reports, look)
    _say(f"observing {key} of {shown(settings.url)}: {', '.join(names)}")
    try:
        await asyncio.wait([*runs, telling], return_when=asyncio.FIRST_COMPLETED)
        ending.end()  # where one of them failed, so that the others end as well
        await asyncio.wait(runs)
    finally:
        await _cancelled([*runs, telling])
    _tell(wanted, reports(), final=True)
    _raise_first([*runs, telling])
    return ending.status


# -------------------------------------------------------------------------------------- telling


def _telling(
    wanted: Observe,
    reports: Callable[[], list[_Report]],
    look: Callable[[], Awaitable[None]] | None = None,
) -> asyncio.Task[None]:
    async def tell() -> None:
        while True:
            await asyncio.sleep(wanted.every)
            if look is not None:
                try:
                    await look()
                except StoreUnavailable as error:
                    complain(f"cannot see how far behind the observers are: {error}")
            _tell(wanted, reports())

    return asyncio.create_task(tell())


def _tell(wanted: Observe, reports: list[_Report], *, final: bool = False) -> None:
    if wanted.as_json:
        observers = {report.name: report.document() for report in reports}
        sys.stdout.write(json.dumps({"final": final, "observers": observers}) + "\n")
        sys.stdout.flush()
        return
    for report in reports:
        _say(report.text())


def _say(text: str) -> None:
    sys.stderr.write(f"stanchion: {text}\n")
    sys.stderr.flush()


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
