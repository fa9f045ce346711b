"""The threads on which plain functions observe."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from stanchion.observers.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

_JOIN: Final = 0.2  # seconds for threads that have nothing left to do but end


class ReturnedAwaitable(TypeError):
    """A plain function returned an awaitable, which nobody would await: declare it `async def`."""


class Threads:
    """As many daemon threads as calls run at once; an idle one is used before another starts.

    `concurrent.futures` would not do: its threads are joined when the interpreter exits, so one
    call that never returns would keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], Callable[[], None]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy: set[threading.Thread] = set()
        self._free = 0

    def run(
        self, context: Context, call: Callable[[], object]
    ) -> asyncio.Future[BaseException | None]:
        """Get a future of what `call` raised, None if nothing; never fails itself."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def job() -> Callable[[], None]:
            error = _attempt(context, call)
            return lambda: _hand_over(loop, ended, error)

        try:
            self._submit(job)
        except RuntimeError as error:  # the system has no thread to give
            ended.set_result(error)
        return ended

    def close(self) -> int:
        """End the idle threads and get the number of those still in a call.

        A call cannot be interrupted; its thread ends when the call returns, or with the process.
        """
        with self._lock:
            threads, self._threads = self._threads, []
            idle = [thread for thread in threads if thread not in self._busy]
        for _ in threads:
            self._jobs.put(None)
        for thread in idle:
            thread.join(_JOIN)
        return len(threads) - len(idle)

    def _submit(self, job: Callable[[], Callable[[], None]]) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                number = len(self._threads) + 1
                thread = threading.Thread(
                    target=self._serve, name=f"{self._name}-{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        self._jobs.put(job)

    def _serve(self) -> None:
        this = threading.current_thread()
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self._busy.add(this)
            tell = job()
            # Free before anybody hears of it, or the next call would start a thread of its own.
            with self._lock:
                self._busy.discard(this)
                self._free += 1
            tell()


def _attempt(context: Context, call: Callable[[], object]) -> BaseException | None:
    with Containment() as held:
        result = context.run(call)
        if asyncio.iscoroutine(result):
            result.close()
        if hasattr(result, "__await__"):
            raise ReturnedAwaitable
    return held.error


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    ended: asyncio.Future[BaseException | None],
    error: BaseException | None,
) -> None:
    def settle() -> None:
        if not ended.done():
            ended.set_result(error)

    # RuntimeError: the loop was closed before this call returned, nobody is left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)
