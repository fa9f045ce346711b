"""Who gives way when a queue is full, and who may wait for room."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stanchion.events import Event, NodeFailed, ToolCalled
from stanchion.observers import ObserverManager, Overflow
from tests.observers.doubles import call
from tests.waiting import eventually, eventually_sync


def failed(name: object) -> NodeFailed:
    return NodeFailed(node=str(name), error="e")


class Gated:
    """Handles an event when the gate is open; an event is in its hands before that."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.got: list[str | None] = []

    async def handle(self, event: Event):
        await self.gate.wait()
        self.got.append(event.tool if isinstance(event, ToolCalled) else event.node)


# -------------------------------------------------------------------------------- priority events


@pytest.mark.parametrize(
    ("overflow", "told", "kept"),
    [
        # An ordinary event gives way, the oldest or the newest of them.
        ("drop_oldest", "a b c d !1", ["c", "d", "!1"]),
        ("drop_newest", "a b c d !1", ["a", "b", "!1"]),
        ("block", "a b c d !1", ["a", "b", "!1"]),
        # Never to an ordinary one does a priority event give way,
        ("drop_oldest", "!1 !2 !3 a b", ["!1", "!2", "!3"]),
        ("drop_newest", "!1 !2 !3 a b", ["!1", "!2", "!3"]),
        # only to its like.
        ("drop_oldest", "!1 !2 !3 !4", ["!2", "!3", "!4"]),
        ("drop_newest", "!1 !2 !3 !4", ["!1", "!2", "!3"]),
        ("drop_oldest", "!1 a b c !2 d", ["!1", "!2", "d"]),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_priority_events_give_way_last(overflow, told, kept, concurrency):
    gated = Gated()
    manager = ObserverManager()
    manager.register(
        gated,
        queue=3,
        overflow=overflow,
        priority="node:failed",
        concurrency=concurrency,
        block_for=0,
    )
    for word in told.split():
        manager.notify(failed(word) if word.startswith("!") else call(word))
    stats = manager.stats()["Gated"]
    assert (stats.received, stats.queued) == (len(told.split()), 3)
    gated.gate.set()
    async with manager:
        assert await manager.drain()
    assert gated.got == kept


async def test_the_oldest_gives_way_wherever_it_waits():
    gated = Gated()
    async with ObserverManager() as manager:
        manager.register(gated, queue=3, concurrency=2)
        manager.notify(call("in hand", run="r"))
        for name in ("1", "2"):
            manager.notify(call(name, run="r"))
        # The second worker has looked, and put aside what has to wait for the first.
        await eventually(lambda: manager.stats()["Gated"].in_hand == 1)
        await asyncio.sleep(0.01)
        for name in ("3", "4"):
            manager.notify(call(name, run="r"))
        assert manager.stats()["Gated"].dropped == 1
        gated.gate.set()
        assert await manager.drain()
    assert gated.got == ["in hand", "2", "3", "4"]


# ------------------------------------------------------------------------------- waiting for room


async def test_a_thread_waits_for_room_and_loses_nothing():
    got = []

    async def slow(event):
        await asyncio.sleep(0)
        got.append(event.tool)

    def tell():
        for number in range(500):
            manager.notify(call(number))

    async with ObserverManager() as manager:
        manager.register(slow, queue=5, overflow=Overflow.BLOCK, block_for=20)
        await asyncio.to_thread(tell)
        assert await manager.drain()
        stats = manager.stats()["slow"]
    assert got == [str(number) for number in range(500)]
    assert (stats.received, stats.delivered, stats.dropped) == (500, 500, 0)


async def test_a_thread_waits_no_longer_than_it_was_told(caplog):
    gated = Gated()
    async with ObserverManager() as manager:
        manager.register(gated, queue=1, overflow="block", block_for=0.1)
        manager.notify(call("in hand"))
        await eventually(lambda: manager.stats()["Gated"].in_hand == 1)
        began = time.monotonic()
        for name in ("kept", "dropped"):
            await asyncio.to_thread(manager.notify, call(name))
        assert 0.1 <= time.monotonic() - began < 5
        assert manager.stats()["Gated"].dropped == 1
        await eventually(lambda: "1 events wait, the newest are dropped" in caplog.text)
        gated.gate.set()
        assert await manager.drain()
    assert gated.got == ["in hand", "kept"]


def test_those_who_gave_up_waiting_are_forgotten():
    manager = ObserverManager()
    manager.register(lambda event: None, name="full", queue=1, overflow="block", block_for=0.001)
    for _ in range(50):
        manager.notify(call())
    (lane,) = manager._directory.all().values()
    assert len(lane.inbox._waiters) <= 2
    assert manager.stats()["full"].dropped == 49


async def test_the_event_loop_is_never_blocked():
    gated = Gated()
    async with ObserverManager() as manager:
        manager.register(gated, queue=1, overflow="block", block_for=30)
        began = time.monotonic()
        for number in range(5):
            manager.notify(call(number))
        assert time.monotonic() - began < 5
        assert manager.stats()["Gated"].dropped == 4
        gated.gate.set()


async def test_nor_is_the_loop_of_another_thread():
    gated = Gated()

    async def tell():
        for number in range(5):
            manager.notify(call(number))

    async with ObserverManager() as manager:
        manager.register(gated, queue=1, overflow="block", block_for=30)
        began = time.monotonic()
        await asyncio.to_thread(asyncio.run, tell())
        assert time.monotonic() - began < 5
        gated.gate.set()


async def test_with_backpressure_the_loop_waits_and_runs_on():
    got, turns = [], 0

    async def slow(event):
        await asyncio.sleep(0.001)
        got.append(event.tool)

    async def tick():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with ObserverManager() as manager:
        manager.register(slow, queue=2, overflow="block", block_for=20)
        ticker = asyncio.create_task(tick())
        for number in range(50):
            await manager.notify_with_backpressure(call(number))
        ticker.cancel()
        assert await manager.drain()
    assert got == [str(number) for number in range(50)]
    assert turns > 50


async def test_backpressure_ends_when_the_time_is_up():
    gated, other = Gated(), []
    async with ObserverManager() as manager:
        manager.register(gated, queue=1, overflow="block", block_for=0.1)
        manager.register(lambda event: other.append(event.tool), name="other")
        manager.notify(call("in hand"))
        await eventually(lambda: manager.stats()["Gated"].in_hand == 1)
        await manager.notify_with_backpressure(call("kept"))
        began = time.monotonic()
        await manager.notify_with_backpressure(call("dropped"))
        assert 0.09 <= time.monotonic() - began < 5
        assert manager.stats()["Gated"].dropped == 1
        gated.gate.set()
        assert await manager.drain()
    assert other == ["in hand", "kept", "dropped"]


async def test_who_is_cancelled_while_waiting_has_notified_all_the_same():
    gated, slower = Gated(), Gated()
    async with ObserverManager() as manager:
        manager.register(gated, name="first", queue=1, overflow="block", block_for=30)
        manager.register(slower, name="second", queue=1, overflow="block", block_for=30)
        for _ in range(2):
            manager.notify(call())
            await eventually(lambda: manager.stats()["second"].in_hand == 1)
        waiting = asyncio.create_task(manager.notify_with_backpressure(call()))
        await asyncio.sleep(0.02)
        # The first has room now, and gets it; it is still waited for the second.
        gated.gate.set()
        await eventually(lambda: len(gated.got) == 3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        slower.gate.set()
        assert await manager.drain()
        first, second = manager.stats()["first"], manager.stats()["second"]
    assert (first.received, first.delivered) == (3, 3)
    assert (second.received, second.delivered, second.dropped) == (3, 2, 1)


async def test_close_lets_go_of_those_who_wait_before_it_has_delivered_the_rest():
    gated = Gated()
    manager = ObserverManager()
    manager.register(gated, queue=1, overflow="block", block_for=30)
    await manager.start()
    manager.notify(call("in hand"))
    await eventually(lambda: manager.stats()["Gated"].in_hand == 1)
    manager.notify(call("queued"))
    with ThreadPoolExecutor() as threads:
        told = threads.submit(manager.notify, call("too late"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(manager.close(20))
        await asyncio.to_thread(told.result, 5)
        gated.gate.set()
        assert not await closing
    assert gated.got == ["in hand", "queued"]
    assert manager.stats()["Gated"].dropped == 1


async def test_so_does_the_end_of_the_observer_that_they_wait_for(monkeypatch, caplog):
    monkeypatch.setattr("stanchion.observers.manager._RETIRE", 0.1)
    gated = Gated()
    async with ObserverManager() as manager:
        name = manager.register(gated, queue=1, overflow="block", block_for=30)
        manager.notify(call("in hand"))
        await eventually(lambda: manager.stats()[name].in_hand == 1)
        manager.notify(call("queued"))
        waiting = asyncio.create_task(manager.notify_with_backpressure(call("waits")))
        await asyncio.sleep(0.02)
        manager.unregister(name)
        await asyncio.wait_for(waiting, 5)
    assert not gated.got
    # As nobody can ask any more for what became of it, the log says so.
    assert "closed: a tool:called is dropped" in caplog.text


def test_only_those_who_ask_for_it_are_waited_for():
    manager = ObserverManager()
    manager.register(lambda event: None, name="drops", queue=1)
    manager.register(lambda event: None, name="blocks", queue=100, overflow="block", block_for=30)
    began = time.monotonic()
    for _ in range(50):
        manager.notify(call())
    assert time.monotonic() - began < 10
    assert manager.stats()["drops"].dropped == 49
    assert manager.stats()["blocks"].queued == 50


def test_a_finalizer_in_the_middle_of_notify_does_not_wait():
    """It holds the lock that the loop needs to make room."""
    manager = ObserverManager()
    manager.register(lambda event: None, name="drops", queue=1, on="tool:*")
    manager.register(lambda event: None, name="blocks", queue=1, overflow="block", block_for=30)

    class Telling:
        def __del__(self):
            took.append(manager.stats()["blocks"].dropped)
            manager.notify(failed("n"))

    took: list[int] = []
    began = time.monotonic()
    with manager._lock:
        manager.notify(failed("fills it"))
        telling = Telling()
        del telling
    assert took
    assert manager.stats()["blocks"].dropped == 1
    assert time.monotonic() - began < 10


def test_many_threads_that_wait_all_get_their_turn():
    got = []

    async def serve():
        async def takes(event):
            await asyncio.sleep(0)
            got.append(event.tool)

        async with ObserverManager() as manager:
            manager.register(takes, queue=2, overflow="block", block_for=20)

            def tell(name):
                for number in range(40):
                    manager.notify(call(f"{name}:{number}"))

            threads = [threading.Thread(target=tell, args=(name,)) for name in range(6)]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(lambda: [thread.join() for thread in threads])
            assert await manager.drain()
            assert manager.stats()["takes"].dropped == 0

    asyncio.run(serve())
    eventually_sync(lambda: len(got) == 240)
    for name in range(6):
        mine = [tool for tool in got if tool.startswith(f"{name}:")]
        assert mine == [f"{name}:{number}" for number in range(40)]
