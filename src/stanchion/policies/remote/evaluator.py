"""One thread on which evaluations run that nothing can interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Evaluator:
    """A daemon thread that does one thing after the other, and skips what nobody waits for.

    `concurrent.futures` would not do: its threads are joined when the interpreter exits, so one
    evaluation that never ends would keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """Get what `call` returns or raises; a caller that is cancelled waits no longer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            """Do it, unless nobody waits for it any more."""
            if future.cancelled():
                return
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                _tell(loop, future, None, error)
            else:
                _tell(loop, future, result, None)

        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, args=(self._jobs,), name=self._name, daemon=True
                )
                self._thread.start()
            self._jobs.put(job)
        return await future

    def close(self) -> None:
        """End the thread after what it is doing; the next run starts another one."""
        with self._lock:
            thread, self._thread = self._thread, None
            jobs, self._jobs = self._jobs, SimpleQueue()
        if thread is not None:
            jobs.put(None)

    @staticmethod
    def _serve(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
        while (job := jobs.get()) is not None:
            job()


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    result: T | None,
    error: Exception | None,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType] - one of the two is there

    # RuntimeError: the loop was closed before this returned, nobody is left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)
