"""Several processes that call at the same time, each with callers of its own."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from harness import loops
from harness.measure import WARM_UP, figures_of, spans_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
    from contextlib import AbstractAsyncContextManager
    from multiprocessing.connection import Connection

    from harness.measure import Figures

    Caller = Callable[[], Awaitable[object]]
    #: Opened in each process with (its number, callers); gets what each caller is to call.
    Opener = Callable[[int, int], AbstractAsyncContextManager[Sequence[Caller]]]
    #: Waits until all processes are ready, and until the moment at which all of them start.
    Start = Callable[[], Awaitable[None]]
    #: Run in each process with (its number, callers, start); gets what can be pickled.
    Job = Callable[[int, int, Start], Coroutine[Any, Any, Any]]


class Fleet:
    """Processes that wait for what to call. Only what can be pickled reaches them."""

    def __init__(self, pipes: list[Connection[Any, Any]], callers: int) -> None:
        self._pipes = pipes
        self._callers = callers

    def each(self, job: Job) -> list[Any]:
        """Have all of them do it, from the same moment on; get what came of it in each."""
        for number, pipe in enumerate(self._pipes):
            pipe.send((job, number, self._callers))
        for pipe in self._pipes:
            _answer(pipe)
        # The clock is the same for all processes of a machine.
        starts = time.monotonic() + 0.05
        for pipe in self._pipes:
            pipe.send(starts)
        return [_answer(pipe) for pipe in self._pipes]

    def call(self, opener: Opener, seconds: float) -> Figures:
        """Have all of them call for so long; get what came of it."""
        spans: list[int] = []
        cpu = 0.0
        elapsed = 0.0
        for its_spans, its_cpu, its_elapsed in self.each(partial(_sample, opener, seconds)):
            spans += its_spans
            cpu += its_cpu
            elapsed = max(elapsed, its_elapsed)
        return figures_of(spans, elapsed, cpu)


def _answer(pipe: Connection[Any, Any]) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def fleet(processes: int, callers: int, loop: str) -> Generator[Fleet]:
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(processes)]
    workers = [spawn.Process(target=_work, args=(theirs, loop)) for _, theirs in pairs]
    for worker, (_, theirs) in zip(workers, pairs, strict=True):
        worker.start()
        theirs.close()
    try:
        yield Fleet([ours for ours, _ in pairs], callers)
    finally:
        # Whoever waits for a word from here learns that there will be none.
        for ours, _ in pairs:
            ours.close()
        for worker in workers:
            worker.join()


def _work(pipe: Connection[Any, Any], loop: str) -> None:
    logging.disable(logging.CRITICAL)
    with suppress(EOFError, BrokenPipeError):
        while True:
            job, number, callers = pipe.recv()
            try:
                pipe.send(loops.complete(job(number, callers, partial(_start, pipe)), loop))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                pipe.send(error)


async def _start(pipe: Connection[Any, Any]) -> None:
    pipe.send("ready")
    # Others may be ready later, and meanwhile connections want to be kept.
    starts = await asyncio.to_thread(pipe.recv)
    await asyncio.sleep(starts - time.monotonic())


async def _sample(
    opener: Opener, seconds: float, number: int, callers: int, start: Start
) -> tuple[list[int], float, float]:
    async with opener(number, callers) as calls:
        await _all(calls, 4 * WARM_UP)
        await start()
        began, cpu = time.perf_counter(), time.process_time()
        spans = await _all(calls, seconds)
        return spans, time.process_time() - cpu, time.perf_counter() - began


async def _all(calls: Sequence[Caller], seconds: float) -> list[int]:
    taken = await asyncio.gather(*(spans_of(call, 1, seconds) for call in calls))
    return [span for spans in taken for span in spans]
