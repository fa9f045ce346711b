"""A file of lines that several processes may append to, and that may be moved under them."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.events.cloudevents import parse_time
from stanchion.observers.rotation import Archive

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from stanchion.observers.rotation import Rotation

_log = logging.getLogger("stanchion.observers")
_BLOCK: Final = 1 << 16
_AT_ONCE: Final = 1 << 20  # bytes in one write, but at least one line


class AppendFailed(Exception):
    """The first `count` lines are in the file, and nothing of the others."""

    def __init__(self, count: int, error: OSError) -> None:
        super().__init__(count, error)
        self.count = count
        self.error = error


class AppendedFile:
    """Appends whole lines or nothing; thread-safe, and safe beside others that use this class.

    The file is opened again when it is no longer what stands at its path, so it may be moved or
    removed. A line that a killed process left half written is taken out before the next is written.
    """

    def __init__(self, path: Path, mode: int, rotation: Rotation) -> None:
        self._path = path
        self._mode = mode
        self._rotation = rotation
        self._archive = Archive(path, rotation)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._born = 0.0
        self._grows = False

    def open(self) -> None:
        """Make the file and its directory if need be, and tidy up after the last process.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock, self._exclusive():
            pass
        self._archive.tidy_soon()

    def append(self, lines: Sequence[bytes], *, durable: bool) -> None:
        """Append lines, each with its end; `durable` waits until the disk has them.

        Raises:
            AppendFailed: not all of them could be written.
        """
        done = 0
        try:
            with self._lock:
                while done < len(lines):
                    with self._exclusive() as file:
                        if self._rotate_if_due(file, len(lines[done])):
                            continue
                        done += self._write(file, lines[done:], durable=durable)
        except AppendFailed as failed:
            raise AppendFailed(done + failed.count, failed.error) from failed.error
        except OSError as error:
            raise AppendFailed(done, error) from error

    def sync(self) -> None:
        """Wait until the disk has what was appended.

        Raises:
            OSError: it may not have it.
        """
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)

    def close(self, *, durable: bool, timeout: float) -> None:
        """Let go of the file; give the compressing of older ones `timeout` seconds to end.

        Raises:
            OSError: the disk may not have what was appended.
        """
        try:
            if durable:
                self.sync()
        finally:
            with self._lock:
                self._let_go()
        self._archive.wait(timeout)

    # ----------------------------------------------------------------------------- the one file

    @contextmanager
    def _exclusive(self) -> Generator[int]:
        """Hold the file that stands at the path, with nobody else in it and only whole lines."""
        while True:
            file = self._opened()
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._stands(file):
                break
            self._let_go()
        try:
            self._repair(file)
            yield file
        finally:
            if self._file == file:
                fcntl.flock(file, fcntl.LOCK_UN)

    def _opened(self) -> int:
        if self._file is not None:
            return self._file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK
        try:
            file = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, self._mode)
            os.fchmod(file, self._mode)  # whatever the umask
        except FileExistsError:
            file = os.open(self._path, flags | os.O_CREAT, self._mode)
        self._file = file
        if not stat.S_ISREG(os.fstat(file).st_mode):
            self._let_go()
            raise OSError(errno.EINVAL, "not a regular file", str(self._path))
        self._born = _born(file)
        return file

    def _stands(self, file: int) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(file))

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _repair(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size == 0 or os.pread(file, 1, size - 1) == b"\n":
            return
        begin = _end_of_lines(file, size)
        rest = os.pread(file, size - begin, begin)
        if _is_json(rest):
            os.write(file, b"\n")
            return
        os.ftruncate(file, begin)
        _log.warning("%s ended in half a line: %d bytes were cut off", self._path, len(rest))

    def _write(self, file: int, lines: Sequence[bytes], *, durable: bool) -> int:
        size = os.fstat(file).st_size
        chosen = self._fitting(lines, size)
        data = memoryview(b"".join(chosen))
        written = 0
        try:
            while written < len(data):
                written += os.write(file, data[written:])
            if durable:
                os.fsync(file)
        except OSError as error:
            # After a failed fsync nobody knows what the disk has, so all of it is taken back.
            whole = 0 if written == len(data) else _whole(chosen, written)
            kept = sum(map(len, chosen[:whole]))
            with suppress(OSError):  # if that fails as well, it is repaired before the next line
                os.ftruncate(file, size + kept)
            raise AppendFailed(whole, error) from error
        return len(chosen)

    def _fitting(self, lines: Sequence[bytes], size: int) -> list[bytes]:
        room = _AT_ONCE
        if self._rotation.max_bytes is not None and not self._grows:
            room = min(room, self._rotation.max_bytes - size)
        chosen, used = [lines[0]], len(lines[0])
        for text in lines[1:]:
            used += len(text)
            if used > room:
                break
            chosen.append(text)
        return chosen

    def _rotate_if_due(self, file: int, more: int) -> bool:
        now = time.time()
        size = os.fstat(file).st_size
        if not self._rotation.is_due(size, more, now - self._born):
            return False
        try:
            self._archive.take(now)
        except OSError as error:
            # A file that grows is better than events that are lost.
            if not self._grows:
                _log.error("%s cannot be rotated and grows: %s", self._path, error.strerror)
            self._grows = True
            return False
        self._grows = False
        self._let_go()
        self._archive.tidy_soon()
        return True


def _whole(lines: Sequence[bytes], written: int) -> int:
    count = 0
    for text in lines:
        written -= len(text)
        if written < 0:
            break
        count += 1
    return count


def _end_of_lines(file: int, size: int) -> int:
    """Get the place after the last end of a line, 0 where there is none."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _born(file: int) -> float:
    """Get when the file's first event was, which is what its age is counted from."""
    first = os.pread(file, _BLOCK, 0).partition(b"\n")[0]
    try:
        document = cast("dict[str, Any]", json.loads(first))
        return parse_time(document["time"]).timestamp()
    except (ValueError, RecursionError, KeyError, TypeError):
        there = os.fstat(file)
        return there.st_mtime if there.st_size else time.time()
