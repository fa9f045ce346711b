"""Writes events to a JSONL file from a process of its own, and says what became of them.

appender.py PATH OPTIONS many COUNT NAME     COUNT events through a manager
appender.py PATH OPTIONS forever             until it is killed
appender.py PATH OPTIONS limited BYTES       the system refuses to let the file grow, then not
appender.py PATH OPTIONS full                the directory is made a small, full file system
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path

from stanchion import Event
from stanchion.observers import ObserverManager
from stanchion.observers.delivery import Undelivered
from stanchion.observers.sinks.jsonl import JsonlSink


class Line(Event, type="appender:line"):
    writer: str
    number: int
    text: str = ""


def lines(count, writer="w", text="", first=0):
    return [Line(writer=writer, number=number, text=text) for number in range(first, first + count)]


async def many(sink, count, writer):
    async with ObserverManager() as manager:
        name = manager.register(sink, queue=count)
        for event in lines(count, writer):
            manager.notify(event)
        assert await manager.drain(30)
        return {"delivered": manager.stats()[name].delivered}


def forever(sink):
    sink.start()
    print("started", flush=True)
    number = 0
    while True:
        sink.handle_batch(lines(20, text="x" * 5000, first=number))
        number += 20


def number_of(event):
    assert isinstance(event, Line)
    return event.number


def whole(path):
    """The numbers in the file; fails where a line is not whole."""
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(each)["data"]["number"] for each in text.splitlines()]


def until_refused(sink, path, text):
    """Write until something is not taken; what was written, what was not, and the file then."""
    taken, first = [], 0
    while True:
        batch = lines(10, text=text, first=first)
        first += 10
        try:
            sink.handle_batch(batch)
        except Undelivered as error:
            left = [number_of(event) for event in error.events]
            taken += [event.number for event in batch if event.number not in left]
            return taken, list(error.events), error, whole(path)
        taken += [event.number for event in batch]


def refused_and_then_not(sink, path, make_room):
    sink.start()
    taken, left, error, found = until_refused(sink, path, "x" * 700)
    again = None
    try:
        sink.handle_batch(left)
    except Undelivered as second:
        again = second
    still = whole(path)
    make_room()
    sink.handle_batch(left)
    sink.close()
    return {
        "taken": taken,
        "found": found,
        "still": still,
        "left": [number_of(event) for event in left],
        "end": whole(path),
        "reason": error.reason,
        "again": again is not None and list(again.events) == left,
        "permanent": error.permanent,
    }


def limited(sink, path, size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return refused_and_then_not(
        sink, path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    )


def full(sink, path):
    place = path.parent
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    subprocess.run(mount, check=True)
    ballast = place / "ballast"
    ballast.write_bytes(b"0" * 65536)
    return refused_and_then_not(sink, path, ballast.unlink)


def main():
    path, options, how, *rest = sys.argv[1:]
    sink = JsonlSink(path, **json.loads(options))
    match how, rest:
        case "many", [count, name]:
            result = asyncio.run(many(sink, int(count), name))
        case "forever", []:
            result = forever(sink)
        case "limited", [size]:
            result = limited(sink, Path(path), int(size))
        case _:
            result = full(sink, Path(path))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
