"""Processes whose clock is really wrong: workers that are hours off, a server that is set back."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, Outcome
from tests import leaks
from tests.faults.calls import DEADLINE, Call, ask, breaker, bus_on, charged, quota, rate, slots
from tests.faults.clocked import LIMIT
from tests.faults.faketime import ElsewhenServer, environment
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from tests.conftest import Pool
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

HOUR = 3600
MONTHS = 40 * 24 * HOUR
#: Seconds that a worker has to answer in, its start included.
PATIENCE = 30.0


class Clocked:
    """A worker process with a clock of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def check(self, who: str, count: int, outcome: str = "success") -> dict[str, Any]:
        """Have it check so many times and settle so; get what it says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([who, count, outcome]).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line, "the worker ended"
        return json.loads(line)


@asynccontextmanager
async def worker(url: str, ahead: int) -> AsyncGenerator[Clocked]:
    """Start a worker whose clock is so many seconds ahead."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment(ahead)}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.clocked", url), env=given, stdin=pipe, stdout=pipe
    )
    try:
        yield Clocked(process)
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_workers_hours_or_weeks_off_decide_as_everybody_does(
    valkey: RealServer, fault_record: FaultRecords
):
    """They share windows, leases and circuits, by the server's clock."""
    record = fault_record(23, "workers at +1 h, −1 h and −40 days (libfaketime)", valkey)
    async with (
        worker(valkey.url, HOUR) as early,
        worker(valkey.url, -HOUR) as late,
        worker(valkey.url, -MONTHS) as later,
    ):
        left = LIMIT
        for _ in range(3):
            for one, ahead in ((early, HOUR), (late, -HOUR), (later, -MONTHS)):
                answer = await one.check("acme", 2)
                assert abs(answer["here"] - time.time() - ahead) < HOUR / 4, "its clock is wrong"
                for reason, remaining, at, _ in answer["told"]:
                    left -= 1
                    assert reason == "ok"
                    assert remaining[::2] == [left] * 2
                    # A bucket gets a token back every three days.
                    assert remaining[1] == left
                    assert abs(at - time.time()) < HOUR / 4
                    record.saw("admitted")
                    record.admitted += 1
        assert charged(valkey) == LIMIT - left
        record.charge(charged(valkey))
        # What one of them trips the other obeys, and for as long as it was declared.
        assert (await early.check("trips", 1, "failure"))["told"][0][0] == "ok"
        ((reason, _, _, retry_after),) = (await late.check("trips", 1))["told"]
        assert reason == "circuit_open"
        assert 0 < retry_after <= 20 * 1.5
        record.saw("denied, `circuit_open`")


@pytest.fixture(params=["valkey9", "redis8"])
def elsewhen(request: pytest.FixtureRequest, pool: Pool) -> Iterator[ElsewhenServer]:
    """A server whose clock a test may set; Debian's Redis does not start under libfaketime."""
    server = ElsewhenServer(request.param, pool.reaper)
    server.start()
    pool.lent.append(server)
    yield server
    left = leaks.connections_left(server), leaks.immortal_keys(server)
    server.stop()
    assert left == ([], [])


async def test_a_server_whose_clock_is_set_back_gives_nothing_twice(
    elsewhen: ElsewhenServer, fault_record: FaultRecords
):
    """An hour back, in the middle of it all, and forth again."""
    record = fault_record(24, "server at −1 h (libfaketime)", elsewhen.kind, deadline=DEADLINE)
    policies = [
        rate(limit=3),
        rate(name="fixed", limit=3, algorithm="fixed_window"),
        quota(limit=3, per="1h"),
        slots(limit=3, lease="10s"),
        breaker(consecutive_failures=1, open_for="20s"),
    ]
    async with bus_on(elsewhen.url, policies) as bus:
        held = [(await ask(bus, record)).permit for _ in range(3)]
        tripping = (await ask(bus, record, who="trips")).permit
        assert tripping is not None
        elsewhen.set_clock(-HOUR)

        # What it answers next may be of the turn in which it was asked before.
        def set_back() -> bool:
            return abs(elsewhen.execute("TIME")[0] - time.time() + HOUR) < HOUR / 4

        await eventually(set_back, what="its clock is set back")
        full = await ask(bus, record)
        reasons = {verdict.policy: verdict.reason for verdict in full.verdicts}
        limited = "limit_reached"
        assert reasons == {
            "calls": limited,
            "fixed": limited,
            "tokens": "quota_exhausted",
            "slots": "no_free_slot",
            "provider": "ok",
        }
        for verdict in full.verdicts:
            # Never negative, and no longer than till the clock is back and the window over.
            assert verdict.retry_after is None or 0 <= verdict.retry_after <= 2 * HOUR + 60
            assert verdict.reset_after is None or 0 <= verdict.reset_after <= 3 * HOUR
        # Leases are kept, and given back.
        assert held[0] is not None
        assert await bus.renew(held[0])
        for permit in held:
            assert permit is not None
            assert await bus.settle(permit)
        assert (await bus.peek(Call())).verdicts[3].remaining == 3
        # A circuit that trips in the past is open as long as it was declared, and no longer.
        assert await bus.settle(tripping, Outcome.FAILURE)
        refused = await ask(bus, record, who="trips")
        assert refused.reason == "circuit_open"
        assert refused.retry_after is not None
        assert HOUR - 60 < refused.retry_after <= HOUR + 20 * 1.5
        assert charged(elsewhen) + charged(elsewhen, "trips") == record.admitted == 4
        record.charge(record.admitted)
        # And when the clock is right again, all goes on; later, with new windows.
        elsewhen.set_clock(0)
        assert (await ask(bus, record)).reason == limited
        elsewhen.set_clock(2 * HOUR)
        with record.recovering():
            assert await ask(bus, record)
            assert await ask(bus, record, who="trips")
        record.charge(2)
        assert await bus.force("provider", CircuitState.CLOSED, who="trips") != "closed"
