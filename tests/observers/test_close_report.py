"""What `close` says of that which it could not deliver."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import FrozenInstanceError

import pytest

from stanchion.observers import ObserverManager, Recorder, Unfinished
from tests.observers.doubles import call
from tests.waiting import eventually, eventually_sync


async def hangs(event):
    del event
    await asyncio.Event().wait()


async def test_it_is_empty_when_everything_was_delivered():
    recorder = Recorder()
    manager = ObserverManager()
    manager.register(recorder)
    await manager.start()
    for number in range(100):
        manager.notify(call(number))
    assert await manager.close(drain=5.0) == {}
    assert len(recorder.events) == 100


async def test_each_observer_that_lost_something_is_named_with_what_it_lost():
    release = threading.Event()

    def blocks(event):
        del event
        release.wait()

    class Clinging(Recorder):
        async def close(self):
            raise ConnectionError("secret")

    manager = ObserverManager()
    for observer in (hangs, blocks, Clinging(), Recorder()):
        manager.register(observer)
    await manager.start()
    for number in range(4):
        manager.notify(call(number))
    await eventually(lambda: manager.stats()["blocks"].in_hand == 1)
    lost = await manager.close(drain=0.2)
    assert lost["hangs"] == Unfinished(events=4)
    assert lost["blocks"] == Unfinished(events=4, calls=1)
    assert (lost["Clinging"].events, lost["Clinging"].calls) == (0, 0)
    assert str(lost["Clinging"].error).startswith("ConnectionError at test_close_report.py:")
    assert set(lost) == {"hangs", "blocks", "Clinging"}
    assert {name: report.events for name, report in lost.items() if report.events} == {
        name: stats.dropped for name, stats in manager.stats().items() if stats.dropped
    }
    release.set()
    await asyncio.to_thread(
        eventually_sync,
        lambda: not [t for t in threading.enumerate() if t.name.startswith("stanchion-observer")],
    )


async def test_it_cannot_be_changed():
    manager = ObserverManager()
    manager.register(hangs)
    await manager.start()
    manager.notify(call())
    lost = await manager.close(0)
    with pytest.raises(TypeError):
        lost["hangs"] = Unfinished()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        lost["hangs"].events = 0  # pyright: ignore[reportAttributeAccessIssue]


async def test_everybody_who_closes_gets_it():
    manager = ObserverManager()
    manager.register(hangs)
    await manager.start()
    manager.notify(call())
    first, second = await asyncio.gather(manager.close(0.1), manager.close(0.1))
    assert first == second == await manager.close() == {"hangs": Unfinished(events=1)}


async def test_it_counts_what_was_unregistered_just_before():
    manager = ObserverManager()
    await manager.start()
    for _ in range(2):
        manager.register(hangs, name="mine")
        manager.notify(call())
        manager.unregister("mine")
    assert await manager.close(0.1) == {"mine": Unfinished(events=2)}


def test_it_counts_what_was_lost_with_the_event_loop():
    async def start():
        await manager.start()
        manager.notify(call())
        await eventually(lambda: manager.stats()["hangs"].in_hand == 1)

    manager = ObserverManager()
    manager.register(hangs)
    asyncio.run(start())
    manager.notify(call())
    stats = manager.stats()["hangs"]
    assert (stats.received, stats.dropped, stats.in_hand) == (2, 2, 0)


def test_it_counts_what_was_in_hand_when_the_loop_was_closed_under_it(caplog):
    async def start():
        await manager.start()
        manager.notify(call())
        await eventually(lambda: manager.stats()["hangs"].in_hand == 1)

    manager = ObserverManager()
    manager.register(hangs)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    manager.notify(call())
    stats = manager.stats()["hangs"]
    assert (stats.received, stats.dropped, stats.in_hand) == (2, 2, 0)
    assert "has ended without `close`: 2 events are lost" in caplog.text
    for task in tasks:
        task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue] - on purpose
