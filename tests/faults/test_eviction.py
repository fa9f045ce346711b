"""A server that throws limits away when its memory is full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from tests.faults.calls import PREFIX, Call, bus_on
from tests.topologies import SentinelGroup
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from stanchion.store.redis_store import RedisStore
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
    server: RealServer, caplog: pytest.LogCaptureFixture, policy: str
):
    """An evicted limit starts anew, which nothing else would tell."""
    with server.configured(maxmemory_policy=policy, maxmemory="100mb"):
        async with bus_on(server.url) as bus:
            assert await bus.check(Call())
            await eventually(lambda: warnings_in(caplog), what="the warning")
            async with bus.guard(Call()):
                pass  # the connections that keep leases look no second time
            await looked(bus)
        (warning,) = warnings_in(caplog)
        assert policy in warning
        assert "noeviction" in warning


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
