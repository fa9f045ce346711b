"""Every kind of place that a URL can name: all verbs work there alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stanchion import ConfigError
from tests.faults.calls import Call, bus_on
from tests.faults.verbs import every_verb

if TYPE_CHECKING:
    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup, TLSServer, UnixServer


async def test_redis(server: RealServer):
    await every_verb(server.url)


async def test_a_database_of_its_own(valkey: RealServer):
    await every_verb(valkey.url.replace("/0", "/5"))
    assert valkey.control.dbsize() == 0


async def test_unix(unix_server: UnixServer):
    await every_verb(unix_server.url)


async def test_rediss(tls_server: TLSServer):
    await every_verb(tls_server.url)


@pytest.mark.parametrize("authority", ["unknown", "wrong"])
async def test_rediss_refuses_a_certificate_that_it_cannot_check(
    tls_server: TLSServer, authority: str
):
    url = tls_server.bare_url
    if authority == "wrong":
        url += f"?ssl_ca_certs={tls_server.other_ca_file}"
    async with bus_on(url) as bus:
        assert (await bus.check(Call())).reason == "store_unavailable"


async def test_cluster(cluster: Cluster):
    await every_verb(cluster.url)


async def test_cluster_by_any_node(cluster: Cluster):
    node = cluster.nodes[-1]
    async with bus_on(f"redis+cluster://{node.host}:{node.port}", deadline=5) as bus:
        assert await bus.check(Call())


async def test_sentinel(sentinel: SentinelGroup):
    await every_verb(sentinel.url)


async def test_sentinel_by_any_sentinel(sentinel: SentinelGroup):
    one = sentinel.sentinels[-1]
    url = f"redis+sentinel://{one.host}:{one.port}/{sentinel.service}/0"
    async with bus_on(url, deadline=5) as bus:
        assert await bus.check(Call())


async def test_a_service_that_sentinels_do_not_know_is_no_place(sentinel: SentinelGroup):
    url = sentinel.url.replace(sentinel.service, "elsewhere")
    async with bus_on(url) as bus:
        assert (await bus.check(Call())).reason == "store_unavailable"


@pytest.mark.parametrize(
    "option", ["retry_on_timeout=true", "decode_responses=true", "max_connections=1", "colour=red"]
)
@pytest.mark.parametrize("place", ["valkey", "unix_server", "cluster", "sentinel"])
async def test_options_that_cannot_be_kept_are_refused_on_opening(
    request: pytest.FixtureRequest, place: str, option: str
):
    server: Any = request.getfixturevalue(place)
    join = "&" if "?" in server.url else "?"
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        await bus_on(f"{server.url}{join}{option}").open()
