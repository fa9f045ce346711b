"""Workers that die or stand still inside `guard`: what they held, and who has it then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from stanchion import Concurrency, Quota
from tests.contention.calls import PREFIX, Call
from tests.contention.fleet import Fleet, fleet
from tests.contention.spans import SECOND

if TYPE_CHECKING:
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

LEASE = "800ms"
LEASE_US = 800_000
LATE_US = 400_000
SLOTS = f"{PREFIX}slots.leases:slots:-"


def slots() -> Concurrency:
    return Concurrency(name="slots", on=Call, limit=1, lease=LEASE)


def quota(name: str, **fields: Any) -> Quota:
    return Quota(name=name, on=Call, per="3650d", cost="tokens", lease=LEASE, **fields)


def leases(server: RealServer, key: str) -> dict[str, int]:
    """Get who holds a lease, and until when."""
    rows = cast("list[tuple[str, float]]", server.control.zrange(key, 0, -1, withscores=True))
    return {member: int(ends) for member, ends in rows}


async def test_a_worker_killed_in_a_guard_gives_its_slot_back_when_its_lease_ends(
    server: RealServer, fault_record: FaultRecords
):
    record = fault_record(26, "SIGKILL of a holder", server)
    async with fleet(server.url, slots(), workers=3) as workers:
        holder, others = workers[0], Fleet(workers[1:])
        began = await holder.ask("enter", tokens=1, wait=0)
        assert await others.ask("check", times=1) == [["no_free_slot"]] * 2
        await holder.kill()
        (ends,) = leases(server, SLOTS).values()
        assert began + LEASE_US <= ends
        logs = await others.ask("probe", until_us=ends + SECOND // 4, hold=0.0, fail_every=0)
    admitted = sorted(at for log in logs for _, at, _ in log)
    assert admitted, "it never came back"
    late = admitted[0] - ends
    print(f"{server.name}: the slot was taken {late / 1000:.1f} ms after its lease had ended")
    assert 0 <= late < LATE_US
    assert not leases(server, SLOTS), "and given back by whoever had it then"
    record.saw("denied, `no_free_slot`", "denied, `no_free_slot`")
    record.saw(*("admitted" for _ in admitted))
    record.admitted += len(admitted)
    record.recovery = late / 1e6


async def test_what_a_killed_worker_had_reserved_stays_charged_or_comes_back_as_declared(
    valkey: RealServer,
):
    kept, returned = quota("kept", limit=1000), quota("returned", limit=110, unsettled="refund")

    def inside(name: str) -> tuple[int, int]:
        fields = cast("dict[str, str]", valkey.control.hgetall(f"{PREFIX}quota:{name}:-"))
        return int(fields["used"]), int(fields["held"])

    async with fleet(valkey.url, kept, returned, workers=2) as (holder, other):
        await holder.ask("enter", tokens=100, wait=0)
        assert inside("kept") == inside("returned") == (0, 100)
        await holder.kill()
        (ends,) = leases(valkey, f"{PREFIX}quota.holds:returned:-").values()
        # More than what is left of one of them while the dead one's reservation counts.
        admitted = await other.ask("enter", tokens=20, wait=10)
        late = admitted - ends
        print(f"the tokens came back {late / 1000:.1f} ms after the lease had ended")
        assert 0 <= late < LATE_US
        await other.ask("leave")
        assert inside("kept") == (100 + 20, 0)
        assert inside("returned") == (20, 0)


async def test_a_holder_that_was_stopped_past_its_lease_finds_it_lost_and_is_refused(
    valkey: RealServer,
):
    async with fleet(valkey.url, slots(), quota("tokens", limit=100), workers=2) as workers:
        holder, other = workers
        await holder.ask("enter", tokens=10, wait=0)
        holder.stop()
        (ends,) = leases(valkey, SLOTS).values()
        admitted = await other.ask("enter", tokens=1, wait=10)
        assert admitted >= ends
        now_held = leases(valkey, SLOTS).keys()
        holder.go_on()
        found = await holder.ask("find_lost")
        assert found == {"renewed": False, "statuses": {"slots": "stale", "tokens": "stale"}}
        assert leases(valkey, SLOTS).keys() == now_held, "and it took nothing from the other"
