"""What a broken observer may not do: delay, fail or confuse anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from contextvars import ContextVar, copy_context
from functools import partial

import pytest

from stanchion.events import NodeFailed, ToolCalled
from stanchion.observers import ObserverManager, Overflow, Recorder
from tests.waiting import eventually

SECRET = "a prompt that nobody but the model may read"
RUN: ContextVar[str] = ContextVar("run", default="none")


def call(tool="t"):
    return ToolCalled(tool=tool, arguments={"text": SECRET})


@pytest.fixture
def release():
    """Lets calls that hang in threads return, at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def texts(caplog):
    return [record.getMessage() for record in caplog.records]


# ------------------------------------------------------------------------------ the caller's time


@pytest.mark.parametrize("how", ["sleeps", "blocks", "fails", "overflows", "fails in batches"])
async def test_notify_returns_at_once_whatever_observers_do(how, release):
    async def sleeps(event):
        del event
        await asyncio.Event().wait()

    def blocks(event):
        del event
        release.wait()

    async def fails(event):
        raise ValueError(event)

    class FailsInBatches:
        batch_size = 7

        async def handle_batch(self, events):
            raise ValueError(events)

    observers = {
        "sleeps": sleeps,
        "blocks": blocks,
        "fails": fails,
        "overflows": sleeps,
        "fails in batches": FailsInBatches(),
    }
    async with contextlib.AsyncExitStack() as stack:
        manager = ObserverManager()
        await manager.start()
        stack.push_async_callback(manager.close, 0.2)
        manager.register(observers[how], queue=10 if how == "overflows" else 5000)
        # The kind that used to be flushed, and awaited, at once.
        urgent = NodeFailed(node="n", error="e")
        taken: list[float] = []
        for number in range(3000):
            began = time.perf_counter()
            manager.notify(urgent)
            taken.append(time.perf_counter() - began)
            if number % 500 == 0:
                await asyncio.sleep(0)
        release.set()
    taken.sort()
    # A few microseconds; the margin is for a busy machine.
    assert taken[len(taken) // 2] < 100e-6
    assert sum(taken) < 0.5


async def test_a_slow_observer_delays_no_other(release):
    async def sleeps(event):
        del event
        await asyncio.Event().wait()

    def blocks(event):
        del event
        release.wait()

    threads = []

    def plain(event):
        del event
        threads.append(threading.get_ident())

    recorder = Recorder()
    manager = ObserverManager()
    for observer in (sleeps, blocks, blocks, blocks, recorder, plain):
        manager.register(observer)
    async with manager:
        for _ in range(100):
            manager.notify(call())
        await eventually(lambda: len(recorder.events) == len(threads) == 100)
        assert manager.stats()["sleeps"].queued == 99
        release.set()
        await manager.close(0.2)
    assert manager.stats()["blocks"].delivered == 100


# --------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        RecursionError(),
        StopIteration(),
        StopAsyncIteration(),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        BaseExceptionGroup("several", [SystemExit(), ValueError(SECRET)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_an_observer_raises_ends_with_it(error, plain, caplog, capsys):
    async def breaks(event):
        del event
        raise error

    def breaks_plainly(event):
        del event
        raise error

    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(breaks_plainly if plain else breaks, name="broken")
        manager.register(recorder)
        for _ in range(3):
            manager.notify(call())
        assert await manager.drain()
        assert manager.stats()["broken"].failed == 3
        assert manager.stats()["Recorder"].delivered == 3
    lines = [text for text in texts(caplog) if "'broken' failed on a tool:called: " in text]
    assert len(lines) == 3
    # Python turns one of them into another where it leaves a coroutine.
    kind = (
        "RuntimeError" if isinstance(error, StopIteration) and not plain else type(error).__name__
    )
    assert re.search(rf"[ .]{kind} at \w+\.py:\d+ in ", lines[0])
    assert not any(SECRET in record.getMessage() or record.exc_info for record in caplog.records)
    assert "Logging error" not in capsys.readouterr().err


async def test_a_plain_function_that_returns_a_coroutine_has_not_done_its_work(caplog):
    async def work(event):
        raise AssertionError(event)

    async with ObserverManager() as manager:
        manager.register(lambda event: work(event.tool), name="lambda")
        manager.notify(call())
        assert await manager.drain()
        assert manager.stats()["lambda"].failed == 1
    assert "ReturnedAwaitable" in caplog.text


async def test_failures_are_logged_a_few_at_a_time(caplog):
    async def breaks(event):
        raise ValueError(event)

    async with ObserverManager() as manager:
        manager.register(breaks, name="one", quarantine=None)
        manager.register(breaks, name="two", quarantine=None)
        for _ in range(100):
            manager.notify(call())
        assert await manager.drain()
    assert manager.stats()["one"].failed == 100
    assert sum("'one' failed" in text for text in texts(caplog)) == 5
    assert sum("'two' failed" in text for text in texts(caplog)) == 5


async def test_a_log_that_breaks_breaks_nothing_else():
    class Broken(logging.Handler):
        def handle(self, record):
            raise OSError(record)

    async def breaks(event):
        raise ValueError(event)

    handler, logger = Broken(), logging.getLogger("stanchion.observers")
    logger.addHandler(handler)
    try:
        async with ObserverManager() as manager:
            manager.register(breaks)
            for _ in range(3):
                manager.notify(call())
            manager.notify("no event")  # pyright: ignore[reportArgumentType]
            assert await manager.drain()
            assert manager.stats()["breaks"].failed == 3
    finally:
        logger.removeHandler(handler)


async def test_notify_ignores_what_is_no_event_and_says_so(caplog):
    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(recorder)
        for thing in (None, "tool:called", {"type": "tool:called"}, ToolCalled):
            manager.notify(thing)  # pyright: ignore[reportArgumentType]
        assert await manager.drain()
    assert not recorder.events
    assert "notify takes events: a NoneType is ignored" in texts(caplog)


# ---------------------------------------------------------------------------------------- hanging


async def test_a_call_that_takes_too_long_is_cancelled_and_the_next_one_made(caplog):
    cancelled, got = [], []

    async def hangs_once(event):
        if event.tool == "first":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(event.tool)
        got.append(event.tool)

    async with ObserverManager() as manager:
        manager.register(hangs_once, timeout="50ms")
        manager.notify(call("first"))
        manager.notify(call("second"))
        assert await manager.drain()
        stats = manager.stats()["hangs_once"]
    assert (cancelled, got) == (["first"], ["second"])
    assert (stats.timed_out, stats.delivered) == (1, 1)
    assert "observer 'hangs_once' took longer than 0.05 s over a tool:called" in caplog.text
    assert SECRET not in caplog.text


async def test_a_call_that_will_not_be_cancelled_is_not_joined_by_others(caplog):
    running, stop = 0, asyncio.Event()

    async def stubborn(event):
        nonlocal running
        del event
        running += 1
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(stubborn, timeout=0.02, queue=5)
        manager.register(recorder)
        for _ in range(50):
            manager.notify(call())
        await recorder.wait_for(lambda _: len(recorder.events) == 50)
        await eventually(lambda: "'stubborn' does not return: 1 of its 1 places" in caplog.text)
        assert running == 1
        stats = manager.stats()["stubborn"]
        assert (stats.timed_out, stats.dropped, stats.queued) == (1, 45, 4)
        stop.set()
        # It is served again as soon as it is back.
        assert await manager.drain()
        assert manager.stats()["stubborn"].delivered == 4


async def test_plain_functions_that_hang_take_no_thread_from_others(release, caplog):
    def hangs(event):
        del event
        release.wait()

    got = []

    def works(event):
        got.append(event.tool)

    async with ObserverManager() as manager:
        for number in range(8):
            manager.register(hangs, name=f"hangs-{number}", timeout=0.2)
        manager.register(works)
        for number in range(20):
            manager.notify(call(str(number)))
        await eventually(lambda: len(got) == 20)
        await eventually(lambda: caplog.text.count("does not return") == 8)
        # One thread for each that hangs, however many events wait, and one or two for the others.
        names = [thread.name for thread in threading.enumerate()]
        assert sum(name.startswith("stanchion-observer") for name in names) <= 10
        release.set()
        assert await manager.drain()
        assert manager.stats()["hangs-0"].delivered == 19
        assert manager.stats()["hangs-0"].timed_out == 1
    assert got == [str(number) for number in range(20)]


# --------------------------------------------------------------------------------------- flooding


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [(Overflow.DROP_OLDEST, ["0", "17", "18", "19"]), (Overflow.DROP_NEWEST, ["0", "1", "2", "3"])],
)
async def test_a_full_queue_drops_and_says_so_once_for_each_burst(overflow, kept, caplog):
    gate, got = asyncio.Event(), []

    async def slow(event):
        got.append(event.tool)
        await gate.wait()

    async with ObserverManager() as manager:
        manager.register(slow, queue=3, overflow=overflow)
        manager.notify(call("0"))
        await eventually(lambda: got)
        for number in range(1, 10):
            manager.notify(call(str(number)))
        assert manager.stats()["slow"].dropped == 6
        await eventually(lambda: "'slow' is too slow" in caplog.text)
        # The burst goes on, turn after turn of the loop, and has been told.
        for number in range(10, 20):
            manager.notify(call(str(number)))
            await asyncio.sleep(0)
        assert caplog.text.count("'slow' is too slow") == 1
        gate.set()
        assert await manager.drain()
        assert got == kept
        stats = manager.stats()["slow"]
        assert (stats.delivered, stats.dropped, stats.queued) == (4, 16, 0)
        # It has caught up: what comes now is another burst.
        gate.clear()
        for number in range(10):
            manager.notify(call(str(number)))
        await eventually(lambda: caplog.text.count("'slow' is too slow") == 2)
        gate.set()
    word = "oldest" if overflow is Overflow.DROP_OLDEST else "newest"
    assert f"3 events wait, the {word} are dropped, a tool:called first" in caplog.text
    assert SECRET not in caplog.text


async def test_ten_thousand_events_at_once_are_bounded_and_all_accounted_for():
    gate = asyncio.Event()

    class Batching:
        batch_size = 256

        async def handle_batch(self, events):
            del events
            await gate.wait()

    async with ObserverManager() as manager:
        manager.register(Batching(), name="batching")
        for number in range(10_000):
            manager.notify(call())
            if number % 100 == 0:
                await asyncio.sleep(0)
            assert manager.stats()["batching"].queued <= 1000
        gate.set()
        assert await manager.drain()
        stats = manager.stats()["batching"]
    assert stats.delivered + stats.dropped == 10_000
    assert stats.dropped >= 10_000 - 1000 - 256


# ---------------------------------------------------------------------------------------- context


async def test_an_observer_runs_in_the_context_of_who_notified():
    seen = []

    async def tells(event):
        await asyncio.sleep(0)
        seen.append((event.tool, RUN.get(), "async"))

    def tells_plainly(event):
        seen.append((event.tool, RUN.get(), "plain"))

    async def run(name):
        RUN.set(name)
        for _ in range(5):
            manager.notify(call(name))
            await asyncio.sleep(0)

    RUN.set("the start")
    async with ObserverManager() as manager:
        manager.register(tells, concurrency=3)
        manager.register(tells_plainly)
        await asyncio.gather(*(run(f"run-{number}") for number in range(10)))
        assert await manager.drain()
    assert len(seen) == 100
    assert all(tool == run for tool, run, _ in seen)


async def test_what_an_observer_sets_stays_with_it():
    seen = []

    async def sets(event):
        del event
        seen.append(RUN.get())
        RUN.set("from an observer")

    async with ObserverManager() as manager:
        RUN.set("mine")
        for number in range(3):
            manager.register(sets, name=str(number), concurrency=2)
        for _ in range(4):
            manager.notify(call())
        assert await manager.drain()
    assert seen == ["mine"] * 12
    assert RUN.get() == "mine"


async def test_a_batch_runs_in_nobodys_context():
    seen = []

    class Batching:
        batch_size = 10

        async def handle_batch(self, events):
            seen.append((len(events), RUN.get()))

        async def start(self):
            seen.append((0, RUN.get()))

    manager = ObserverManager()
    RUN.set("run-A")
    manager.register(Batching())
    manager.notify(call())
    RUN.set("run-B")
    manager.notify(call())
    async with manager:
        assert await manager.drain()
    assert seen == [(0, "none"), (2, "none")]


# ------------------------------------------------------------------------------------------ reuse


async def test_an_observer_may_notify():
    recorder = Recorder()

    async def echoes(event):
        if len(event.tool) < 5:
            manager.notify(call(event.tool + "x"))

    async with ObserverManager() as manager:
        manager.register(recorder)
        manager.register(echoes)
        manager.notify(call("x"))
        # Waits for what is notified meanwhile, too.
        assert await manager.drain()
        assert [event.tool for event in recorder.of(ToolCalled)] == [
            "x",
            "xx",
            "xxx",
            "xxxx",
            "xxxxx",
        ]


async def test_a_finalizer_may_notify_in_the_middle_of_notify():
    recorder = Recorder()
    manager = ObserverManager()
    manager.register(recorder, queue=1)

    class Telling:
        """Notifies when the last reference goes, which here is that of the full queue."""

        def __del__(self):
            manager.notify(call("from a finalizer"))

    def notify_with(thing):
        variable.set(thing)
        manager.notify(call("first"))

    variable: ContextVar[Telling] = ContextVar("thing")
    copy_context().run(partial(notify_with, Telling()))
    manager.notify(call("second"))
    async with manager:
        assert await manager.drain()
    assert recorder.events
