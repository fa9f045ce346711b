"""Events to a data lake: Parquet files by date and type, on a disk or in an object store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from stanchion.durations import seconds
from stanchion.events import Selector, check_selector
from stanchion.observers.arguments import count, delay
from stanchion.observers.failures import Refused, undelivered
from stanchion.observers.lake.compaction import Compaction, compact
from stanchion.observers.lake.rows import partition, schema
from stanchion.observers.lake.stores import Store, cause

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from stanchion.events import Event
    from stanchion.observers.lake.rows import Part

__all__ = ["Compaction", "ParquetSink", "compact"]


class ParquetSink:
    """Writes each batch as Parquet files below `date=YYYY-MM-DD/type=<type>/`.

    The date is the event's own, in UTC. A batch counts as delivered when all its files are stored;
    each appears whole or not at all. Files are named after the events in them, so a batch that is
    sent again replaces its own files; an event that comes again in another batch is a row more,
    with the same `id`, until `compact` has merged the two.

    The manager's queue is the buffer: it hands over `batch_size` events, or what there is once the
    oldest has waited for `batch_delay`. By default it has room for two batches.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        lake: str | os.PathLike[str] | Any,
        *,
        on: Selector = "*",
        options: Mapping[str, Any] | None = None,
        batch_size: int = 500,
        batch_delay: timedelta | float | str = 30.0,
        file_size: int = 64_000_000,
        timeout: timedelta | float | str = 4.0,
    ) -> None:
        """Say where the lake is.

        Args:
            lake: a directory, a URL such as "s3://bucket/prefix" or "az://container/prefix", or a
                store of obstore's.
            on: which events.
            options: how to reach a bucket, in obstore's words: `region`, `endpoint`,
                `access_key_id`, ...; never shown. What is not named comes from the environment.
            batch_size: the most events in one batch.
            batch_delay: seconds that a batch may wait to fill.
            file_size: the most bytes of text in one file, before it is packed.
            timeout: seconds for one batch.

        Raises:
            ConfigError: an argument cannot work, or obstore or arro3 is not installed.
        """
        check_selector(on)
        self.on: Selector = on
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        self._file_size = count("file_size", file_size)
        self._timeout = seconds(timeout, field="timeout")
        schema()  # or else the extra is missing
        self._store = Store(lake, options or {}, self._timeout)

    def __repr__(self) -> str:
        return f"ParquetSink({self._store.name!r})"

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Store a batch.

        Raises:
            Undelivered: some or all of it could not be stored within the deadline.
        """
        # Making rows of events takes its time, which the loop has not.
        parts, failures = await asyncio.to_thread(partition, events, self._file_size)
        refusals: dict[str, Refused] = {}

        async def store(part: Part) -> None:
            """Store one file, or note why not."""
            try:
                await self._store.put(part.path, part.body)
            except Exception as error:  # noqa: BLE001 - told below, for the events concerned
                refusals[part.path] = Refused(cause(error))

        # All at once, so that the deadline of each is that of the batch.
        await asyncio.gather(*(store(part) for part in parts))
        failures.extend(
            (event, refusals[part.path])
            for part in parts
            if part.path in refusals
            for event in part.events
        )
        if failures:
            raise undelivered(failures, lambda _: False)

    async def close(self) -> None:
        """Let go of the threads that talk to the store."""
        self._store.close()
