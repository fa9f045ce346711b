"""Several processes that call at the same time, each with callers of its own."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.measure import WARM_UP, figures_of, spans_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from contextlib import AbstractAsyncContextManager
    from multiprocessing.connection import Connection

    from harness.measure import Figures

    Caller = Callable[[], Awaitable[object]]
    #: Opened in each process with (its number, callers); gets what each caller is to call.
    Opener = Callable[[int, int], AbstractAsyncContextManager[Sequence[Caller]]]


class Fleet:
    """Processes that wait for what to call. Only what can be pickled reaches them."""

    def __init__(self, pipes: list[Connection[Any, Any]], callers: int) -> None:
        self._pipes = pipes
        self._callers = callers

    def call(self, opener: Opener, seconds: float) -> Figures:
        """Have all of them call for so long, from the same moment on; get what came of it."""
        for number, pipe in enumerate(self._pipes):
            pipe.send((opener, number, self._callers, seconds))
        for pipe in self._pipes:
            _answer(pipe)
        # The clock is the same for all processes of a machine.
        starts = time.monotonic() + 0.05
        for pipe in self._pipes:
            pipe.send(starts)
        spans: list[int] = []
        cpu = 0.0
        elapsed = 0.0
        for pipe in self._pipes:
            its_spans, its_cpu, its_elapsed = _answer(pipe)
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
def fleet(processes: int, callers: int) -> Generator[Fleet]:
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(processes)]
    workers = [spawn.Process(target=_work, args=(theirs,)) for _, theirs in pairs]
    for worker in workers:
        worker.start()
    try:
        yield Fleet([ours for ours, _ in pairs], callers)
    finally:
        for ours, _ in pairs:
            ours.send(None)
        for worker in workers:
            worker.join()


def _work(pipe: Connection[Any, Any]) -> None:
    logging.disable(logging.CRITICAL)
    while (asked := pipe.recv()) is not None:
        try:
            pipe.send(asyncio.run(_sample(pipe, *asked)))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            pipe.send(error)


async def _sample(
    pipe: Connection[Any, Any], opener: Opener, number: int, callers: int, seconds: float
) -> tuple[list[int], float, float]:
    async with opener(number, callers) as calls:
        await _all(calls, 4 * WARM_UP)
        pipe.send("ready")
        await asyncio.sleep(pipe.recv() - time.monotonic())
        began, cpu = time.perf_counter(), time.process_time()
        spans = await _all(calls, seconds)
        return spans, time.process_time() - cpu, time.perf_counter() - began


async def _all(calls: Sequence[Caller], seconds: float) -> list[int]:
    taken = await asyncio.gather(*(spans_of(call, 1, seconds) for call in calls))
    return [span for spans in taken for span in spans]
