"""The small process that holds one embedded server, and stops it when its last user is gone.

It is started as a script with the standard library only (`python -I -S supervisor.py ...`), by
`stanchion.store.embedded`, which also takes the names and the lock helpers from here.

Two lock files lie in the server's directory. Both are `flock`, which the kernel gives back when a
process ends in any way, SIGKILL included:

- `users.lock` is shared by the users of the server. Who gets it exclusively knows that none is left
  and that none can come: the supervisor, which then stops the server and ends.
- `supervisor.lock` is exclusive. Who gets it knows that no server is being started or run here. A
  starter hands it on to its new supervisor, which has it for life.

A starter takes them in this order. The supervisor never waits for a lock, only tries.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from types import FrameType

USERS_LOCK = "users.lock"
SUPERVISOR_LOCK = "supervisor.lock"
RECORD = "server.json"
LOG = "server.log"
SOCKET = "server.sock"

TICK = 0.05
STEP = 0.005
STOP_PATIENCE = 5.0


class Record(NamedTuple):
    """What a running server leaves in its directory for those who join."""

    pid: int
    socket: str


class Job(NamedTuple):
    """What one supervisor is told to run; the text form is its command line."""

    directory: Path
    socket: Path
    binary: Path
    private: bool
    deadline: float
    lock: int

    def argv(self) -> list[str]:
        """Get the command line that `parse` reads back."""
        kind = "private" if self.private else "kept"
        return [
            *(str(self.directory), str(self.socket), str(self.binary)),
            *(kind, f"{self.deadline:.3f}", str(self.lock)),
        ]

    @classmethod
    def parse(cls, argv: list[str]) -> Job:
        """Get the job back from a command line."""
        directory, path, binary, kind, deadline, lock = argv
        private = kind == "private"
        return cls(Path(directory), Path(path), Path(binary), private, float(deadline), int(lock))


def open_lock(path: Path) -> int:
    """Get a descriptor of a lock file, made if need be; no exec'ed child inherits it."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Get whether the lock was taken; never waits."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_record(directory: Path) -> Record | None:
    """Get what a server left in the directory, or None if there is nothing that can be read."""
    try:
        fields = cast("object", json.loads((directory / RECORD).read_bytes()))
    except (OSError, ValueError):
        return None
    match fields:
        case {"pid": int(pid), "socket": str(path)}:
            return Record(pid, path)
        case _:
            return None


def _write_record(directory: Path, record: Record) -> None:
    # Under another name first: nobody shall read half of it.
    fresh = directory / f"{RECORD}.new"
    fresh.write_text(json.dumps(record._asdict()))
    fresh.replace(directory / RECORD)


def ask(path: str | Path, command: bytes, timeout: float) -> bytes:
    """Get the first bytes a server answers on a unix socket; empty when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect(os.fspath(path))
            client.sendall(command + b"\r\n")
            return client.recv(64)
        except OSError:
            return b""


def answers(path: str | Path, timeout: float) -> bool:
    """Get whether a server on that socket is up and has loaded its data."""
    return ask(path, b"PING", timeout).startswith(b"+PONG")


def _die_with_parent() -> None:
    """Have the kernel stop the server if the supervisor itself is killed (Linux only)."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _start(job: Job) -> subprocess.Popen[bytes]:
    # A named directory is for state that outlives its users. A snapshot a minute and one at the end
    # costs a decision nothing; an append-only file cost a quarter of the throughput. A snapshot
    # that fails, on a full disk or in a removed directory, stops neither writes nor the exit.
    saving = ["--save", ""] if job.private else ["--save", "60 1"]
    command = [
        *(str(job.binary), "--port", "0", "--unixsocket", str(job.socket)),
        *("--unixsocketperm", "700", "--dir", ".", "--daemonize", "no"),
        *("--logfile", LOG, "--loglevel", "warning", "--maxmemory-policy", "noeviction"),
        *("--appendonly", "no", "--stop-writes-on-bgsave-error", "no", *saving),
        *("--shutdown-on-sigterm", "force"),
    ]
    return subprocess.Popen(
        command,
        cwd=job.directory,
        stdin=subprocess.DEVNULL,
        # What it says before it has opened its log goes to the same file: our stderr.
        stdout=sys.stderr,
        # Safe here: this process has one thread.
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )


def _await_ready(job: Job, server: subprocess.Popen[bytes]) -> str | None:
    """Get None once the server answers, else the reason why it never will."""
    ends = time.monotonic() + job.deadline
    while not answers(job.socket, timeout=0.2):
        if (status := server.poll()) is not None:
            return f"the server exited with status {status}"
        if time.monotonic() >= ends:
            return f"the server did not answer within {job.deadline:g} s"
        time.sleep(STEP)
    return None


def _report(**fields: object) -> None:
    """Tell the starter how it went, then let go of the pipe it reads from."""
    try:
        os.write(1, json.dumps(fields).encode() + b"\n")
    except BrokenPipeError:
        sys.stderr.write("the starter left before the server was ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)


def _stop(job: Job, server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        # A private server has nothing to save, and a polite stop takes it up to 100 ms more.
        server.send_signal(signal.SIGKILL if job.private else signal.SIGTERM)
        try:
            server.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _clean(job: Job, pid: int) -> None:
    """Remove what this server left, and nothing that a successor in the same place has made."""
    record = read_record(job.directory)
    if record is None or record.pid == pid:
        job.socket.unlink(missing_ok=True)
        (job.directory / RECORD).unlink(missing_ok=True)
    if job.socket.parent != job.directory:
        with suppress(OSError):
            job.socket.parent.rmdir()
    if job.private:
        import shutil

        shutil.rmtree(job.directory, ignore_errors=True)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def supervise(job: Job) -> None:
    """Run one server until it dies, or until nobody holds `users.lock`, and clean up after it."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    users = open_lock(job.directory / USERS_LOCK)
    server = _start(job)
    try:
        reason = _await_ready(job, server)
        if reason is None:
            _write_record(job.directory, Record(server.pid, str(job.socket)))
            _report(pid=server.pid)
            while server.poll() is None and not try_lock(users, exclusive=True):
                time.sleep(TICK)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop(job, server)
        _clean(job, server.pid)
    if reason is not None:
        _report(error=reason)


def main(argv: list[str]) -> None:
    """Leave the starter's process tree, then supervise."""
    job = Job.parse(argv)
    os.set_inheritable(job.lock, False)
    # The starter waits for this process only, so that it never has a child that it must reap.
    if os.fork():
        os._exit(0)
    supervise(job)


if __name__ == "__main__":
    main(sys.argv[1:])
