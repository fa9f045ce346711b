"""All processes of a namespace look for a subject in the same place, or decide nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, ConfigError, EventBus
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore
from tests.sharding.calls import NAMESPACE, SHARDS, Call, breaker, rate, spread_bus
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.servers import RealServer

EPOCH = f"stanchion:{{{NAMESPACE}}}:epoch"


def whole_bus(url: str) -> EventBus:
    return EventBus.from_url(url, policies=[rate()], namespace=NAMESPACE, cache_denials=False)


async def refusing(bus: EventBus) -> bool:
    decision = await bus.check(Call())
    return not decision.allowed and "is spread otherwise" in (decision.vetoes[0].detail or "")


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"shards": SHARDS + 1}, "17 by tenant, model"),
        ({"shard_by": ("model", "tenant")}, "16 by model, tenant"),
    ],
)
async def test_one_that_spreads_otherwise_is_refused_on_opening(
    server: RealServer, terms: dict[str, object], said: str
):
    async with spread_bus(server.url, [rate()]) as bus:
        assert await bus.check(Call())
        with pytest.raises(ConfigError, match=f"16 by tenant, model, and here {said}"):
            await spread_bus(server.url, [rate()], **terms).open()
        assert await bus.check(Call())
        # The same again is none of it.
        async with spread_bus(server.url, [rate()]) as other:
            assert await other.check(Call())


async def test_one_that_does_not_spread_vetoes_in_a_namespace_that_is_spread(valkey: RealServer):
    async with spread_bus(valkey.url, [rate()]), whole_bus(valkey.url) as whole:
        await eventually(lambda: refusing(whole), what="everything is vetoed")


async def test_one_that_spreads_is_refused_where_others_do_not(valkey: RealServer):
    async with whole_bus(valkey.url) as whole:
        await eventually(lambda: valkey.control.hget(EPOCH, "spread"), what="it is written down")
        with pytest.raises(ConfigError, match="not at all"):
            await spread_bus(valkey.url, [rate()]).open()
        assert await whole.check(Call())


async def test_what_is_learnt_of_later_vetoes_until_it_is_put_right(valkey: RealServer):
    async with spread_bus(valkey.url, [rate()]) as bus:
        assert await bus.check(Call())
        valkey.control.hset(EPOCH, "spread", "2 by tenant")
        await eventually(lambda: refusing(bus), 15.0, what="everything is vetoed")
        assert (await bus.peek(Call())).reason == "store_unavailable"
        valkey.control.hset(EPOCH, "spread", "16 by tenant, model")

        async def deciding() -> bool:
            return bool(await bus.check(Call()))

        await eventually(deciding, 15.0, what="it decides again")


async def test_a_server_that_is_away_keeps_nobody_from_opening(valkey: RealServer):
    async with spread_bus(valkey.url, [rate()]):
        pass
    valkey.pause()
    try:
        async with spread_bus(valkey.url, [rate()], shards=4, deadline=0.3) as bus:
            assert (await bus.check(Call())).reason == "store_unavailable"
            valkey.resume()
            await eventually(lambda: refusing(bus), 15.0, what="the difference is learnt of")
    finally:
        valkey.resume()


async def test_whoever_was_not_told_finds_what_is_in_shards(valkey: RealServer):
    async with spread_bus(valkey.url, [rate(), breaker()]) as bus:
        assert await bus.check(Call(tenant="acme", model="m7"))
        await bus.force("provider", CircuitState.FORCED_OPEN, model="m7")
        store = RedisStore(valkey.url, Keyspace(NAMESPACE))
        await store.open()
        try:
            assert [key.rpartition(":")[2] for key in await store.changed_circuits()] == ["m7"]
        finally:
            await store.close()
    command = [
        sys.executable,
        "-m",
        "stanchion",
        "inspect",
        "--url",
        valkey.url,
        "--namespace",
        NAMESPACE,
    ]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30, check=True
    )
    assert "acme" in done.stdout
    assert "m7" in done.stdout
