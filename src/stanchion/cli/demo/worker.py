"""One worker of the demo, a process of its own: `python -m stanchion.cli.demo.worker`.

Its standard input brings the job as one line, then orders; its standard output takes reports. When
the input ends before the order to finish, the parent has died, and the worker ends at once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import AsyncExitStack
from typing import NoReturn

from aiohttp import ClientSession, TCPConnector

from stanchion import EventBus
from stanchion.cli.demo.calls import Caller
from stanchion.cli.demo.hearing import Ears
from stanchion.cli.demo.pipeline import Lane
from stanchion.cli.demo.plan import Job, Order, Report, Stage
from stanchion.cli.demo.records import Closing, Journal
from stanchion.cli.demo.replay import Replay
from stanchion.loops import new_event_loop

_REPORT_EVERY = 0.25
_LONGEST_JOB = 64 << 20  # bytes: a recording of a million calls


class Worker:
    """Runs one job: does as it is told, makes the load, and reports."""

    def __init__(self, job: Job, caller: Caller, ears: Ears) -> None:
        self._job = job
        self._caller = caller
        self._ears = ears
        self._begin = asyncio.Event()
        self._finish: asyncio.Future[Order] = asyncio.get_running_loop().create_future()

    async def run(self, orders: asyncio.StreamReader) -> Closing:
        """Do the job, from the first report to the last."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._obey(orders))
            self._say("ready")
            await self._begin.wait()
            reports = group.create_task(self._report())
            latest_us = await self._load()
            reports.cancel()
            self._say("idle")
            await self._ears.wait_for((await self._finish).seqs)
        return Closing(observed=dict(self._ears.observed), latest_us=latest_us)

    async def _obey(self, orders: asyncio.StreamReader) -> None:
        while line := await orders.readline():
            order = Order.model_validate_json(line)
            if order.do == "go":
                self._begin.set()
            elif order.do == "stop":
                self._caller.stop()
            else:
                self._finish.set_result(order)
                return
        self._orphaned()

    def _orphaned(self) -> NoReturn:
        """End at once: nobody will read what is written here, and leases give back what is held."""
        if self._job.temporary:
            shutil.rmtree(self._job.journal.parent, ignore_errors=True)
        os._exit(1)

    async def _load(self) -> int:
        job = self._job
        if job.calls is not None:
            replay = Replay(self._caller, job.calls, largest=job.largest)
            await replay.run()
            return replay.latest_us
        lanes = (
            Lane(self._caller, worker=job.worker, lane=lane, seed=job.seed)
            for lane in range(job.lanes)
        )
        await asyncio.gather(*(lane.run() for lane in lanes))
        return 0

    async def _report(self) -> None:
        while True:
            self._say("busy")
            await asyncio.sleep(_REPORT_EVERY)

    def _say(self, at: Stage) -> None:
        counts = self._caller.counts
        report = Report(
            at=at,
            calls=counts.calls,
            refused=counts.refused,
            admitted=dict(counts.admitted),
            vetoed=dict(counts.vetoed),
            in_flight=counts.in_flight,
            runs=counts.runs,
            learned=self._ears.learned,
        )
        try:
            sys.stdout.write(report.model_dump_json() + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._orphaned()


async def work(job: Job, orders: asyncio.StreamReader) -> None:
    """Do one job with a bus, a journal and a connection of its own."""
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal(job.journal))
        ears = Ears(journal.write)
        policies = job.limits.policies()
        bus = EventBus.from_url(
            job.url, policies=policies, observers=[ears], namespace=job.namespace
        )
        await stack.enter_async_context(bus)
        connector = TCPConnector(limit=0)
        http = await stack.enter_async_context(ClientSession(job.endpoint, connector=connector))
        caller = Caller(bus, http, journal, policies)
        closing = await Worker(job, caller, ears).run(orders)
        await bus.observers.drain()
        dropped = sum(stats.dropped for stats in bus.observers.stats().values())
        journal.write(closing.model_copy(update={"dropped": dropped}))


async def main() -> None:
    """Read the job, and do it."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=_LONGEST_JOB)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    if line := await orders.readline():
        await work(Job.model_validate_json(line), orders)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
