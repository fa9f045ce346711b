"""Events in a file, one CloudEvents JSON document a line."""

from __future__ import annotations

import json
import logging
import re
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import InvalidEvent, check_selector
from stanchion.observers.appending import AppendedFile, AppendFailed
from stanchion.observers.arguments import choice, count
from stanchion.observers.delivery import Undelivered
from stanchion.observers.rotation import Rotation

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from datetime import timedelta

    from stanchion.events import Event, Selector

_log = logging.getLogger("stanchion.observers")
_SIZE: Final = re.compile(r"(\d+)\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_UNIT: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_OWNER: Final = 0o600  # what we need to write it, and to repair it
_CLOSE: Final = 0.5  # seconds that the compressing of an older file may hold up the end


class Fsync(StrEnum):
    """When the sink waits for the disk."""

    NEVER = "never"
    BATCH = "batch"
    INTERVAL = "interval"


class JsonlSink:
    """Appends each event as one line of CloudEvents JSON to a file.

    Several processes may write one file. It is rotated by size and age, and opened again when
    something else has moved it. There are only whole lines in it: what could not be written, as on
    a full disk, is taken out and reported, and what a killed process left half written is removed.
    """

    idempotent: ClassVar[bool] = True
    batch_delay: Final = 0.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int | str | None = "100MB",
        max_age: timedelta | float | str | None = None,
        keep: int = 10,
        compress: bool = False,
        fsync: Fsync | str = Fsync.INTERVAL,
        fsync_every: timedelta | float | str = "1s",
        mode: int | str = _OWNER,
        batch_size: int = 500,
        on: Selector = "*",
    ) -> None:
        """Choose the file; nothing is opened before `start`.

        Args:
            path: the file; its directory is made where there is none.
            max_bytes: rotate before the file gets larger, as a number or "100MB"; None: never.
            max_age: rotate, with the next event, when the first one is older; None: never.
            keep: how many rotated files stay; the oldest are removed.
            compress: whether rotated files are compressed (gzip).
            fsync: "batch" waits for the disk before a batch counts as delivered, "interval" every
                `fsync_every`, "never" leaves it to the system. A killed process loses nothing
                either way; it is the machine's end that matters.
            fsync_every: at most so much is lost with the machine under "interval".
            mode: permissions of a file that is made here, as 0o600 or "0600".
            batch_size: the most events in one write.
            on: the events to write.

        Raises:
            ConfigError: an argument cannot work.
        """
        self._path = _file(path)
        self._fsync = choice(Fsync, "fsync", fsync)
        self._every = seconds(fsync_every, field="fsync_every")
        rotation = Rotation(
            None if max_bytes is None else _size(max_bytes),
            None if max_age is None else seconds(max_age, field="max_age"),
            count("keep", keep, least=0),
            _flag("compress", compress),
        )
        self._file = AppendedFile(self._path, _mode(mode), rotation)
        self.batch_size = count("batch_size", batch_size)
        check_selector(on)
        self.on: Selector = on
        self._timer: threading.Timer | None = None
        self._timing = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def start(self) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be written.
        """
        self._file.open()

    def handle_batch(self, events: Sequence[Event]) -> None:
        """Append these events; waits for the disk, so it runs in a thread.

        Raises:
            Undelivered: some could not be written; nothing of them is in the file.
        """
        lines: list[tuple[Event, bytes]] = []
        refused: list[Event] = []
        problem = ""
        for event in events:
            try:
                lines.append((event, _line(event)))
            except InvalidEvent as error:
                refused.append(event)
                problem = f"{event.event_type} is no JSON: {error.attribute}"
        try:
            durable = self._fsync is Fsync.BATCH
            self._file.append([text for _, text in lines], durable=durable)
        except AppendFailed as failed:
            left = [event for event, _ in lines[failed.count :]]
            reason = f"{self._path}: {failed.error.strerror or type(failed.error).__name__}"
            # Those that cannot be written are among them, and are refused when there is room.
            raise Undelivered([*left, *refused], reason) from failed.error
        if self._fsync is Fsync.INTERVAL:
            self._sync_later()
        if refused:
            raise Undelivered(refused, problem, permanent=True)

    def close(self) -> None:
        """Write to the disk what it may not have yet, and let go of the file.

        Raises:
            OSError: the disk did not take it.
        """
        with self._timing:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._file.close(durable=self._fsync is not Fsync.NEVER, timeout=_CLOSE)

    def _sync_later(self) -> None:
        with self._timing:
            if self._timer is None:
                self._timer = threading.Timer(self._every, self._sync)
                self._timer.daemon = True
                self._timer.start()

    def _sync(self) -> None:
        # First, so that what is written while the disk works gets a timer of its own.
        with self._timing:
            self._timer = None
        try:
            self._file.sync()
        except OSError as error:
            _log.error("%s: the disk may have lost lines: %s", self._path, error.strerror)


def _line(event: Event) -> bytes:
    document = event.to_cloudevent()
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _file(path: object) -> Path:
    try:
        file = Path(cast("str", path))
    except TypeError:
        raise ConfigError.of("path", path, "expected the path of a file") from None
    if not file.name or file.is_dir():
        raise ConfigError.of("path", str(path), "expected the path of a file, not a directory")
    return file.absolute()


def _size(value: object) -> int:
    size = value
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        size = int(found[1]) * _UNIT[found[2]]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError.of("max_bytes", value, 'expected bytes, or text such as "100MB", "1GiB"')
    return size


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError.of(field, value, "expected true or false")
    return value


def _mode(value: object) -> int:
    mode = value
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{3,4}", value):
        mode = int(value.removeprefix("0o"), 8)
    valid = isinstance(mode, int) and not isinstance(mode, bool) and 0 <= mode <= 0o777
    # In YAML 0600 is six hundred: not a mode that lets the owner write.
    if not valid or cast("int", mode) & _OWNER != _OWNER:
        raise ConfigError.of("mode", value, 'expected text such as "0600", which the owner may use')
    return cast("int", mode)
