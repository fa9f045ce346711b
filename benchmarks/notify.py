"""What does notify cost who calls it, and what do five observers do to the loop's latency?

The first table is of the call, and of what it takes after it, in the loop, to hand the event over
to observers that do nothing. The second one is of a loop that notifies 20 events a millisecond, and
of how late one of its tasks wakes that asks to be woken every millisecond. Of the five observers
three take batches that wait 50 ms to fill, one hangs in its first call, and one raises in every
call.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from harness import report
from harness.command import Run, main
from harness.measure import Figures, Results, quantile, rotated

from stanchion.events import NodeStarted, ToolCalled
from stanchion.observers import ObserverManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stanchion.events import Event
    from stanchion.observers import AnyObserver

AT_ONCE = 500  # calls of notify between two clocks; fewer than a queue holds
BURST = 20  # events a millisecond


class Batches:
    batch_size = 500
    batch_delay = 0.05

    def __init__(self) -> None:
        self.got = 0

    async def handle_batch(self, events: Sequence[Event]) -> None:
        self.got += len(events)


class OneByOne:
    def __init__(self) -> None:
        self.got = 0

    async def handle(self, event: Event) -> None:
        del event
        self.got += 1


async def hangs(event: Event) -> None:
    del event
    await asyncio.Event().wait()


async def raises(event: Event) -> None:
    raise ValueError(event.id)


def five() -> list[AnyObserver]:
    return [Batches(), Batches(), Batches(), hangs, raises]


#: Who is registered, and for which events; the event is a `node:started`.
CALLS: dict[str, tuple[Callable[[], Iterable[AnyObserver]], str]] = {
    "stanchion": (lambda: [Batches()], "*"),
    "five observers": (lambda: [Batches() for _ in range(5)], "*"),
    "one, one by one": (lambda: [OneByOne()], "*"),
    "one, not interested": (lambda: [Batches()], "llm:*"),
    "no observer": (list, "*"),
}
LOOPS: dict[str, Callable[[], Iterable[AnyObserver]]] = {
    "stanchion": five,
    "no observer": list,
    "one, one by one": lambda: [OneByOne()],
}


async def cost(observers: Iterable[AnyObserver], on: str, seconds: float) -> Figures:
    """Get what a call takes in the median burst of them and in the fastest, and what follows."""
    event = NodeStarted(node="n", run_id="r")
    spans: list[float] = []
    afterwards: list[float] = []
    async with ObserverManager() as manager:
        for observer in observers:
            manager.register(observer, on=on)
        notify = manager.notify
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter_ns()) / 1e9 < ends:
            for _ in range(AT_ONCE):
                notify(event)
            ended = time.perf_counter_ns()
            await manager.drain()
            spans.append((ended - began) / 1e3 / AT_ONCE)
            afterwards.append((time.perf_counter_ns() - ended) / 1e3 / AT_ONCE)
        lost = sum(stats.dropped for stats in manager.stats().values())
    if lost:
        raise AssertionError(f"{lost} events were dropped: not only appending was measured")
    spans.sort()
    afterwards.sort()
    return {
        "us": quantile(spans, 0.5),
        "least_us": spans[0],
        "after_us": quantile(afterwards, 0.5),
    }


async def latency(observers: Iterable[AnyObserver], events: int) -> Figures:
    """Get how late a task wakes in a loop that notifies, and what share of the time it works."""
    late: list[float] = []
    done = asyncio.Event()

    async def tick() -> None:
        while not done.is_set():
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - due) * 1e6)

    manager = ObserverManager()
    await manager.start()
    for observer in observers:
        # Those two keep theirs full; all others empty it in time.
        manager.register(observer, queue=1000 if observer in {hangs, raises} else 10_000)
    ticker = asyncio.create_task(tick())
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(events // BURST):
        for _ in range(BURST):
            manager.notify(ToolCalled(tool="t", run_id="r", attempt=number + 1))
        await asyncio.sleep(0.001)
    busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    done.set()
    await ticker
    await manager.close(0.5)
    for name, stats in manager.stats().items():
        if name not in {"hangs", "raises"} and stats.delivered != events // BURST * BURST:
            raise AssertionError(f"{name} got {stats.delivered} of {events} events")
    late.sort()
    return {
        "p50_us": quantile(late, 0.5),
        "p99_us": quantile(late, 0.99),
        "max_us": late[-1],
        "cpu": busy * 100,
    }


async def measure(run: Run) -> None:
    calls, loops = Results(), Results()
    for number in range(run.rounds):
        for name, (observers, on) in rotated(list(CALLS.items()), number):
            if not run.only or name in run.only:
                taken = await cost(observers(), on, run.seconds(0.4))
                calls.rounds.setdefault(name, []).append(taken)
    columns = [
        report.Column("us", "us", ".2f", ratio=True),
        report.Column("least us", "least_us", ".2f"),
        report.Column("to hand over us", "after_us", ".2f"),
    ]
    names = [name for name in CALLS if name in calls.rounds]
    table = report.tabulate("one call of notify", calls, columns, names)
    run.add("calls", calls, table)

    events = 6_000 if run.quick else 40_000
    for number in range(run.rounds):
        for name, make in rotated(list(LOOPS.items()), number):
            if not run.only or name in run.only:
                loops.rounds.setdefault(name, []).append(await latency(make(), events))
    columns = [
        report.Column("p50 us late", "p50_us", ratio=True),
        report.Column("p99 us late", "p99_us", ratio=True),
        report.Column("max us late", "max_us"),
        report.Column("CPU %", "cpu"),
    ]
    names = [name for name in LOOPS if name in loops.rounds]
    title = f"a loop that notifies {events:,} events, {BURST} a millisecond"
    run.add("loop", loops, report.tabulate(title, loops, columns, names))


if __name__ == "__main__":
    main("notify", __doc__, measure)
