"""Noticing that all shared state has been lost: once for each loss, and in every process alike."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from stanchion.errors import ConfigError, StanchionError
from stanchion.events import StateLost
from stanchion.observers.origin import same_id, told_to_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion.events import Event
    from stanchion.store.epoch import Epoch
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store

_log = logging.getLogger("stanchion.bus")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Seconds between two looks at most, and while the server does not answer.
EVERY: Final = 5.0
AGAIN: Final = 0.5
# How a namespace is spread that is not.
WHOLE: Final = "not at all"


class EpochWatch:
    """Asks the store in the background which life of the state this is, and compares.

    What this process knew before shows that state has been lost; decisions whose policies declare a
    `cold_start` find that out by themselves, in the call that decides. `lost` is called with the
    hash tag, before observers are told.
    """

    def __init__(
        self,
        store: Store,
        keyspace: Keyspace,
        *,
        notify: Callable[[Event], None],
        lost: Callable[[str], None],
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._spread = WHOLE if keyspace.sharding is None else str(keyspace.sharding)
        self._odd = ""
        self._notify = notify
        self._lost = lost
        self._known: dict[str, str] = {}
        self._due = asyncio.Event()
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch in the background; the server may be away."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            # In an empty context: this outlives whatever run happens to open the bus.
            self._task = loop.create_task(self._watch(), name="stanchion epochs", context=Context())

    async def close(self) -> None:
        """Stop watching."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def looked(self) -> None:
        """Wait until the first look is over, whatever came of it."""
        await self._looked.wait()

    def check(self) -> None:
        """Check, as far as is known, that all processes spread the namespace alike.

        Raises:
            ConfigError: this one does otherwise than those before it.
        """
        if self._odd:
            raise ConfigError(f"shard_by: {self._odd}")

    def look(self) -> None:
        """Look at once: after what has happened, the state may be another."""
        self._due.set()

    async def _watch(self) -> None:
        while True:
            self._due.clear()
            answered = [await self._greet(tag) for tag in self._store.tags]
            self._looked.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY if all(answered) else AGAIN):
                    await self._due.wait()

    async def _greet(self, tag: str) -> bool:
        try:
            home = tag == self._keyspace.tag
            epoch = await self._store.epoch(tag, spread=self._spread if home else "")
        except StanchionError as error:
            _log.debug("whether state was lost is not known: %s", error)
            return False
        known = self._known.get(tag)
        self._known[tag] = epoch.id
        if known not in {None, epoch.id} and epoch.lost_us:
            self._tell(epoch)
        if home:
            self._compare(epoch)
        return True

    def _compare(self, epoch: Epoch) -> None:
        """See that all processes look for a subject in the same place, or decide nothing."""
        odd = ""
        if epoch.spread and epoch.spread != self._spread:
            odd = (
                f"namespace {self._keyspace.namespace!r} is spread otherwise: {epoch.spread}, and "
                f"here {self._spread}; to change it, stop every process, and delete "
                f"{self._keyspace.epoch}"
            )
        if odd != self._odd:
            self._odd = odd
            self._store.shut(odd)
            if odd:
                _log.error("everything is vetoed: %s", odd)

    def _tell(self, epoch: Epoch) -> None:
        at = _EPOCH + timedelta(microseconds=epoch.lost_us)
        _log.warning(
            "all shared state under {%s} has been lost, noticed at %s: "
            "limits begin by their cold_start",
            epoch.tag,
            at.isoformat(),
        )
        self._lost(epoch.tag)
        event = StateLost(
            id=same_id(epoch.tag, epoch.id, StateLost.event_type),
            timestamp=at,
            namespace=self._keyspace.namespace,
            tag=epoch.tag,
            epoch=epoch.id,
            previous=epoch.previous,
            lost_at=at,
        )
        self._notify(told_to_all(event))
