"""A process of the linearizability test; spoken to as the other workers are."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
from pathlib import Path
from typing import Any

from stanchion import EventBus
from stanchion.store.keys import Keyspace
from tests.contention.calls import NAMESPACE
from tests.contention.mix import Caller
from tests.contention.sequenced import SequencedStore
from tests.contention.worker import serve, told


class Deeds:
    def __init__(self, store: SequencedStore, bus: EventBus, chance: random.Random) -> None:
        self._store, self._bus, self._chance = store, bus, chance

    async def warm(self) -> int:
        await self._store.execute("PING")
        return os.getpid()

    async def call(self, seconds: float, pause: float, directory: str) -> Any:
        """Call for so long; the log goes to a file, of which this gets the name, and a tally."""
        caller = Caller(self._bus, self._chance)
        await caller.call(seconds, pause)
        path = Path(directory, f"{os.getpid()}.log")
        await asyncio.to_thread(path.write_bytes, pickle.dumps(self._store.log))
        return str(path), dict(caller.done)

    async def leave(self) -> None:
        await self._store.close()


async def work(url: str, policies: list[Any]) -> None:
    keyspace, chance = Keyspace(NAMESPACE), random.Random()
    store = SequencedStore(url, keyspace, chance)
    # What a process denies by itself no script has seen.
    bus = EventBus(store, keyspace, policies=policies, deadline=30, cache_denials=False)
    # The store alone: what a bus does in the background would be calls that nobody logs.
    await store.open()
    await serve(Deeds(store, bus, chance))


if __name__ == "__main__":
    asyncio.run(work(*told()))
