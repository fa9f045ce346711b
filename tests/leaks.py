"""What a test must not leave behind: processes, connections, tasks, keys that never expire."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import signal
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.waiting import eventually, eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.servers import RealServer

#: Keys that are meant to stay until somebody removes them.
PERMANENT = ("stanchion:*:overrides", "stanchion:*:halts")
OURS = "stanchion:*"
GRACE = 3.0

# Every process that a test starts, however far down and even with another parent, inherits this.
_MARK = "STANCHION_TEST_SESSION"
_SESSION = uuid.uuid4().hex
os.environ[_MARK] = _SESSION


class Process(NamedTuple):
    """A process that descends from this test session."""

    pid: int
    command: str


def descendants() -> dict[int, Process]:
    """Get the processes that this session or its descendants started; none without /proc."""
    if sys.platform != "linux":
        return {}
    mark = f"{_MARK}={_SESSION}".encode()
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # It may end while we look.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                pid, parent = int(entry.name), _parent(entry.path)
                if parent is not None:
                    parents[pid] = parent
                    if mark in Path(entry.path, "environ").read_bytes():
                        marked.add(pid)
    # A server overwrites its environment with its title: it is known by its parent.
    roots = marked | {os.getpid()}
    found = {pid for pid in parents if _descends(pid, roots, parents)} | marked - {os.getpid()}
    return {pid: Process(pid, _command(pid)) for pid in found}


def running(pid: int) -> bool:
    """Get whether a process is there and has not ended."""
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or _parent(f"/proc/{pid}") is not None
    except (ProcessLookupError, FileNotFoundError):
        return False


def _parent(path: str) -> int | None:
    """Get the parent's id, or None for a process that has ended and waits to be collected."""
    state, parent = Path(path, "stat").read_text(errors="replace").rpartition(") ")[2].split()[:2]
    return None if state in "ZX" else int(parent)


def _descends(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid in roots:
            return True
    return False


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


class ProcessWatch:
    """Tells apart the processes of one test from those that were there before it."""

    def __init__(self) -> None:
        self._known = set(descendants())

    def left(self, allowed: Iterable[int]) -> list[Process]:
        """Get the processes that appeared since the last look and do not end; end them."""

        def strangers() -> list[Process]:
            known = self._known | set(allowed)
            return [
                process
                for pid, process in descendants().items()
                # It belongs to the interpreter, and lives as long.
                if pid not in known and "multiprocessing.resource_tracker" not in process.command
            ]

        with suppress(AssertionError):
            eventually_sync(lambda: not strangers(), GRACE)
            return []
        leaked = strangers()
        for process in leaked:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._known |= {process.pid for process in leaked}
        return leaked


async def tasks_left() -> list[str]:
    """Get the tasks that still run when the test and its fixtures are done."""

    def others() -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - {current}

    current = asyncio.current_task()
    with suppress(AssertionError):
        # One that was cancelled, or has just been told to end, needs a turn of the loop or two.
        await eventually(lambda: not others(), 0.05, interval=0)
        return []
    return [repr(task) for task in others()]


def immortal_keys(server: RealServer) -> list[str]:
    """Get this library's keys that never expire, except those that are meant not to."""
    return [
        key
        for key, ttl in server.keys(OURS)
        if ttl == -1 and not any(fnmatch.fnmatch(key, pattern) for pattern in PERMANENT)
    ]


def connections_left(server: RealServer) -> list[str]:
    """Get the connections that a test did not close, after some grace; close them."""
    with suppress(AssertionError):
        eventually_sync(lambda: not server.connections(), GRACE)
        return []
    leaked = server.connections()
    for client in leaked:
        # The next test shall not answer for it.
        server.execute("CLIENT", "KILL", "ID", client["id"])
    return [f"{client['addr']} {client['name']!r}, last: {client['cmd']}" for client in leaked]
