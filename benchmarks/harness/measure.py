"""Calling a contender for a while, and what came of it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from harness.machine import installed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

Figures = dict[str, float]
Item = TypeVar("Item")

WARM_UP = 0.15


@dataclass(frozen=True)
class Contender:
    """Somebody who is measured. `needs` is the distribution without which it is left out."""

    name: str
    open: Callable[[], AbstractAsyncContextManager[Callable[[], object]]]
    needs: str = "stanchion"
    threads: bool = False
    note: str = ""
    prove: Callable[[], Awaitable[None]] | None = None

    @property
    def missing(self) -> str | None:
        return None if installed(self.needs) else f"{self.name}: {self.needs} is not installed"


@dataclass
class Results:
    """Each contender's figures of every round, and how it was used."""

    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    how: dict[str, str] = field(default_factory=dict)

    def median(self, name: str, figure: str) -> float:
        return statistics.median(taken[figure] for taken in self.rounds[name])

    def spread(self, name: str, figure: str) -> tuple[float, float]:
        taken = [figures[figure] for figures in self.rounds[name]]
        return min(taken), max(taken)


def quantile(sorted_spans: Sequence[float], share: float) -> float:
    return sorted_spans[min(len(sorted_spans) - 1, int(share * len(sorted_spans)))]


def figures_of(spans_ns: list[int], elapsed: float, cpu: float) -> Figures:
    """Get the figures of one round."""
    spans_ns.sort()
    return {
        "rate": len(spans_ns) / elapsed,
        "cpu_us": cpu / len(spans_ns) * 1e6,
        "p50_us": quantile(spans_ns, 0.5) / 1e3,
        "p99_us": quantile(spans_ns, 0.99) / 1e3,
        "calls": float(len(spans_ns)),
    }


def admitted(answer: object) -> None:
    if not answer:
        raise AssertionError("refused within its limit")


async def spans_of(
    call: Callable[[], Awaitable[object]], callers: int, seconds: float
) -> list[int]:
    """Have so many callers call one after another; get what each call took, in nanoseconds."""
    spans: list[int] = []
    ends = time.perf_counter_ns() + int(seconds * 1e9)

    async def one_after_another() -> None:
        # At least once, however late it gets to start.
        while (began := time.perf_counter_ns()) < ends or not spans:
            admitted(await call())
            spans.append(time.perf_counter_ns() - began)

    await asyncio.gather(*(one_after_another() for _ in range(callers)))
    return spans


def spans_of_threads(call: Callable[[], object], callers: int, seconds: float) -> list[int]:
    spans: list[int] = []
    failures: list[Exception] = []
    ends = time.perf_counter_ns() + int(seconds * 1e9)

    def one_after_another() -> None:
        try:
            while (began := time.perf_counter_ns()) < ends:
                admitted(call())
                spans.append(time.perf_counter_ns() - began)
        except Exception as error:  # noqa: BLE001 - it is raised again, where it is seen
            failures.append(error)

    threads = [threading.Thread(target=one_after_another) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return spans


async def drive(
    who: Contender, call: Callable[[], object], callers: int, seconds: float
) -> Figures:
    began, cpu = time.perf_counter(), time.process_time()
    if who.threads:
        spans = await asyncio.to_thread(spans_of_threads, call, callers, seconds)
    else:
        spans = await spans_of(call, callers, seconds)  # pyright: ignore[reportArgumentType]
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    return figures_of(spans, elapsed, cpu)


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """Get all of them, each round beginning with another one: who comes first has it colder."""
    start = number % len(items) if items else 0
    return [*items[start:], *items[:start]]


async def compare(
    contenders: Sequence[Contender], *, callers: int, seconds: float, rounds: int
) -> Results:
    """Measure all of them in every round, each round beginning with another one."""
    results = Results(left_out=[reason for who in contenders if (reason := who.missing)])
    present = [who for who in contenders if not who.missing]
    results.how = {who.name: who.note for who in present if who.note}
    async with AsyncExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for who in present:
            if who.prove is not None:
                await who.prove()
            calls[who.name] = await stack.enter_async_context(who.open())
            await drive(who, calls[who.name], callers, min(WARM_UP, seconds))
            results.rounds[who.name] = []
        for number in range(rounds):
            for who in rotated(present, number):
                taken = await drive(who, calls[who.name], callers, seconds)
                results.rounds[who.name].append(taken)
    return results
