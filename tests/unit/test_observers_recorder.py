"""Events kept in memory."""

from __future__ import annotations

import asyncio

import pytest

from stanchion.errors import ConfigError
from stanchion.events import NodeCompleted, NodeStarted, ToolCalled
from stanchion.observers import ObserverManager, Recorder


class Connected(Recorder):
    """A recorder that one can tell things, by way of a manager."""

    def __init__(self, manager):
        super().__init__()
        self.notify = manager.notify
        manager.register(self)


@pytest.fixture
async def recorder():
    async with ObserverManager() as manager:
        yield Connected(manager)


async def test_it_keeps_events_in_order_and_finds_them_by_selector(recorder):
    events = [NodeStarted(node="a"), ToolCalled(tool="t"), NodeCompleted(node="a", duration=1.0)]
    for event in events:
        recorder.notify(event)
    assert await recorder.wait_for(NodeCompleted) is events[2]
    assert recorder.events == tuple(events)
    assert recorder.of(NodeStarted) == (events[0],)
    assert recorder.of("node:*") == (events[0], events[2])
    assert recorder.of(("tool:called", NodeCompleted)) == (events[1], events[2])
    recorder.clear()
    assert recorder.events == ()


async def test_it_keeps_the_last_ones():
    recorder = Recorder(maxlen=2)
    for number in range(5):
        await recorder.handle(ToolCalled(tool=str(number)))
    assert [event.tool for event in recorder.of(ToolCalled)] == ["3", "4"]
    assert recorder.forgotten == 3
    recorder.clear()
    assert recorder.forgotten == 0


@pytest.mark.parametrize(
    "wanted",
    [
        ToolCalled,
        "tool:called",
        "tool:*",
        ("node:*", ToolCalled),
        lambda event: event.tenant == "b",
    ],
)
async def test_waiting_finds_what_is_there_and_what_comes(wanted, recorder):
    event = ToolCalled(tool="t", tenant="b")
    waiting = asyncio.create_task(recorder.wait_for(wanted))
    await asyncio.sleep(0)
    recorder.notify(event)
    assert await waiting is event
    assert await recorder.wait_for(wanted) is event


async def test_several_may_wait(recorder):
    first = asyncio.create_task(recorder.wait_for("tool:*"))
    second = asyncio.create_task(recorder.wait_for("node:*"))
    await asyncio.sleep(0)
    recorder.notify(ToolCalled(tool="t"))
    assert (await first).event_type == "tool:called"
    assert not second.done()
    recorder.notify(NodeStarted(node="n"))
    assert (await second).event_type == "node:started"


async def test_waiting_in_vain_says_what_was_seen(recorder):
    for _ in range(2):
        recorder.notify(ToolCalled(tool="t"))
    await recorder.wait_for(ToolCalled)
    with pytest.raises(TimeoutError, match=r"0.05 s; seen: \{'tool:called': 2\}"):
        await recorder.wait_for("node:*", timeout=0.05)


async def test_a_predicate_that_raises_concerns_only_who_waits_with_it(recorder):
    broken = asyncio.create_task(recorder.wait_for(lambda event: event.no_such_field))
    sound = asyncio.create_task(recorder.wait_for(ToolCalled))
    await asyncio.sleep(0)
    recorder.notify(ToolCalled(tool="t"))
    with pytest.raises(AttributeError, match="no_such_field"):
        await broken
    assert (await sound).tool == "t"


async def test_two_events_at_once_end_one_waiting_once():
    recorder = Recorder()
    waiting = asyncio.create_task(recorder.wait_for(ToolCalled))
    await asyncio.sleep(0)
    first, second = ToolCalled(tool="1"), ToolCalled(tool="2")
    # Neither call suspends, so that the one who waits has had no turn in between.
    await recorder.handle(first)
    await recorder.handle(second)
    assert await waiting is first
    assert recorder.events == (first, second)


async def test_giving_up_leaves_nothing_behind(recorder):
    waiting = asyncio.create_task(recorder.wait_for(ToolCalled))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not recorder._waiting
    recorder.notify(ToolCalled(tool="t"))
    assert (await recorder.wait_for(ToolCalled)).tool == "t"


@pytest.mark.parametrize("maxlen", [0, -1, None, 1.5, "10"])
def test_a_bad_maxlen_is_refused(maxlen):
    with pytest.raises(ConfigError, match="maxlen="):
        Recorder(maxlen)


async def test_a_bad_selector_is_refused(recorder):
    with pytest.raises(ConfigError, match="on=5"):
        recorder.of(5)
    with pytest.raises(ConfigError, match="wanted=5"):
        await recorder.wait_for(5)
    with pytest.raises(ConfigError, match="on='bad one'"):
        Recorder(on="bad one")
