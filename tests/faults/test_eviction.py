"""A server that throws limits away when its memory is full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from tests.faults.calls import DEADLINE, PREFIX, Call, ask, bus_on, charged, in_use
from tests.topologies import SentinelGroup
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from stanchion.store.redis_store import RedisStore
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer
    from tests.topologies import Cluster


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "evict" in one.getMessage()]


async def looked(bus: EventBus) -> None:
    """Wait until the server's settings have been looked at."""
    look = cast("RedisStore", bus._store)._look
    assert look is not None
    await eventually(look.done)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_evict_limits_is_warned_of_once(
    server: RealServer,
    caplog: pytest.LogCaptureFixture,
    policy: str,
    fault_record: FaultRecords,
):
    """An evicted limit starts anew, which nothing else would tell."""
    record = fault_record(20, f"`maxmemory-policy {policy}`", server, deadline=DEADLINE)
    with server.configured(maxmemory_policy=policy, maxmemory="100mb"):
        async with bus_on(server.url) as bus:
            assert await ask(bus, record)
            await eventually(lambda: warnings_in(caplog), what="the warning")
            record.saw("warned in the log")
            record.charge(charged(server))
            async with bus.guard(Call()):
                pass  # the connections that keep leases look no second time
            await looked(bus)
        (warning,) = warnings_in(caplog)
        assert policy in warning
        assert "noeviction" in warning


async def test_a_limit_that_was_evicted_starts_anew_and_its_permits_are_stale(
    server: RealServer, fault_record: FaultRecords
):
    """Memory runs full with what is somebody else's, until ours is gone."""
    record = fault_record(20, "evicted, `allkeys-random`", server, deadline=DEADLINE)
    used = int(cast("dict[str, int]", server.control.info("memory"))["used_memory"])
    limits = {"maxmemory": used + 2**20, "maxmemory_policy": "allkeys-random"}
    async with bus_on(server.url) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        record.charge(charged(server))
        with server.configured(**limits):
            for number in range(40):
                server.execute("EVAL", FILL, 0, number)
                if not [key for key, _ in server.keys(f"{PREFIX}*:acme")]:
                    break
            else:
                pytest.fail("nothing of it was evicted")
        settlement = await bus.settle(permit)
        assert set(settlement.stale) >= {"tokens", "slots"}
        assert (charged(server), in_use(server)) == (0, 0)
        assert await ask(bus, record)
        assert (charged(server), in_use(server)) == (1, 1)
        record.charge(charged(server))


#: A quarter of a megabyte in keys of a hundred bytes that expire.
FILL = """
for place = 1, 1000 do
    redis.call('SET', 'other:' .. ARGV[1] .. ':' .. place, ('x'):rep(250), 'EX', 60)
end
"""


@pytest.mark.parametrize("settings", [{"maxmemory": "100mb"}, {"maxmemory_policy": "allkeys-lru"}])
async def test_a_server_that_evicts_nothing_is_not(
    valkey: RealServer, caplog: pytest.LogCaptureFixture, settings: dict[str, str]
):
    """With noeviction, and where memory has no limit."""
    with valkey.configured(**settings):
        async with bus_on(valkey.url) as bus:
            assert await bus.check(Call())
            await looked(bus)
    assert not warnings_in(caplog)


@pytest.mark.parametrize("place", ["cluster", "sentinel"])
async def test_the_server_that_holds_the_limits_is_the_one_that_is_looked_at(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, place: str
):
    """Of several."""
    group: Cluster | SentinelGroup = request.getfixturevalue(place)
    ours = group.primary if isinstance(group, SentinelGroup) else group.node_of(PREFIX)
    with ours.configured(maxmemory_policy="allkeys-lru", maxmemory="100mb"):
        async with bus_on(group.url, deadline=5) as bus:
            assert await bus.check(Call())
            await eventually(lambda: warnings_in(caplog), what="the warning")


async def test_looking_keeps_nobody_waiting_and_needs_no_right(
    valkey: RealServer, caplog: pytest.LogCaptureFixture
):
    """It is advice: a server that hangs or refuses changes nothing."""
    valkey.execute(
        *("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-info", "-config")
    )
    async with bus_on(valkey.url.replace("redis://", "redis://worker:secret@")) as bus:
        assert await bus.check(Call())
        await looked(bus)
    valkey.pause()
    bus = bus_on(valkey.url)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await bus.open()
    assert loop.time() - began < 0.2
    valkey.resume()
    await bus.close()
    assert not warnings_in(caplog)
