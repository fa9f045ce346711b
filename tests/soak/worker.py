"""One worker: a process with one loop and one bus, under mixed load until its stdin ends.

The first line on stdin is a JSON object: `url`, `journal` (a path), `seed`, `players`, `pause`.
SIGUSR1 cancels everything that is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

from stanchion import EventBus
from stanchion.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, Event, PolicyFailed
from stanchion.observers import RedisPublisher, Registration
from tests.soak.deeds import Player
from tests.soak.journal import Journal, Line, now_us
from tests.soak.lateness import Lateness
from tests.soak.load import DEADLINE, NAMESPACE, PROCESSES, Noted, policies

SAMPLE_EVERY = 1.0
GRACE = 3.0


def fds() -> list[str]:
    """Get what is open, by kind."""
    found: list[str] = []
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(name.readlink()).partition(":")[0])
    return sorted(found)


def rss_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def sampling(journal: Journal, lateness: Lateness) -> None:
    while True:
        await asyncio.sleep(SAMPLE_EVERY)
        began = now_us() - int(SAMPLE_EVERY * 1e6)
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        late = lateness.since(began)
        journal.write(Line.SAMPLE, now_us(), rss_kib(), len(fds()), tasks, threads, late)


def observers(journal: Journal) -> list[Any]:
    """Get those that listen: two that do well, and three that do not."""

    async def write_circuit(event: Event) -> None:
        if isinstance(event, CircuitOpened | CircuitHalfOpened | CircuitClosed):
            until = event.open_until
            journal.write(
                Line.CIRCUIT,
                *(event.policy, event.subject, event.generation, event.seq),
                *(event.previous, event.state, round(event.timestamp.timestamp() * 1e6)),
                *(round(until.timestamp() * 1e6) if until else 0, event.reason),
            )

    last = ""

    async def write_unsent(event: Event) -> None:
        # A policy failed because the gate around the store was shut: nothing was sent.
        nonlocal last
        if isinstance(event, PolicyFailed) and "has not been answering" in event.error:
            if event.asked_id != last:
                journal.write(Line.UNSENT, event.asked_id)
            last = event.asked_id

    async def fails(event: Event) -> None:
        raise RuntimeError("this observer always fails")

    async def hangs(event: Event) -> None:
        await asyncio.Event().wait()

    def blocks(event: Event) -> None:
        raise ValueError("and so does this one")

    few = {"queue": 10}
    return [
        Registration.of(write_circuit, on="circuit:*", name="circuits"),
        Registration.of(write_unsent, on=PolicyFailed, name="unsent", queue=100_000),
        Registration.of(RedisPublisher(), on=Noted, name="publisher"),
        Registration.of(fails, on="*", name="fails", **few),
        Registration.of(hangs, on="*", name="hangs", timeout=0.05, **few),
        Registration.of(blocks, on="soak:*", name="blocks", **few),
    ]


async def work(told: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Play until stdin ends; get what is left of it all."""
    loop = asyncio.get_running_loop()
    # The first thread of the loop's own pool, and its pipe, are there before anything is counted.
    await asyncio.to_thread(int)
    over, lateness = asyncio.Event(), Lateness(journal)
    reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    reading.add_done_callback(lambda _: over.set())
    before, threads = fds(), set(threading.enumerate())
    watching = [
        asyncio.create_task(lateness.watch()),
        asyncio.create_task(sampling(journal, lateness)),
    ]
    ours = {asyncio.current_task(), reading, *watching}
    bus = EventBus.from_url(
        told["url"],
        policies=policies(),
        observers=observers(journal),
        namespace=NAMESPACE,
        deadline=DEADLINE,
        processes=PROCESSES,
    )
    async with bus:
        player = Player(bus, journal, Random(told["seed"]), lateness.since)
        loop.add_signal_handler(signal.SIGUSR1, player.cancel_all)
        tasks = [
            asyncio.create_task(player.play(over, told["pause"])) for _ in range(told["players"])
        ]
        await asyncio.gather(*tasks)
        began = now_us()
    closing = now_us() - began
    loop.remove_signal_handler(signal.SIGUSR1)

    def left() -> dict[str, Any]:
        return {
            "tasks": [repr(task)[:300] for task in asyncio.all_tasks() - ours],
            "threads": [
                one.name
                for one in set(threading.enumerate()) - threads
                if one.name.startswith("stanchion")
            ],
            "fds": _more(fds(), before),
        }

    for _ in range(int(GRACE / 0.02)):
        if not any(left().values()):
            break
        await asyncio.sleep(0.02)
    facts = {**left(), "closing_us": closing, "calls": player.calls}
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    return facts


def _more(now: list[str], before: list[str]) -> list[str]:
    for name in before:
        if name in now:
            now.remove(name)
    return now


def main() -> None:
    told = json.loads(sys.stdin.readline())
    journal = Journal(Path(told["journal"]))
    journal.write(Line.BORN, now_us(), os.getpid())
    facts = asyncio.run(work(told, journal))
    journal.write(Line.END, now_us(), facts)
    journal.close()


if __name__ == "__main__":
    main()
