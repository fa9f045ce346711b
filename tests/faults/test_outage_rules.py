"""What each `on_outage` does while the server is pulled away in mid-load, and when it is back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import Outcome
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from tests.contention.fleet import Fleet, fleet
from tests.faults.calls import (
    DEADLINE,
    UNAVAILABLE,
    Call,
    ask,
    breaker,
    bus_on,
    charged,
    in_use,
    quota,
    rate,
    slots,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion import Decision, EventBus
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer

CALLERS = 10
SHARE = "local_share"

#: How the server is pulled away, and brought back; and the row of the list that it belongs to.
PULLS: dict[str, tuple[int, Callable[[RealServer], None], Callable[[RealServer], None]]] = {
    "SIGSTOP": (1, lambda server: server.pause(), lambda server: server.resume()),
    "SIGKILL": (2, lambda server: server.kill(), lambda server: server.start()),
}


class Load:
    """Callers that check and settle without a pause; what the first policy told them, in order."""

    def __init__(self, bus: EventBus, record: FaultRecord) -> None:
        self.told: list[str] = []
        self._bus = bus
        self._record = record
        self._over = asyncio.Event()
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]

    async def _call(self) -> None:
        while not self._over.is_set():
            decision = await ask(self._bus, self._record)
            self.told.append(_told(decision))
            if decision.permit is not None and decision.permit.holds:
                # Admitted just before it went: then its leases end it.
                await asyncio.gather(self._bus.settle(decision.permit), return_exceptions=True)
            await asyncio.sleep(0.002)

    async def comes_to(self, told: str, count: int = 3 * CALLERS) -> None:
        """Wait until callers have been told so, so often, from now on."""
        begins = len(self.told)
        await eventually(
            lambda: self.told[begins:].count(told) >= count, 10, what=f"callers are told {told}"
        )

    async def stop(self) -> None:
        self._over.set()
        await asyncio.gather(*self._callers)


def _told(decision: Decision) -> str:
    reason = decision.verdicts[0].reason
    return f"{'admitted' if decision else 'denied'}, {reason}"


def every(on_outage: str) -> list[Any]:
    """Get one policy of each kind that answers so."""
    made = (rate, quota, slots, breaker)
    return [one(on_outage=on_outage) for one in made]


@pytest.mark.parametrize("how", PULLS)
@pytest.mark.parametrize("on_outage", ["veto", "admit"])
async def test_the_server_is_pulled_away_in_mid_load_and_brought_back(
    valkey: RealServer, on_outage: str, how: str, fault_record: FaultRecords
):
    """Each policy answers what it declares, says so in an event, and enforces again after."""
    row, pull, bring_back = PULLS[how]
    what = f'{how} under load, `on_outage="{on_outage}"`'
    record = fault_record(row, what, valkey, deadline=DEADLINE)
    recorder = Recorder()
    during = f"{'admitted' if on_outage == 'admit' else 'denied'}, {UNAVAILABLE}"
    async with bus_on(valkey.url, every(on_outage), observers=[recorder]) as bus:
        load = Load(bus, record)
        try:
            await load.comes_to("admitted, ok")
            pull(valkey)
            await load.comes_to(during)
            before = len(load.told)
            failed = {one.policy for one in recorder.events if isinstance(one, PolicyFailed)}
            assert failed == {"calls", "tokens", "slots", "provider"}
            bring_back(valkey)
            with record.recovering():
                await load.comes_to("admitted, ok", 1)
            await load.comes_to("admitted, ok")
        finally:
            if valkey.paused:
                valkey.resume()
            await load.stop()
        # As far as a machine with other work can tell, nobody waits for more than the deadline.
        assert record.worst is not None
        assert record.worst < 5 * DEADLINE
        # While it was away it was one answer and no other, and so it is since it is back.
        assert set(load.told) == {"admitted, ok", during}
        back = len(load.told) - load.told[::-1].index(during)
        assert before <= back
        assert set(load.told[back:]) == {"admitted, ok"}
        counted = Counter(load.told)
        if how == "SIGSTOP":
            # What had been sent as it stopped may have been executed when it went on.
            assert counted["admitted, ok"] <= charged(valkey) <= len(load.told)
            record.charge(charged(valkey))
        # Nothing is held by those that were admitted without the server, nor by those denied.
        await eventually(lambda: in_use(valkey) <= 3 * CALLERS)


async def test_a_share_is_never_exceeded_however_often_the_server_comes_and_goes(
    valkey: RealServer, fault_record: FaultRecords
):
    """Ten short outages in a row are one share, not ten; and the shared limit stays what it is."""
    record = fault_record(1, 'ten SIGSTOPs, `on_outage="local"`', valkey, deadline=DEADLINE)
    limit, processes = 40, 4
    policies = [rate(limit=limit, per="365d", on_outage="local")]
    told = Counter[str | None]()

    async def asked(bus: EventBus) -> bool:
        reason = (await ask(bus, record)).verdicts[0].reason
        told[reason] += 1
        return reason == "ok"

    async with bus_on(valkey.url, policies, processes=processes, deadline=DEADLINE / 2) as bus:
        for outage in range(10):
            with record.recovering():
                await eventually(lambda: asked(bus), what="the shared limit is in force")
            valkey.pause()
            try:
                # Till the share is used up, which is told by a limit that was reached.
                before = told["limit_reached"]
                for _ in range(200):
                    await asked(bus)
                    if told["limit_reached"] > before:
                        break
                else:
                    pytest.fail("the share has no end")
            finally:
                valkey.resume()
            assert told[SHARE] <= limit // processes, f"outage {outage + 1} handed out more"
        assert told[SHARE] == limit // processes
        # Never more than the shared limit, and a share for each process; what was sent as it
        # stopped may have been counted there, which is stricter.

        async def drained() -> bool:
            await asked(bus)
            decision = await bus.peek(Call())
            return decision.decided_at is not None and decision.reason == "limit_reached"

        await eventually(drained, 10, what="the shared limit is reached", interval=0)
        assert 10 < told["ok"] <= limit
        assert record.admitted == told["ok"] + told[SHARE]
        record.charge(limit)


async def test_processes_without_the_server_admit_no_more_than_their_shares(
    valkey: RealServer, fault_record: FaultRecords
):
    """Three processes under load: N times the share at most, in two outages together."""
    local = 'under load, three processes, `on_outage="local"`'
    stopped = fault_record(1, f"SIGSTOP {local}", valkey)
    killed = fault_record(2, f"SIGKILL {local}", valkey)
    processes, limit = 3, 30
    share = limit // processes
    policies = str(processes), str(limit)
    module = "tests.faults.sharing"
    async with fleet(valkey.url, *policies, workers=processes, module=module) as workers:
        assert await _round(workers, 2) == {"ok": 2 * processes}
        valkey.pause()
        away = await _round(workers, 2 * share)
        assert away == {SHARE: processes * share, "limit_reached": processes * share}
        valkey.resume()
        with stopped.recovering():
            await workers.ask("until", reason="ok")
        await _round(workers, 1)
        await _tell(workers, stopped)
        # What is used up is not handed out again when the server goes once more.
        valkey.kill()
        await workers.ask("until", reason="limit_reached")
        assert await _round(workers, share) == {"limit_reached": share * processes}
        valkey.start()
        with killed.recovering():
            await workers.ask("until", reason="ok")
        # The fleet's own limit as well, which a server that was killed begins anew.
        await _round(workers, limit)
        await _tell(workers, killed)
    assert stopped.charged is not None
    assert stopped.charged <= limit
    assert killed.charged == limit


async def _tell(workers: Fleet, record: FaultRecord) -> None:
    """Write down what the workers were told since they were last asked."""
    told = Counter[str]()
    for one, worst in await workers.ask("tell"):
        told.update(one)
        record.took(worst)
    record.asked, record.admitted = told.total(), told["ok"] + told[SHARE]
    record.seen += Counter({f"`{reason}`": count for reason, count in told.items()})
    record.charge(told["ok"])


async def _round(workers: Fleet, times: int) -> Counter[str]:
    told = Counter[str]()
    for one in await workers.ask("check", times=times):
        told.update(one)
    return told


async def test_what_was_admitted_alone_is_settled_alone(valkey: RealServer):
    """Also when the server is back meanwhile: it is told nothing of what it never knew."""
    policies = [slots(limit=4, on_outage="local"), breaker(on_outage="admit")]
    async with bus_on(valkey.url, policies, processes=2) as bus:
        assert await bus.settle(await bus.admit(Call()))
        valkey.kill()
        held = [(await bus.check(Call())).permit for _ in range(3)]
        assert [permit is not None for permit in held] == [True, True, False]
        valkey.start()
        with pytest.raises(AssertionError):
            assert in_use(valkey)

        async def back() -> bool:
            decision = await bus.check(Call())
            if decision.permit is not None:
                await bus.settle(decision.permit)
            return decision.verdicts[0].reason == "ok"

        await eventually(back, what="the shared cap is in force again")
        for permit in held[:2]:
            assert permit is not None
            assert await bus.settle(permit, Outcome.SUCCESS)
        assert in_use(valkey) == 0
        valkey.kill()
        # Both slots of the share are free again.
        assert [bool(await bus.check(Call())) for _ in range(3)] == [True, True, False]
        valkey.start()


def test_what_an_outage_needs_is_ready_before_it():
    """What decides alone takes a while to import, and whoever waits then waits for it as well."""
    for on_outage in ("local", "veto"):
        program = f"""
import asyncio, sys
from tests.faults.calls import bus_on, rate
async def main():
    url = "unix:///tmp/no-such-directory/redis.sock"
    async with bus_on(url, [rate(on_outage={on_outage!r})], processes=2):
        print("fakeredis" in sys.modules)
asyncio.run(main())
"""
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        said = subprocess.run(
            [sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == str(on_outage == "local"), said.stderr
