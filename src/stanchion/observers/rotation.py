"""When a file of lines has had its time, where it goes then, and how many stay."""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import re
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_log = logging.getLogger("stanchion.observers")
_STAMP: Final = "%Y%m%dT%H%M%S.%fZ"
_STAMPED: Final = r"\.\d{8}T\d{6}\.\d{6}Z(?P<end>\.gz|)"
_PART: Final = ".part"


@dataclass(frozen=True, slots=True)
class Rotation:
    """Limits of one file: bytes, seconds since its first line, and how many older ones stay."""

    max_bytes: int | None
    max_age: float | None
    keep: int
    compress: bool

    def is_due(self, size: int, more: int, age: float) -> bool:
        """Get whether a file of this size and age is full for a line of `more` bytes."""
        if size == 0:
            return False
        too_large = self.max_bytes is not None and size + more > self.max_bytes
        return too_large or (self.max_age is not None and age >= self.max_age)


class Archive:
    """The older files beside one that is written: `<name>.<time of rotation>`, and `.gz`."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self._path = path
        self._rotation = rotation
        self._name = re.compile(re.escape(path.name) + _STAMPED)
        self._busy = threading.Lock()
        self._tidying: threading.Thread | None = None

    def take(self, now: float) -> Path:
        """Move the file that is written out of the way; get where it is now.

        Raises:
            OSError: it cannot be moved.
        """
        micros = round(now * 1e6)
        while (target := self._named(micros)).exists() or Path(f"{target}.gz").exists():
            micros += 1
        self._path.rename(target)
        return target

    def _named(self, micros: int) -> Path:
        stamp = datetime.fromtimestamp(micros // 1_000_000, UTC).replace(
            microsecond=micros % 1_000_000
        )
        return self._path.with_name(f"{self._path.name}.{stamp.strftime(_STAMP)}")

    def files(self) -> list[Path]:
        """Get the older files, the oldest first."""
        found = (entry for entry in self._path.parent.iterdir() if self._name.fullmatch(entry.name))
        return sorted(found, key=lambda file: file.name)

    def tidy_soon(self) -> None:
        """Compress and remove in the background what is due; calling it while it runs is harmless.

        A daemon thread: a process that ends meanwhile leaves work that the next one takes up.
        """
        self._tidying = threading.Thread(target=self._tidy, name="stanchion-rotation", daemon=True)
        self._tidying.start()

    def wait(self, timeout: float) -> bool:
        """Wait until the background has done its work; False when the time is up."""
        if self._tidying is not None:
            self._tidying.join(timeout)
            return not self._tidying.is_alive()
        return True

    def _tidy(self) -> None:
        with self._busy:
            try:
                files = self.files()
                for file in files[: max(0, len(files) - self._rotation.keep)]:
                    file.unlink(missing_ok=True)
                if self._rotation.compress:
                    for file in self.files():
                        if file.suffix != ".gz":
                            _compress(file)
            except OSError as error:
                # Nothing is lost: what could not be done now is done after the next rotation.
                _log.warning("older files of %s are not tidied: %s", self._path, error)


def _compress(file: Path) -> None:
    part, whole = Path(f"{file}.gz{_PART}"), Path(f"{file}.gz")
    with suppress(FileNotFoundError), file.open("rb") as source:
        try:
            # Two processes that write one file compress it once.
            fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not file.exists():
            return
        mode = os.fstat(source.fileno()).st_mode & 0o777
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(descriptor, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, 0) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
                packed.close()
                os.fsync(raw.fileno())
            part.rename(whole)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        file.unlink()
