"""One circuit for all processes: failures counted together, probes rationed together."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from stanchion import CircuitBreaker
from tests.contention.calls import PREFIX, Call
from tests.contention.fleet import Fleet, fleet, now_us
from tests.contention.spans import SECOND, most_at_once

if TYPE_CHECKING:
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

TICKETS = f"{PREFIX}circuit.calls:provider:-"
#: How late at most something that has ended may be found free by those who press for it.
LATE_US = 400_000


def breaker(**fields: Any) -> CircuitBreaker:
    return CircuitBreaker(**{"name": "provider", "on": Call, "open_for": "10s"} | fields)


async def test_failures_of_four_processes_trip_a_breaker_that_none_of_them_would_alone(
    server: RealServer,
):
    # 19 of the 20 calls that it takes, from processes of which none makes more than 5.
    policy = breaker(failure_rate=0.5, minimum_calls=20)
    async with fleet(server.url, policy, workers=4) as workers:
        assert await workers.ask("fail", times=4) == [["ok"] * 4] * 4
        for worker in workers[:3]:
            assert await worker.ask("fail", times=1) == ["ok"]
        assert await workers.ask("peek") == ["ok"] * 4, "19 are not enough"
        assert await workers[3].ask("fail", times=1) == ["ok"]
        assert await workers.ask("check", times=2) == [["circuit_open"] * 2] * 4


async def test_probes_are_never_above_the_ration_with_eight_processes_pressing(valkey: RealServer):
    ration = 2
    policy = breaker(consecutive_failures=1, open_for="50ms", half_open_calls=ration, lease="5s")
    async with fleet(valkey.url, policy, workers=8) as workers:
        assert await workers[0].ask("fail", times=1) == ["ok"]
        until = now_us(valkey) + 2 * SECOND
        logs = await workers.ask("probe", until_us=until, hold=0.02, fail_every=5)
    probes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for generation, begin, still in (call for log in logs for call in log):
        # Held at least until the moment at which its holder looked, before it gave it back.
        probes[generation].append((begin, still))
    assert all(logs), "every worker has had a probe"
    assert len(probes) > 3, "it has opened again and again"
    for generation, intervals in probes.items():
        assert most_at_once(intervals) <= ration, (generation, sorted(intervals))
    full = sum(most_at_once(intervals) == ration for intervals in probes.values())
    assert full > len(probes) / 2, "so many pressed that the ration was used"
    count = sum(map(len, probes.values()))
    print(f"{count} probes in {len(probes)} generations, {ration} at once in {full} of them")


async def killed(prober: Any, server: RealServer) -> int:
    """Kill the holder of the only probe; get when its lease ends."""
    await prober.kill()
    rows = cast(
        "list[tuple[str, float]]",
        server.control.zrange(TICKETS, 0, -1, withscores=True),
    )
    ((_, ends),) = rows
    return int(ends)


async def half_open(server: RealServer, workers: Fleet) -> None:
    """Open the circuit and have the first worker take the only probe."""
    assert await workers[0].ask("fail", times=1) == ["ok"]
    await workers[0].ask("enter", tokens=1, wait=5)


async def test_a_killed_prober_gives_its_probe_back_when_its_lease_ends_under_steady_traffic(
    valkey: RealServer, fault_record: FaultRecords
):
    record = fault_record(25, "SIGKILL of the prober, under denied traffic", valkey)
    policy = breaker(consecutive_failures=1, open_for="50ms", half_open_calls=1, lease="1s")
    async with fleet(valkey.url, policy, workers=5) as workers:
        await half_open(valkey, workers)
        others = Fleet(workers[1:])
        said = await others.ask("check", times=20)
        assert said == [["probes_in_use"] * 20] * 4, "it lives, and keeps its lease"
        ends = await killed(workers[0], valkey)
        logs = await others.ask("probe", until_us=ends + SECOND // 2, hold=0.0, fail_every=0)
    begins = sorted(begin for log in logs for _, begin, _ in log)
    assert begins, "the probe never came back"
    late = begins[0] - ends
    print(f"the probe was taken {late / 1000:.1f} ms after its lease had ended, under traffic")
    assert 0 <= late < LATE_US
    assert all(logs), "and then it goes from hand to hand"
    record.saw(*("denied, `probes_in_use`" for told in said for _ in told))
    record.saw(*("admitted" for _ in begins))
    record.admitted += len(begins)
    record.recovery = late / 1e6


async def test_a_killed_prober_gives_its_probe_back_to_one_who_waits(
    server: RealServer, fault_record: FaultRecords
):
    record = fault_record(25, "SIGKILL of the prober, one waits", server)
    policy = breaker(consecutive_failures=1, open_for="50ms", half_open_calls=1, lease="600ms")
    async with fleet(server.url, policy, workers=2) as workers:
        await half_open(server, workers)
        ends = await killed(workers[0], server)
        admitted = await workers[1].ask("enter", tokens=1, wait=10)
        await workers[1].ask("leave")
        late = admitted - ends
        print(f"{server.name}: the waiter had it {late / 1000:.1f} ms after the lease had ended")
        assert 0 <= late < LATE_US
        record.saw("admitted")
        record.admitted += 1
        record.recovery = late / 1e6
        assert await workers[1].ask("check", times=2) == ["ok"] * 2, (
            "its success closed the circuit"
        )
