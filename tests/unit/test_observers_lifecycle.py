"""Beginning and end: before the start, from other threads, draining, closing in time."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import stanchion.observers
from stanchion.errors import ConfigError, StanchionError
from stanchion.events import ToolCalled
from stanchion.observers import ObserverManager, Recorder
from tests.waiting import eventually, eventually_sync

EVENT = ToolCalled(tool="t")


@pytest.fixture
def release():
    """Lets calls that hang in threads return, at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()
    eventually_sync(lambda: not ours())


def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("stanchion-observer")]


async def hangs(event):
    del event
    await asyncio.Event().wait()


async def works(event):
    del event


def works_plainly(event):
    del event


# -------------------------------------------------------------------------------------- the start


def test_events_wait_for_the_start_even_without_a_loop(caplog):
    manager, recorder = ObserverManager(), Recorder()
    manager.register(recorder, queue=3)
    for number in range(5):
        manager.notify(ToolCalled(tool=str(number)))
    assert manager.stats()["Recorder"].queued == 3

    async def run():
        async with manager:
            assert await manager.drain()

    asyncio.run(run())
    assert [event.tool for event in recorder.of(ToolCalled)] == ["2", "3", "4"]
    assert manager.stats()["Recorder"].dropped == 2
    assert "'Recorder' is too slow" in caplog.text


async def test_start_may_be_called_twice():
    manager, recorder = ObserverManager(), Recorder()
    manager.register(recorder)
    await manager.start()
    await manager.start()
    manager.notify(EVENT)
    assert await manager.drain()
    assert len(recorder.events) == 1
    await manager.close()


async def test_any_thread_may_notify():
    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(recorder, queue=10_000)

        def tell(number):
            for count in range(200):
                manager.notify(ToolCalled(tool=f"{number}:{count}"))

        await asyncio.gather(*(asyncio.to_thread(tell, number) for number in range(8)))
        assert await manager.drain()
    told = [event.tool.split(":") for event in recorder.of(ToolCalled)]
    assert len(told) == 1600
    for number in range(8):
        assert [count for who, count in told if who == str(number)] == [str(n) for n in range(200)]


async def test_a_thread_wakes_the_loop_in_the_way_that_threads_may():
    # In debug mode a loop refuses what another thread must not do.
    asyncio.get_running_loop().set_debug(True)
    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(recorder, queue=1)
        await asyncio.sleep(0)  # the worker waits now
        for _ in range(3):
            await asyncio.to_thread(manager.notify, EVENT)
        await recorder.wait_for(ToolCalled)


async def test_threads_that_flood_a_blocked_loop_are_bounded_too():
    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(recorder, queue=50)

        def flood():
            for _ in range(1000):
                manager.notify(EVENT)

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # while this loop does nothing else
        assert manager.stats()["Recorder"].queued == 50
        assert manager.stats()["Recorder"].dropped == 3950
        assert await manager.drain()
        assert manager.stats()["Recorder"].delivered == 50


async def test_start_of_an_observer_is_tried_until_it_works(caplog):
    attempts, got = 0, []

    class Connecting:
        async def start(self):
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise ConnectionError("secret address")
            if attempts == 2:
                raise SystemExit

        async def handle(self, event):
            got.append((attempts, event))

    async with ObserverManager() as manager:
        manager.register(Connecting())
        manager.notify(EVENT)
        assert await manager.drain()
    assert got == [(3, EVENT)]
    assert "'Connecting' could not start and is tried again: ConnectionError" in caplog.text
    assert "secret address" not in caplog.text


async def test_a_start_that_hangs_holds_up_nobody_else_and_no_close():
    closed = []

    class Hanging:
        async def start(self):
            await asyncio.Event().wait()

        async def handle(self, event):
            raise AssertionError(event)

        async def close(self):
            closed.append("although it never started")

    recorder = Recorder()
    manager = ObserverManager()
    manager.register(Hanging(), timeout=0.01)
    manager.register(recorder)
    await manager.start()
    manager.notify(EVENT)
    await recorder.wait_for(ToolCalled)
    began = time.monotonic()
    await manager.close(0.3)
    assert time.monotonic() - began < 1
    assert manager.stats()["Hanging"].dropped == 1
    assert not closed


# ---------------------------------------------------------------------------------------- draining


async def test_drain_says_whether_everything_was_handled():
    gate = asyncio.Event()

    async def waits(event):
        del event
        await gate.wait()

    async with ObserverManager() as manager:
        assert await manager.drain(0)
        manager.register(waits)
        manager.notify(EVENT)
        assert not await manager.drain(0.05)
        await eventually(lambda: manager.stats()["waits"].queued == 0)
        # Out of the queue is not done yet.
        assert not await manager.drain(0)
        gate.set()
        assert await manager.drain()
        assert manager.stats()["waits"].delivered == 1


async def test_drain_before_the_start_does_not_pretend():
    manager = ObserverManager()
    manager.register(works)
    assert await manager.drain(0.01)
    manager.notify(EVENT)
    assert not await manager.drain(0.01)
    await manager.close()


@pytest.mark.parametrize(("verb", "field"), [("drain", "timeout"), ("close", "drain")])
async def test_a_negative_timeout_is_refused(verb, field):
    manager = ObserverManager()
    with pytest.raises(ConfigError, match=f"{field}=-1"):
        await getattr(manager, verb)(-1)
    await manager.close()


# ----------------------------------------------------------------------------------------- closing


async def test_close_delivers_what_waits():
    recorder, plain = Recorder(), []
    manager = ObserverManager()
    manager.register(recorder)
    manager.register(plain.append)
    await manager.start()
    for _ in range(100):
        manager.notify(EVENT)
    await manager.close()
    assert len(recorder.events) == len(plain) == 100
    assert not ours()


async def test_close_gives_up_at_its_deadline_and_counts_what_is_lost(release, caplog):
    def blocks(event):
        del event
        release.wait()

    async def stubborn(event):
        del event
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    stop = asyncio.Event()
    recorder = Recorder()
    manager = ObserverManager()
    for observer in (hangs, blocks, stubborn, recorder):
        manager.register(observer, queue=10)
    await manager.start()
    for _ in range(5):
        manager.notify(EVENT)
    await recorder.wait_for(lambda _: len(recorder.events) == 5)
    began = time.monotonic()
    await manager.close(0.5)
    assert time.monotonic() - began < 0.8
    for name in ("hangs", "blocks", "stubborn"):
        stats = manager.stats()[name]
        assert (stats.dropped, stats.queued, stats.delivered) == (5, 0, 0), name
        assert f"observer '{name}' is closed and 5 of its events are lost" in caplog.text
    assert "observer 'blocks' is closed and 1 of its calls are left behind" in caplog.text
    assert "observer 'stubborn' is closed and 1 of its calls are left behind" in caplog.text
    assert "'hangs' is closed and 1 of its calls" not in caplog.text
    assert manager.stats()["Recorder"].dropped == 0
    assert len(ours()) == 1
    stop.set()


async def test_close_does_not_wait_for_calls_that_are_known_to_hang(release):
    def blocks(event):
        del event
        release.wait()

    manager = ObserverManager()
    manager.register(blocks, timeout=0.01)
    await manager.start()
    manager.notify(EVENT)
    manager.notify(EVENT)
    await eventually(lambda: manager.stats()["blocks"].timed_out == 1)
    began = time.monotonic()
    await manager.close(30)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("observer", [works, works_plainly, hangs])
async def test_close_leaves_no_task_and_no_thread(observer):
    before = asyncio.all_tasks()
    manager = ObserverManager()
    manager.register(observer, concurrency=4)
    await manager.start()
    for _ in range(20):
        manager.notify(EVENT)
    await asyncio.sleep(0)
    await manager.close(0.1)
    assert asyncio.all_tasks() == before
    assert not ours()


async def test_close_at_once_cancels_at_once():
    manager = ObserverManager()
    manager.register(hangs)
    await manager.start()
    manager.notify(EVENT)
    began = time.monotonic()
    await manager.close(0)
    assert time.monotonic() - began < 0.5
    assert manager.stats()["hangs"].dropped == 1


async def test_close_may_be_called_twice_and_at_the_same_time():
    recorder = Recorder()
    manager = ObserverManager()
    manager.register(recorder)
    await manager.start()
    manager.notify(EVENT)
    await asyncio.gather(manager.close(), manager.close())
    await manager.close()
    assert len(recorder.events) == 1


async def test_close_before_the_start_counts_what_waited(caplog):
    manager = ObserverManager()
    manager.register(works)
    manager.notify(EVENT)
    await manager.close()
    assert manager.stats()["works"].dropped == 1
    assert "observer 'works' is closed and 1 of its events are lost" in caplog.text


async def test_a_cancelled_close_still_ends_everything():
    gate = asyncio.Event()

    async def waits(event):
        del event
        await gate.wait()

    manager = ObserverManager()
    manager.register(waits)
    await manager.start()
    manager.notify(EVENT)
    closing = asyncio.create_task(manager.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    await manager.close()
    assert manager.stats()["waits"].delivered == 1


async def test_after_the_end_events_are_dropped_aloud(caplog):
    recorder = Recorder()
    async with ObserverManager() as manager:
        manager.register(recorder)
    manager.notify(EVENT)
    await asyncio.to_thread(manager.notify, EVENT)
    assert manager.stats()["Recorder"].dropped == 2
    assert not recorder.events
    assert "the observers are closed: a tool:called is dropped" in caplog.text


async def test_observers_are_closed_once_after_their_last_event():
    order = []

    class Closing:
        async def handle(self, event):
            order.append(event)

        async def close(self):
            order.append("closed")

    manager = ObserverManager()
    manager.register(Closing())
    await manager.start()
    manager.notify(EVENT)
    await manager.close()
    await manager.close()
    assert order == [EVENT, "closed"]


@pytest.mark.parametrize("how", ["hangs", "raises", "hangs in a thread"])
async def test_an_observer_that_does_not_close_holds_up_nobody(how, release, caplog):
    class Stuck:
        handle = staticmethod(works)

        async def close(self):
            if how == "raises":
                raise SystemExit("secret")
            await asyncio.Event().wait()

    class StuckThread(Stuck):
        def close(self):
            release.wait()

    closed = []

    class Closing(Stuck):
        async def close(self):
            closed.append(True)

    manager = ObserverManager()
    manager.register(StuckThread() if "thread" in how else Stuck(), name="stuck")
    manager.register(Closing())
    await manager.start()
    manager.notify(EVENT)
    began = time.monotonic()
    await manager.close(0.3)
    assert time.monotonic() - began < 0.8
    assert closed
    kind = "SystemExit" if how == "raises" else "TimeoutError"
    assert f"observer 'stuck' did not close: {kind}" in caplog.text
    assert "secret" not in caplog.text


async def test_an_observer_may_close_the_manager():
    async def ends_it(event):
        del event
        await manager.close(0.2)

    manager = ObserverManager()
    manager.register(ends_it)
    await manager.start()
    manager.notify(EVENT)
    await eventually(lambda: manager.stats()["ends_it"].dropped == 1)
    await manager.close()


# ---------------------------------------------------------------------------------- without a close


def test_a_loop_that_ended_without_close_is_noticed(caplog):
    manager = ObserverManager()
    manager.register(works)
    asyncio.run(manager.start())
    manager.notify(EVENT)
    manager.notify(EVENT)
    # The first is lost with the loop, the second comes after the end.
    assert manager.stats()["works"].dropped == 2
    assert "has ended without `close`: 1 events are lost" in caplog.text
    with pytest.raises(StanchionError, match="closed"):
        manager.register(works)
    asyncio.run(manager.close())


def test_close_belongs_to_the_loop_that_started():
    manager = ObserverManager()

    async def run():
        await manager.start()
        with pytest.raises(StanchionError, match="event loop that started"):
            await asyncio.to_thread(asyncio.run, manager.close())
        await manager.close()

    asyncio.run(run())


def test_a_call_that_never_returns_does_not_keep_the_process():
    program = """
import asyncio, threading
from stanchion.events import ToolCalled
from stanchion.observers import ObserverManager

began = threading.Event()

def hangs(event):
    began.set()
    threading.Event().wait()

async def exits(event):
    raise SystemExit(7)

async def main():
    async with ObserverManager() as manager:
        manager.register(hangs)
        manager.register(exits)
        manager.notify(ToolCalled(tool="t"))
        await asyncio.to_thread(began.wait)
        await manager.close(0.2)
    print("closed")

asyncio.run(main())
"""
    source = Path(stanchion.observers.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=source,
    )
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
