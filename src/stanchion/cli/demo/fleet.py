"""The worker processes, as the parent sees them: started, told, heard, and never left behind."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from stanchion import StanchionError
from stanchion.cli.demo.plan import Order, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from stanchion.cli.demo.plan import Job, Stage

_MODULE = "stanchion.cli.demo.worker"
_START = 30.0  # seconds until every worker is ready
_DRAIN = 15.0  # seconds for what is in flight at the end
_PARTING = 5.0  # seconds for a worker to end when it is told to
_SHOWN_LINES = 5


class WorkerDied(StanchionError):
    """A worker ended before it was told to."""


class WorkerProcess:
    """One worker process, and its last report."""

    def __init__(self, job: Job, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.number = job.worker
        self.journal = job.journal
        self.pid = process.pid
        self.report: Report | None = None
        self._process = process
        self._errors = errors

    @classmethod
    async def start(cls, job: Job) -> WorkerProcess:
        """Start a worker on a job."""
        errors = job.journal.with_suffix(".err")
        with errors.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a file in the current directory must not stand in for a module
                "-m",
                _MODULE,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                # Ctrl-C is for the parent, which then tells the workers.
                process_group=0,
            )
        worker = cls(job, process, errors)
        await worker._write(job.model_dump_json())
        return worker

    async def tell(self, order: Order) -> None:
        """Send an order; to a worker that has died, nothing happens."""
        await self._write(order.model_dump_json())

    async def listen(self, heard: Callable[[], None]) -> None:
        """Keep its reports until it ends; `heard` is called after each, and after the last.

        Raises:
            WorkerDied: it did not end well; the text says how, and its last words.
        """
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                self.report = Report.model_validate_json(line)
            except ValidationError as error:
                raise WorkerDied(f"{self} says {line[:80]!r}, which is no report") from error
            heard()
        status = await self._process.wait()
        heard()
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            last = "".join(f": {line}" for line in self.last_lines()[-1:])
            raise WorkerDied(f"{self} {how}{last}")

    @property
    def stage(self) -> Stage | None:
        """Where it is, None before its first report."""
        return None if self.report is None else self.report.at

    def last_lines(self) -> list[str]:
        """Get the end of what it wrote on its standard error."""
        text = self._errors.read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[-_SHOWN_LINES:]

    async def end(self) -> None:
        """Wait a little for it to end, then kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_PARTING):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    async def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # It may have died; `listen` tells.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()


class Fleet:
    """All workers of a run; use it as `async with`, which leaves none behind."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.workers: list[WorkerProcess] = []
        self._jobs = tuple(jobs)
        self._listening: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            for job in self._jobs:
                worker = await WorkerProcess.start(job)
                self.workers.append(worker)
                self._listening.append(asyncio.create_task(worker.listen(self._news.set)))
            await self.until("ready", _START)
        except BaseException:
            await self._end(kill=True)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end(kill=error is not None)

    async def go(self) -> None:
        """Begin the load everywhere."""
        await self._tell(Order(do="go"))

    async def idle(self) -> None:
        """Wait until every worker has nothing more to do; raises WorkerDied."""
        await self.until("idle", None)

    async def stop(self) -> None:
        """End the load everywhere, and wait for what is in flight.

        Raises:
            WorkerDied: a worker did not live to its end, or does not come to it.
        """
        await self._tell(Order(do="stop"))
        await self.until("idle", _DRAIN)

    async def finish(self, seqs: Mapping[str, int]) -> None:
        """End every worker, once it has heard of the circuits' last changes; raises WorkerDied."""
        await self._tell(Order(do="finish", seqs=dict(seqs)))
        try:
            async with asyncio.timeout(_DRAIN):
                await asyncio.gather(*self._listening)
        except TimeoutError:
            raise WorkerDied(f"{self._late('idle')} did not end") from None

    async def until(self, stage: Stage, patience: float | None) -> None:
        """Wait until every worker has reported a stage; raises WorkerDied."""
        try:
            async with asyncio.timeout(patience):
                while any(worker.stage != stage for worker in self.workers):
                    await self._news.wait()
                    self._news.clear()
                    self.check()
        except TimeoutError:
            text = f"{self._late(stage)} not {stage} after {patience:g} s"
            raise WorkerDied(text) from None

    def check(self) -> None:
        """Raise WorkerDied if one has."""
        for task in self._listening:
            if task.done():
                task.result()
                raise WorkerDied("a worker ended before it was told to")

    async def _tell(self, order: Order) -> None:
        await asyncio.gather(*(worker.tell(order) for worker in self.workers))

    def _late(self, stage: Stage) -> str:
        return ", ".join(str(worker) for worker in self.workers if worker.stage != stage)

    async def _end(self, *, kill: bool) -> None:
        if kill:
            for worker in self.workers:
                worker.kill()
        await asyncio.gather(*(worker.end() for worker in self.workers))
        await asyncio.gather(*self._listening, return_exceptions=True)
