"""What is sent again, how often, after what pause, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from contextvars import ContextVar
from itertools import pairwise

import pytest

from stanchion.errors import ConfigError
from stanchion.events import Event
from stanchion.observers import ObserverManager, ObserverState, Quarantine, Retry, Undelivered
from tests.observers.doubles import QUICK, Batching, Failing, call
from tests.waiting import eventually

RUN: ContextVar[str] = ContextVar("run", default="none")


async def told(manager: ObserverManager, *names: object) -> None:
    """Notify one event for each name, and wait for what becomes of them."""
    for name in names:
        manager.notify(call(name))
    assert await manager.drain()


async def test_an_idempotent_observer_is_called_again_until_it_works():
    failing = Failing(ConnectionError(), OSError(), idempotent=True)
    async with ObserverManager() as manager:
        manager.register(failing)
        await told(manager, "a", "b")
        stats = manager.stats()["Failing"]
    assert failing.calls == ["a", "a", "a", "b"]
    assert failing.got == ["a", "b"]
    assert (stats.delivered, stats.failed, stats.retried) == (2, 0, 2)


async def test_any_other_observer_is_not():
    failing = Failing(ConnectionError())
    async with ObserverManager() as manager:
        manager.register(failing)
        await told(manager, "a", "b")
        stats = manager.stats()["Failing"]
    assert failing.calls == ["a", "b"]
    assert (stats.delivered, stats.failed, stats.retried) == (1, 1, 0)


@pytest.mark.parametrize(
    ("idempotent", "retry", "calls"), [(False, True, 2), (False, QUICK, 2), (True, False, 1)]
)
async def test_register_overrules_what_the_observer_says(idempotent, retry, calls):
    failing = Failing(ConnectionError(), idempotent=idempotent)
    async with ObserverManager() as manager:
        manager.register(failing, retry=retry)
        await told(manager, "a")
    assert len(failing.calls) == calls


async def test_after_so_many_attempts_events_have_failed(caplog):
    failing = Failing(*(ConnectionError() for _ in range(4)))
    async with ObserverManager() as manager:
        manager.register(failing, retry=Retry(attempts=4, first=0.001))
        await told(manager, "a", "b")
        stats = manager.stats()["Failing"]
    assert failing.calls == ["a"] * 4 + ["b"]
    assert (stats.delivered, stats.failed, stats.retried) == (1, 1, 3)
    assert caplog.text.count("'Failing' failed on a tool:called and is called again: Conn") == 3
    assert caplog.text.count("'Failing' failed on a tool:called: ConnectionError") == 1


async def test_after_so_much_time_events_have_failed():
    failing = Failing(*(ConnectionError() for _ in range(1000)))
    async with ObserverManager() as manager:
        retry = Retry(attempts=1000, within=0.1, first=0.01, longest=0.02)
        manager.register(failing, retry=retry, quarantine=None)
        began = time.monotonic()
        await told(manager, "a")
        assert 0.1 <= time.monotonic() - began < 5
        assert manager.stats()["Failing"].failed == 1
    assert 2 < len(failing.calls) < 1000


async def test_pauses_grow_and_differ():
    failing = Failing(*(ConnectionError() for _ in range(60)))
    async with ObserverManager() as manager:
        retry = Retry(attempts=61, first=0.0005, longest=0.02)
        manager.register(failing, retry=retry, quarantine=None)
        await told(manager, "a")
    pauses = [after - before for before, after in pairwise(failing.times)]
    assert sum(pauses[:5]) < sum(pauses[-5:])
    # A random share of 20 ms each; without jitter they would all be alike.
    late = pauses[20:]
    assert min(late) < 0.008
    assert max(late) > 0.012


# --------------------------------------------------------------------- what a sink says was missed


async def test_only_what_was_not_taken_is_sent_again():
    refused = [{"1", "3"}, {"3"}, set()]

    def fails(events):
        now = refused.pop(0) if refused else set()
        missed = [event for event in events if event.tool in now]
        return Undelivered(missed, "throttled") if missed else None

    # It is not idempotent: what it names as missed cannot arrive twice.
    batching = Batching(5, fails=fails)
    manager = ObserverManager()
    manager.register(batching, retry=None)
    for number in range(4):
        manager.notify(call(number))
    async with manager:
        assert await manager.drain()
        stats = manager.stats()["Batching"]
    assert batching.batches == [["0", "1", "2", "3"], ["1", "3"], ["3"]]
    assert (stats.delivered, stats.failed, stats.retried) == (4, 0, 3)


async def test_what_a_sink_refuses_for_good_is_not_sent_again(caplog):
    def fails(events):
        missed = [event for event in events if event.tool == "large"]
        return Undelivered(missed, "too large", permanent=True) if missed else None

    batching = Batching(5, idempotent=True, fails=fails)
    manager = ObserverManager()
    manager.register(batching)
    for name in ("a", "large", "b"):
        manager.notify(call(name))
    async with manager:
        assert await manager.drain()
        stats = manager.stats()["Batching"]
    assert batching.batches == [["a", "large", "b"]]
    assert (stats.delivered, stats.failed, stats.retried) == (2, 1, 0)
    assert "'too large'" in caplog.text


async def test_a_single_event_can_be_undelivered_too():
    class Single(Failing):
        async def handle(self, event: Event):
            self.calls.append("called")
            if len(self.calls) < 3:
                raise Undelivered([event], "not yet")

    single = Single()
    async with ObserverManager() as manager:
        manager.register(single, retry=QUICK)
        await told(manager, "a")
        assert manager.stats()["Single"].delivered == 1
    assert len(single.calls) == 3


async def test_the_events_may_be_copies():
    def fails(events):
        if len(batching.batches) > 1:
            return None
        return Undelivered([Event.from_cloudevent(events[1].to_cloudevent())], "no")

    batching = Batching(5, fails=fails)
    manager = ObserverManager()
    manager.register(batching)
    for number in range(3):
        manager.notify(call(number))
    async with manager:
        assert await manager.drain()
    assert batching.batches == [["0", "1", "2"], ["1"]]


@pytest.mark.parametrize(("idempotent", "calls"), [(True, 2), (False, 1)])
async def test_who_names_events_that_it_was_not_sent_has_taken_none(idempotent, calls):
    def fails(events):
        del events
        return Undelivered([call("a stranger")], "no") if len(batching.batches) == 1 else None

    batching = Batching(5, idempotent=idempotent, fails=fails)
    async with ObserverManager() as manager:
        manager.register(batching)
        await told(manager, "a")
        stats = manager.stats()["Batching"]
    assert batching.got == ["a"] * calls
    assert stats.delivered + stats.failed == 1
    assert stats.delivered == (1 if idempotent else 0)


async def test_the_pause_that_a_receiver_asks_for_is_kept_by_all_workers():
    calls: list[tuple[str, float]] = []

    class Throttled:
        async def handle(self, event):
            calls.append((event.tool, time.monotonic()))
            if [name for name, _ in calls].count("first") < 3 and event.tool == "first":
                raise Undelivered([event], "HTTP 429", retry_after=0.15)

    async with ObserverManager() as manager:
        # The pause does not count towards the time that retries may take.
        manager.register(Throttled(), concurrency=3, retry=Retry(within=0.05, first=0.001))
        manager.notify(call("first"))
        await eventually(lambda: calls)
        for name in ("second", "third"):
            manager.notify(call(name))
        assert await manager.drain()
        assert manager.stats()["Throttled"].failed == 0
    began = calls[0][1]
    assert sorted(name for name, _ in calls) == ["first", "first", "first", "second", "third"]
    assert all(0.15 <= moment - began < 5 for _, moment in calls[1:])
    assert max(moment for name, moment in calls if name == "first") - began >= 0.3


@pytest.mark.parametrize("asked", [float("nan"), float("inf"), -1.0, 0.0, None])
async def test_a_pause_that_makes_no_sense_is_not_waited_for(asked):
    class Odd:
        async def handle(self, event):
            if manager.stats()["Odd"].retried == 0:
                raise Undelivered([event], "x", retry_after=asked)

    async with ObserverManager() as manager:
        manager.register(Odd(), retry=QUICK)
        await told(manager, "a")
        assert manager.stats()["Odd"].delivered == 1


# ------------------------------------------------------------------------------------ the rest


async def test_a_call_that_takes_too_long_is_made_again_where_it_does_no_harm():
    calls: list[str] = []

    class Hanging:
        idempotent = True

        async def handle(self, event):
            calls.append(event.tool)
            if len(calls) < 3:
                await asyncio.Event().wait()

    async with ObserverManager() as manager:
        manager.register(Hanging(), timeout=0.02)
        await told(manager, "a")
        stats = manager.stats()["Hanging"]
    assert calls == ["a", "a", "a"]
    assert (stats.delivered, stats.timed_out, stats.retried) == (1, 0, 2)


async def test_a_call_in_a_thread_that_is_late_but_works_is_not_made_again():
    calls: list[str] = []
    release = threading.Event()

    class Late:
        idempotent = True

        def handle(self, event):
            calls.append(event.tool)
            release.wait()

    async with ObserverManager() as manager:
        manager.register(Late(), timeout=0.02)
        manager.notify(call())
        await asyncio.sleep(0.1)
        release.set()
        assert await manager.drain()
        stats = manager.stats()["Late"]
    assert calls == ["t"]
    assert (stats.timed_out, stats.retried) == (1, 0)


async def test_every_call_has_the_context_of_who_notified():
    seen: list[str] = []

    class Seeing:
        idempotent = True

        async def handle(self, event):
            del event
            seen.append(RUN.get())
            RUN.set("changed")
            if len(seen) < 3:
                raise ConnectionError

    async with ObserverManager() as manager:
        manager.register(Seeing(), retry=QUICK)
        RUN.set("mine")
        manager.notify(call())
        RUN.set("another")
        assert await manager.drain()
    assert seen == ["mine"] * 3


async def test_the_state_says_that_something_is_sent_again():
    failing = Failing(ConnectionError(), idempotent=True)
    async with ObserverManager() as manager:
        manager.register(failing, retry=Retry(first=0.1))
        assert manager.stats()["Failing"].state is ObserverState.STARTING
        manager.notify(call())
        await eventually(
            lambda: manager.stats()["Failing"].state is ObserverState.RETRYING, interval=0
        )
        assert await manager.drain()
        assert manager.stats()["Failing"].state is ObserverState.RUNNING


async def test_what_is_being_sent_again_is_sent_at_once_when_it_ends():
    failing = Failing(ConnectionError(), idempotent=True)
    manager = ObserverManager()
    manager.register(failing, retry=Retry(first=36000, longest=36000))
    await manager.start()
    manager.notify(call("a"))
    await eventually(lambda: failing.calls)
    began = time.monotonic()
    assert not await manager.close()
    assert time.monotonic() - began < 2
    assert failing.got == ["a"]


async def test_the_end_does_not_wait_for_a_receiver_that_asked_for_more_time_than_there_is():
    class Throttled:
        async def handle(self, event):
            raise Undelivered([event], "HTTP 429", retry_after=600)

    manager = ObserverManager()
    manager.register(Throttled())
    await manager.start()
    manager.notify(call())
    manager.notify(call())
    await eventually(lambda: manager.stats()["Throttled"].state is ObserverState.RETRYING)
    began = time.monotonic()
    lost = await manager.close(20)
    assert time.monotonic() - began < 5
    assert lost["Throttled"].events == 2


async def test_errors_reach_the_log_and_nobody_else(caplog):
    failing = Failing(*(ConnectionError("password=hunter2") for _ in range(50)), idempotent=True)
    manager = ObserverManager()
    manager.register(failing, retry=Retry(attempts=2, first=0.001), quarantine=None)
    with caplog.at_level(logging.INFO):
        async with manager:
            await told(manager, *range(25))
    assert manager.stats()["Failing"].failed == 25
    lines = [record.getMessage() for record in caplog.records]
    # Five of each kind at once: enough to see, too few to fill a disk.
    assert sum("is called again" in line for line in lines) == 5
    assert sum("failed on a tool:called: " in line for line in lines) == 5
    assert all("'Failing'" in line for line in lines)
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (Retry, {"attempts": 1}, "retry.attempts=1"),
        (Retry, {"attempts": True}, "retry.attempts=True"),
        (Retry, {"within": 0}, "retry.within=0"),
        (Retry, {"first": "soon"}, "retry.first='soon'"),
        (Retry, {"longest": -1}, "retry.longest=-1"),
        (Quarantine, {"after": 0}, "quarantine.after=0"),
        (Quarantine, {"pause": 0}, "quarantine.pause=0"),
        (Quarantine, {"longest": None}, "quarantine.longest=None"),
    ],
)
def test_terms_that_cannot_work_are_refused(kind, fields, named):
    with pytest.raises(ConfigError, match=named):
        kind(**fields)


@pytest.mark.parametrize("fields", [{"events": [5]}, {"retry_after": "soon"}, {"events": 7}])
async def test_an_error_that_cannot_be_understood_ends_no_delivery(fields, caplog):
    class Odd:
        async def handle(self, event):
            if event.tool == "odd":
                error = Undelivered([event], "x")
                vars(error).update(fields)
                raise error

    async with ObserverManager() as manager:
        manager.register(Odd())
        await told(manager, "odd", "b", "c")
        stats = manager.stats()["Odd"]
    assert (stats.delivered, stats.dropped, stats.in_hand) == (2, 1, 0)
    assert (
        "observer 'Odd': what it raised cannot be understood, 1 events are dropped" in caplog.text
    )


async def test_a_batch_whose_observer_hangs_for_good_does_not_keep_close():
    class Stubborn(Batching):
        async def handle_batch(self, events):
            while not stop.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await stop.wait()

    stop = asyncio.Event()
    manager = ObserverManager()
    manager.register(Stubborn(idempotent=True), timeout=0.02)
    await manager.start()
    manager.notify(call())
    await eventually(lambda: manager.stats()["Stubborn"].in_hand)
    lost = await manager.close(0.4)
    assert (lost["Stubborn"].events, lost["Stubborn"].calls) == (1, 1)
    stop.set()
