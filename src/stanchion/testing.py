"""For tests of code that uses a bus: everything in this process, and time that the test moves."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from stanchion.bus import EventBus
from stanchion.durations import micros
from stanchion.errors import ConfigError
from stanchion.observers import Recorder
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from datetime import timedelta

    from stanchion.chain import AnyPolicy
    from stanchion.observers import AnyObserver, Registration

CLOCK_KEY = "stanchion:test:clock"
# 1 January 2026, so that a test sees the same calendar windows each time.
START_US = 1_767_225_600_000_000


class TestClock:
    """The time that a bus of `memory_bus` goes by; it stands still until it is moved."""

    __test__ = False

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._now_us = START_US

    @property
    def now_us(self) -> int:
        """Microseconds since the epoch."""
        return self._now_us

    async def advance(self, by: timedelta | float | str) -> None:
        """Move time forward by a duration; text such as "90s" will do.

        Raises:
            ConfigError: not a duration above zero.
        """
        await self.set_us(self._now_us + micros(by, field="by"))

    async def set_us(self, now_us: int) -> None:
        """Put the time at a moment, in microseconds since the epoch.

        Raises:
            ConfigError: the moment is not a whole number below 2^53.
        """
        if type(now_us) is not int or not 0 < now_us < 2**53:
            raise ConfigError.of("now_us", now_us, "expected microseconds since the epoch")
        await self._store.execute("SET", CLOCK_KEY, str(now_us), "EX", "86400")
        self._now_us = now_us


class TestBus(EventBus):
    """An `EventBus` on `memory://` with a `clock` to move, and a `recorder` of every event."""

    __test__ = False

    clock: TestClock
    recorder: Recorder

    async def listening(self, timeout: float = 5.0) -> bool:
        """Wait until changes of shared state are heard; False when `timeout` seconds passed."""
        return await self._listener.synced(timeout)


@asynccontextmanager
async def memory_bus(
    *policies: AnyPolicy,
    observers: Iterable[AnyObserver | Registration] = (),
    namespace: str = "test",
    url: str = "memory://",
) -> AsyncGenerator[TestBus]:
    """Get an open bus whose policies see only the time that the test sets.

    The policies decide by the same scripts as in production. `url` takes the same bus to a real
    server; then time must move by less than the server's own expiry of keys would notice.
    """
    keyspace = Keyspace(namespace)
    store = RedisStore(url, keyspace, clock="include/manual_clock")
    recorder = Recorder()
    # Denials are kept by the process's own clock, which the test does not move.
    told = [recorder, *observers]
    bus = TestBus(store, keyspace, policies=policies, observers=told, cache_denials=False)
    bus.clock, bus.recorder = TestClock(store), recorder
    await store.open()
    await bus.clock.set_us(START_US)
    async with bus:
        # Pub/sub keeps nothing for late comers; a test is to see what its first call publishes.
        await bus.listening()
        yield bus
