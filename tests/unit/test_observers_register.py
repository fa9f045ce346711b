"""Who can be an observer, and which events it is sent."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial

import pytest

from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError, StanchionError
from stanchion.events import (
    CircuitChanged,
    CircuitOpened,
    Event,
    NodeStarted,
    ToolCalled,
    UnknownEvent,
)
from stanchion.observers import ObserverManager, Overflow, Recorder
from tests.waiting import eventually


class ObservedCall(Event, type="observed:call"):
    model: str = "m"


class SpecialCall(ObservedCall, type="observed:special"):
    pass


OPENED = CircuitOpened(
    policy="p",
    subject="-",
    previous=CircuitState.CLOSED,
    state=CircuitState.OPEN,
    generation=1,
    seq=1,
)
ALL = {"observed:call", "observed:special", "tool:called", "circuit:opened", "their:thing"}


class Keeping:
    """An observer with `handle`."""

    def __init__(self):
        self.got = []

    async def handle(self, event):
        self.got.append(event)


class Batching:
    """An observer with `handle_batch`."""

    def __init__(self, size=10):
        self.batch_size = size
        self.batches = []

    async def handle_batch(self, events):
        self.batches.append(events)

    @property
    def got(self):
        return [event for batch in self.batches for event in batch]


class Calling:
    """An instance with `async def __call__`."""

    def __init__(self):
        self.got = []

    async def __call__(self, event):
        self.got.append((event, threading.get_ident()))


async def nothing(event):
    del event


def unknown(kind="their:thing"):
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": kind, "data": {}}
    event = Event.from_cloudevent(document)
    assert isinstance(event, UnknownEvent)
    return event


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"observer": 5}, ("observer=5", "async handle(event)")),
        ({"observer": None}, ("observer=None", "callable")),
        ({"observer": Keeping}, ("observer=", "Keeping", "instance")),
        ({"on": 5}, ("on=5", "event class")),
        ({"on": ()}, ("on=()", "event class")),
        ({"on": ("llm:*", "bad text")}, ("on='bad text'", "event class")),
        ({"on": int}, ("on=<class 'int'>", "event class")),
        ({"name": ""}, ("name=''", "not empty")),
        ({"name": 7}, ("name=7", "text")),
        ({"timeout": -1}, ("timeout=-1", "microsecond")),
        ({"timeout": 0}, ("timeout=0", "microsecond")),
        ({"timeout": "soon"}, ("timeout='soon'", "250ms")),
        ({"timeout": float("nan")}, ("timeout=nan", "microsecond")),
        ({"queue": 0}, ("queue=0", "at least 1")),
        ({"queue": True}, ("queue=True", "integer")),
        ({"queue": 1.5}, ("queue=1.5", "integer")),
        ({"concurrency": 0}, ("concurrency=0", "at least 1")),
        ({"overflow": "drop"}, ("overflow='drop'", "drop_oldest, drop_newest")),
    ],
)
def test_a_misuse_is_refused_and_named(arguments, names):
    manager = ObserverManager()
    given = {"observer": nothing, **arguments}
    with pytest.raises(ConfigError) as caught:
        manager.register(given.pop("observer"), **given)
    for name in names:
        assert name in str(caught.value)
    assert not manager.stats()


@pytest.mark.parametrize("size", [None, 0, -1, "10", True])
def test_a_batch_observer_must_say_how_much_it_takes(size):
    with pytest.raises(ConfigError, match=r"batch_size=.*handle_batch"):
        ObserverManager().register(Batching(size))


def test_names_are_made_from_the_observer_and_do_not_clash():
    manager = ObserverManager()
    assert manager.register(nothing) == "nothing"
    assert manager.register(nothing) == "nothing-2"
    assert manager.register(Keeping()) == "Keeping"
    assert manager.register(partial(nothing)) == "nothing-3"
    assert manager.register(Keeping().handle, name="mine") == "mine"
    with pytest.raises(ConfigError, match=r"name='mine'.*already"):
        manager.register(nothing, name="mine")
    assert list(manager.stats()) == ["nothing", "nothing-2", "Keeping", "nothing-3", "mine"]


def test_a_local_function_is_called_by_its_own_name():
    def told(event):
        del event

    assert ObserverManager().register(told) == "told"


async def test_every_kind_of_observer_gets_the_event():
    loop_thread, plain = threading.get_ident(), []

    def function(event):
        plain.append((event, threading.get_ident()))

    keeping, batching, calling = Keeping(), Batching(), Calling()
    event = ToolCalled(tool="search")
    async with ObserverManager() as manager:
        for observer in (keeping, batching, calling, function, partial(keeping.handle)):
            manager.register(observer)
        manager.notify(event)
        assert await manager.drain()
        assert {stats.delivered for stats in manager.stats().values()} == {1}
    assert keeping.got == [event, event]
    assert batching.batches == [(event,)]
    assert calling.got == [(event, loop_thread)]
    assert [told for told, _ in plain] == [event]
    assert plain[0][1] != loop_thread


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("*", ALL),
        (Event, ALL),
        (ObservedCall, {"observed:call", "observed:special"}),
        (SpecialCall, {"observed:special"}),
        ("observed:call", {"observed:call"}),
        ("observed:*", {"observed:call", "observed:special"}),
        (("tool:*", SpecialCall), {"observed:special", "tool:called"}),
        (CircuitChanged, {"circuit:opened"}),
        ("their:*", {"their:thing"}),
        (UnknownEvent, {"their:thing"}),
    ],
)
async def test_selection_is_the_same_for_single_events_and_batches(on, expected, batched):
    observer = Batching() if batched else Keeping()
    async with ObserverManager() as manager:
        manager.register(observer, on=on)
        for _ in range(2):  # found, and then from the cache
            for event in (ObservedCall(), SpecialCall(), ToolCalled(tool="t"), OPENED, unknown()):
                manager.notify(event)
        assert await manager.drain()
    kinds = [event.event_type for event in observer.got]
    assert set(kinds) == expected
    assert len(kinds) == 2 * len(set(kinds))


async def test_unknown_events_are_told_apart_by_their_own_type():
    keeping = Keeping()
    async with ObserverManager() as manager:
        manager.register(keeping, on="first:*")
        for number in range(3000):  # more types than are remembered
            manager.notify(unknown(f"other:t{number}"))
            if number % 1000 == 0:
                manager.notify(unknown("first:one"))
        assert await manager.drain()
        # What strangers send does not make us remember without end.
        assert len(manager._directory._unknown) <= 1024
    assert [event.event_type for event in keeping.got] == ["first:one"] * 3


async def test_an_observer_may_say_itself_what_it_wants():
    told, overruled = Recorder(on="tool:*"), Recorder(on="tool:*")
    async with ObserverManager() as manager:
        manager.register(told)
        manager.register(overruled, on="node:*")
        manager.notify(ToolCalled(tool="t"))
        manager.notify(NodeStarted(node="n"))
        assert await manager.drain()
    assert [event.event_type for event in told.events] == ["tool:called"]
    assert [event.event_type for event in overruled.events] == ["node:started"]


async def test_a_method_called_on_is_no_selection():
    class Emitter(Keeping):
        def on(self, name):
            raise AssertionError(name)

    emitter = Emitter()
    async with ObserverManager() as manager:
        manager.register(emitter)
        manager.notify(ToolCalled(tool="t"))
        assert await manager.drain()
    assert len(emitter.got) == 1


async def test_the_manager_holds_on_to_observers():
    got = []

    class Ephemeral:
        async def handle(self, event):
            got.append(event)

    async with ObserverManager() as manager:
        manager.register(Ephemeral())
        manager.register(Ephemeral().handle)
        manager.register(lambda event: got.append(event.tool))
        gc.collect()
        manager.notify(ToolCalled(tool="t"))
        assert await manager.drain()
    assert len(got) == 3


async def test_batches_are_as_large_as_what_waits_and_no_larger_than_declared():
    batching = Batching(size=4)
    manager = ObserverManager()
    manager.register(batching)
    for number in range(10):
        manager.notify(ToolCalled(tool=str(number)))
    async with manager:
        assert await manager.drain()
        assert manager.stats()["Batching"].delivered == 10
    assert [len(batch) for batch in batching.batches] == [4, 4, 2]
    assert [event.tool for event in batching.got] == [str(number) for number in range(10)]


async def test_a_batch_that_fails_counts_each_of_its_events():
    class Failing(Batching):
        async def handle_batch(self, events):
            await super().handle_batch(events)
            raise ConnectionError

    manager = ObserverManager()
    manager.register(Failing(size=3))
    for number in range(5):
        manager.notify(ToolCalled(tool=str(number)))
    async with manager:
        assert await manager.drain()
        assert manager.stats()["Failing"].failed == 5


async def test_events_arrive_in_their_order_with_one_worker():
    keeping = Keeping()
    async with ObserverManager() as manager:
        manager.register(keeping)
        for number in range(500):
            manager.notify(ToolCalled(tool=str(number)))
        assert await manager.drain()
    assert [event.tool for event in keeping.got] == [str(number) for number in range(500)]


async def test_concurrency_is_how_many_calls_run_at_once():
    running, most, gate = 0, 0, asyncio.Event()

    async def slow(event):
        nonlocal running, most
        del event
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with ObserverManager() as manager:
        manager.register(slow, concurrency=3)
        for _ in range(10):
            manager.notify(ToolCalled(tool="t"))
        await eventually(lambda: running == 3)
        assert manager.stats()["slow"].queued == 7
        gate.set()
        assert await manager.drain()
    assert most == 3


async def test_registration_while_running():
    first, second = Keeping(), Keeping()
    async with ObserverManager() as manager:
        manager.register(first)
        manager.notify(ToolCalled(tool="one"))
        manager.register(second, name="second")
        manager.notify(ToolCalled(tool="two"))
        assert await manager.drain()
        # From another thread, too.
        third = Keeping()
        await asyncio.to_thread(manager.register, third, name="third")
        await asyncio.to_thread(manager.unregister, "second")
        manager.notify(ToolCalled(tool="three"))
        assert await manager.drain()
    assert [event.tool for event in first.got] == ["one", "two", "three"]
    assert [event.tool for event in second.got] == ["two"]
    assert [event.tool for event in third.got] == ["three"]


async def test_an_unregistered_observer_gets_what_it_was_promised_and_is_closed():
    closed, gate = [], asyncio.Event()

    class Closing(Keeping):
        async def handle(self, event):
            await gate.wait()
            await super().handle(event)

        async def close(self):
            closed.append(len(self.got))

    observer = Closing()
    async with ObserverManager() as manager:
        name = manager.register(observer)
        for _ in range(3):
            manager.notify(ToolCalled(tool="t"))
        manager.unregister(name)
        manager.notify(ToolCalled(tool="late"))
        assert name not in manager.stats()
        assert manager.register(nothing, name=name) == name
        gate.set()
        await eventually(lambda: closed)
    assert closed == [3]


async def test_close_waits_for_what_was_unregistered_just_before():
    keeping = Keeping()
    async with ObserverManager() as manager:
        name = manager.register(keeping)
        for _ in range(3):
            manager.notify(ToolCalled(tool="t"))
        manager.unregister(name)
    assert len(keeping.got) == 3


def test_unregistering_a_stranger_says_who_there_is():
    manager = ObserverManager()
    manager.register(nothing)
    with pytest.raises(ConfigError, match=r"name='noting'.*\['nothing'\]"):
        manager.unregister("noting")


async def test_nothing_can_be_registered_after_the_end():
    manager = ObserverManager()
    await manager.close()
    with pytest.raises(StanchionError, match="closed"):
        manager.register(nothing)
    with pytest.raises(StanchionError, match="closed"):
        await manager.start()


async def test_overflow_can_be_given_as_text():
    manager = ObserverManager()
    manager.register(nothing, overflow="drop_newest", queue=1)
    for name in ("kept", "dropped"):
        manager.notify(ToolCalled(tool=name))
    assert manager.stats()["nothing"].dropped == 1
    assert Overflow("drop_newest") is Overflow.DROP_NEWEST
    await manager.close()
