"""Workers as processes of their own, from the parent's side."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Sequence

    from tests.servers import RealServer

#: Seconds within which a worker answers.
PATIENCE = 45.0
#: The longest line that a worker answers with.
LINE = 64 * 2**20


class Worker:
    """One worker: `ask` has it do something, and gets its answer."""

    def __init__(self, process: Process, patience: float) -> None:
        self._process = process
        self._patience = patience

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    def open(self, url: str, policies: Sequence[Any]) -> None:
        self._send(base64.b64encode(pickle.dumps((url, list(policies)))))

    async def ask(self, deed: str, **arguments: Any) -> Any:
        self._send(json.dumps([deed, arguments]).encode())
        assert self._process.stdout is not None
        async with asyncio.timeout(self._patience):
            line = await self._process.stdout.readline()
        assert line, f"the worker ended instead of its answer to {deed}"
        return json.loads(line)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL: it has no chance to give anything back."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        """Have it close its bus and end, and see that it does."""
        if self._process.returncode == -signal.SIGKILL:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(self._patience):
            assert await self._process.wait() == 0


class Fleet(list[Worker]):
    """Workers that are asked all at once."""

    async def ask(self, deed: str, **arguments: Any) -> list[Any]:
        return await asyncio.gather(*(worker.ask(deed, **arguments) for worker in self))


@asynccontextmanager
async def fleet(
    url: str,
    *policies: Any,
    workers: int,
    module: str = "tests.contention.worker",
    patience: float = PATIENCE,
) -> AsyncGenerator[Fleet]:
    """Start workers that share these policies, all of them connected and warm."""
    # The package may be on this process's path only.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = asyncio.subprocess.PIPE
    started = Fleet()
    try:
        for _ in range(workers):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                env=environment,
                stdin=pipe,
                stdout=pipe,
                limit=LINE,
            )
            started.append(Worker(process, patience))
            started[-1].open(url, policies)
        assert len(set(await started.ask("warm"))) == workers
        yield started
        for worker in started:
            await worker.end()
    finally:
        for worker in started:
            await worker.kill()


def now_us(server: RealServer) -> int:
    """Get the server's time."""
    seconds, rest = cast("tuple[int, int]", server.control.time())
    return seconds * 1_000_000 + rest
