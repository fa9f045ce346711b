"""Many processes at once are as one after another: their merged log replays through the model."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contention.fleet import fleet
from tests.contention.mix import POLICIES
from tests.properties.replay import Replay
from tests.properties.rig import Asked, Renewed, Settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.contention.sequenced import Entry
    from tests.servers import RealServer

WORKERS = 6


Logs = list[tuple[str, dict[str, int]]]


async def called(server: RealServer, seconds: float, pause: float, directory: Path) -> Logs:
    """Have every worker call for so long; get where its log is, and its own tally."""
    arguments = {"seconds": seconds, "pause": pause, "directory": str(directory)}
    async with fleet(
        server.url,
        *POLICIES,
        workers=WORKERS,
        module="tests.contention.caller",
        patience=seconds + 45,
    ) as workers:
        return await workers.ask("call", **arguments)


def merged(logs: Logs) -> list[Entry]:
    """Get what all workers logged, in the order in which the server ran it."""
    entries: list[Entry] = []
    for path, tally in logs:
        log = pickle.loads(Path(path).read_bytes())
        assert told_by(log) == tally, "what its bus answered is what the scripts said"
        entries += log
    return sorted(entries, key=lambda entry: entry.landed)


def told_by(log: Iterable[Entry]) -> dict[str, int]:
    """Count what a worker must have been told, by what the scripts replied."""
    done: Counter[str] = Counter()
    lost: set[str] = set()
    for entry in log:
        match entry.call:
            case Asked(reply=reply, charged=True):
                done["admitted" if reply.admitted else "vetoed"] += 1
            case Asked(reply=reply):
                done["foreseen" if reply.admitted else "foreseen vetoes"] += 1
            case Settled(statuses=statuses):
                done["settled" if set(statuses) == {"settled"} else "stale"] += 1
            case Renewed(permit=permit, ends=ends):
                lost |= {permit} if 0 in ends else set()
                done["lost" if permit in lost else "renewed"] += 1
    return dict(done)


def assert_real_time_order(entries: Sequence[Entry]) -> int:
    """See that nothing that had its answer before another was begun comes after that one.

    Gets how many operations were under way together with one that the server ran before them.
    """
    latest_begin, latest_end, overlapping = 0, 0, 0
    for entry in entries:
        assert entry.ended >= latest_begin, f"{entry} comes after what began when it was over"
        latest_begin = max(latest_begin, entry.began)
        overlapping += entry.began < latest_end
        latest_end = max(latest_end, entry.ended)
    return overlapping


def replayed(entries: Iterable[Entry]) -> Counter[str]:
    """Replay in order; every answer that the model would not give is a failure."""
    replay, reasons = Replay(), Counter[str]()
    for entry in entries:
        replay.feed(entry.landed.now_us, [entry.call])
        match entry.call:
            case Asked(reply=reply):
                reasons.update(answer.reason for answer in reply.operations)
            case Settled(statuses=statuses):
                reasons.update(statuses)
            case _:
                pass
    return reasons


async def assert_linearizable(
    server: RealServer, seconds: float, pause: float, directory: Path
) -> None:
    entries = merged(await called(server, seconds, pause, directory))
    calls = [entry.landed.sequence for entry in entries]
    assert set(calls) == set(range(1, calls[-1] + 1)), "every call is in somebody's log"
    assert all(a.landed.now_us <= b.landed.now_us for a, b in pairwise(entries))

    overlapping = assert_real_time_order(entries)
    assert overlapping > len(entries) / 4, "they were under way at the same time"
    reasons = replayed(entries)
    print(f"{len(entries)} operations in {calls[-1]} calls, {overlapping} overlapping; {reasons}")
    assert reasons.keys() >= {"ok", "limit_reached", "quota_exhausted", "no_free_slot"}
    assert reasons.keys() >= {"circuit_open", "probes_in_use", "settled", "stale"}


async def test_what_processes_ask_at_once_has_one_order_in_which_the_model_answers_the_same(
    valkey: RealServer, tmp_path: Path
):
    await assert_linearizable(valkey, 3, 0.01, tmp_path)


@pytest.mark.deep
async def test_so_it_is_on_every_server(server: RealServer, tmp_path: Path):
    await assert_linearizable(server, 6, 0.01, tmp_path)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_so_it_is_for_a_minute(valkey: RealServer, tmp_path: Path):
    await assert_linearizable(valkey, 60, 0.1, tmp_path)
