"""Merging the small files of a lake, so that a crash at any moment loses no row.

A merge is: a marker that names the inputs and the output, the output, the end of the inputs, the
end of the marker. There is one marker for a partition, which only one process can create. Until the
output is there the inputs count, and from then on the output: whoever finds the marker of a process
that died knows from that which of the two to remove.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError, StanchionError
from stanchion.observers.arguments import count, delay
from stanchion.observers.lake.rows import COLUMNS, SUFFIX, batches, digest, parquet, rows_of
from stanchion.observers.lake.stores import Store, Stored

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

_log: Final = logging.getLogger(__name__)
# Readers of hive-partitioned directories pass over what begins with an underscore.
_MARKERS: Final = "_compaction"


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did: files read and written, rows written, rows that were there twice.

    `skipped` partitions are in the hands of another process; `resumed` merges were begun by one
    that did not end them.
    """

    inputs: int = 0
    outputs: int = 0
    rows: int = 0
    duplicates: int = 0
    skipped: int = 0
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class _Marker:
    path: str
    token: str
    inputs: tuple[str, ...]
    output: str

    def text(self) -> bytes:
        fields = {"token": self.token, "inputs": list(self.inputs), "output": self.output}
        return json.dumps(fields).encode()

    @classmethod
    def read(cls, path: str, text: bytes) -> _Marker:
        fields = cast("dict[str, Any]", json.loads(text))
        return cls(path, fields["token"], tuple(fields["inputs"]), fields["output"])


async def compact(
    lake: str | os.PathLike[str] | Any,
    *,
    options: Mapping[str, Any] | None = None,
    prefix: str = "",
    smaller_than: int = 32_000_000,
    file_size: int = 128_000_000,
    settled: timedelta | float | str = "15m",
    stale: timedelta | float | str = "1h",
    timeout: timedelta | float | str = "1m",
) -> Compaction:
    """Merge small files of one date and type into larger ones, each event once.

    No row is missing for a reader at any moment; while inputs are being removed, a reader may see
    rows twice. Where the process ends in the middle, the next compaction that finds the merge
    `stale` ends it. Several processes may compact one lake.

    Args:
        lake: as for `ParquetSink`.
        options: as for `ParquetSink`.
        prefix: only what is below, such as "date=2026-01-31".
        smaller_than: only files of fewer bytes.
        file_size: how many bytes of inputs one merge takes at most; it keeps them in memory.
        settled: seconds since a file was written; a younger one may yet be written again.
        stale: seconds after which a merge that has not ended counts as abandoned.
        timeout: seconds for one request to the store.

    Raises:
        ConfigError: an argument cannot work, or an extra is missing.
        OSError: the store does not work, or not in time; obstore has errors of its own as well.
    """
    if prefix.startswith(("/", "_")):
        raise ConfigError.of("prefix", prefix, 'expected such as "date=2026-01-31", or nothing')
    store = Store(lake, options or {}, seconds(timeout, field="timeout"))
    compactor = _Compactor(
        store,
        smaller_than=count("smaller_than", smaller_than),
        file_size=count("file_size", file_size),
        settled=timedelta(seconds=delay("settled", settled)),
        stale=timedelta(seconds=delay("stale", stale)),
    )
    try:
        await compactor.resume()
        await compactor.merge_all(prefix)
    finally:
        store.close()
    return compactor.done


class _Compactor:
    def __init__(
        self,
        store: Store,
        *,
        smaller_than: int,
        file_size: int,
        settled: timedelta,
        stale: timedelta,
    ) -> None:
        self._store = store
        self._smaller_than = smaller_than
        self._file_size = file_size
        self._settled = settled
        self._stale = stale
        self.done: Compaction = Compaction()

    async def resume(self) -> None:
        """End the merges that were abandoned."""
        before = datetime.now(UTC) - self._stale
        abandoned = [one async for one in self._store.list(_MARKERS) if one.written <= before]
        for one in abandoned:
            with suppress(FileNotFoundError):  # another process was faster
                marker = _Marker.read(one.path, await self._store.get(one.path))
                _log.info("a merge of %d files is resumed: %s", len(marker.inputs), marker.output)
                if await self._store.has(marker.output):
                    await self._store.delete(marker.inputs)
                await self._store.delete([marker.path])
                self.done = replace(self.done, resumed=self.done.resumed + 1)

    async def merge_all(self, prefix: str) -> None:
        """Merge what there is to merge, partition by partition."""
        before = datetime.now(UTC) - self._settled
        partitions: dict[str, list[Stored]] = {}
        async for one in self._store.list(prefix):
            small = one.size < self._smaller_than and one.written <= before
            if small and one.path.endswith(SUFFIX):
                partitions.setdefault(one.path.rpartition("/")[0], []).append(one)
        for directory, files in sorted(partitions.items()):
            for group in self._groups(files):
                if not await self._merge(directory, group):
                    self.done = replace(self.done, skipped=self.done.skipped + 1)
                    break

    def _groups(self, files: Iterable[Stored]) -> Iterable[list[str]]:
        """Get the inputs of each merge: neighbours in time, as many as the size allows."""
        group: list[str] = []
        held = 0
        for one in sorted(files, key=lambda one: one.path):
            if group and held + one.size > self._file_size:
                if len(group) > 1:
                    yield group
                group, held = [], 0
            group.append(one.path)
            held += one.size
        if len(group) > 1:
            yield group

    async def _merge(self, directory: str, inputs: Sequence[str]) -> bool:
        first = inputs[0].rpartition("/")[2].partition("-")[0].removesuffix(SUFFIX)
        # Named after its inputs: whoever merges the same files writes the same one.
        output = f"{directory}/{first}-{digest(inputs)}-merged{SUFFIX}"
        place = f"{_MARKERS}/{digest([directory])}.json"
        marker = _Marker(place, uuid.uuid4().hex, tuple(inputs), output)
        try:
            await self._store.put(marker.path, marker.text(), new=True)
        except FileExistsError:
            return False
        try:
            bodies = {path: await self._store.get(path) for path in inputs}
            body, rows, duplicates = await asyncio.to_thread(_merged, bodies)
        except FileNotFoundError:
            # Another process has merged them since we looked.
            await self._store.delete([marker.path])
            return False
        except Exception:
            await self._store.delete([marker.path])  # nothing has been changed
            raise
        # Where this fails, nobody knows what is there: the marker stays, and is resumed.
        await self._store.put(output, body)
        if not await self._is_ours(marker):
            _log.warning("a merge took longer than it may, another process has taken it over")
            return False
        await self._store.delete(inputs)
        await self._store.delete([marker.path])
        done = self.done
        self.done = replace(
            done,
            inputs=done.inputs + len(inputs),
            outputs=done.outputs + 1,
            rows=done.rows + rows,
            duplicates=done.duplicates + duplicates,
        )
        return True

    async def _is_ours(self, marker: _Marker) -> bool:
        with suppress(FileNotFoundError):
            found = _Marker.read(marker.path, await self._store.get(marker.path))
            return found.token == marker.token
        return False


def _merged(bodies: Mapping[str, bytes]) -> tuple[bytes, int, int]:
    """Get one file of all rows, how many it has, and how many were left out as duplicates."""
    readers = {path: batches(body) for path, body in bodies.items()}
    for path, reader in readers.items():
        if reader.schema.names != COLUMNS:
            raise StanchionError(f"{path} is no file of this lake: it has other columns")
    seen: set[tuple[str, str]] = set()
    read = 0

    def fresh() -> Iterable[Any]:
        nonlocal read
        for reader in readers.values():
            for batch in reader:
                keys = list(zip(batch["source"].to_pylist(), batch["id"].to_pylist(), strict=True))
                read += len(keys)
                first = [number for number, key in enumerate(keys) if is_first(key)]
                yield batch if len(first) == len(keys) else rows_of(batch, first)

    def is_first(key: tuple[str, str]) -> bool:
        if key in seen:
            return False
        seen.add(key)
        return True

    return parquet(fresh()), len(seen), read - len(seen)
