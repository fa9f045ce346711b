"""TLS to one server, to a cluster and to what stands behind sentinels; all of them ask for ours.

Of the three servers Debian's alone is built with TLS.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stanchion import ConfigError
from stanchion.store.doctor.examination import examine
from stanchion.store.keys import Keyspace
from tests.certificates import Certificates, with_options
from tests.faults.calls import NAMESPACE, UNAVAILABLE, Call, bus_on, recovered
from tests.faults.verbs import every_verb
from tests.topologies import Cluster, SentinelGroup, TLSServer
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Pool
    from tests.servers import RealServer

Place = TLSServer | Cluster | SentinelGroup
PROGRAM = "redis7"
SECRET = "hunter2"
#: What a client is left with: the server says so after the handshake, and hangs up at once.
SHOWN_OUT = (
    *("CERTIFICATE_REQUIRED", "UNKNOWN_CA", "reset by peer", "closed by server", "Broken pipe"),
)


@pytest.fixture(params=["server", "cluster", "sentinel"])
def place(request: pytest.FixtureRequest, pool: Pool) -> Place:
    """Servers that speak TLS only, and let nobody in without a certificate of their authority."""
    match request.param:
        case "server":
            server = pool.lend("mtls", lambda: TLSServer(PROGRAM, pool.reaper, mutual=True))
            pool.lent.append(server)
            return server
        case "cluster":
            cluster = pool.lend(
                "mtls cluster", lambda: Cluster(PROGRAM, pool.reaper, size=2, tls=True)
            )
            pool.lent.extend(cluster.nodes)
            return cluster
        case _:
            group = pool.lend(
                "mtls sentinel",
                lambda: SentinelGroup(PROGRAM, pool.reaper, tls=True, down_after=5000),
            )
            pool.lent.extend(group.data)
            return group


def of(place: Place) -> Certificates:
    assert place.certificates is not None
    return place.certificates


def all_of(place: Place) -> list[RealServer]:
    match place:
        case Cluster():
            return [*place.nodes]
        case SentinelGroup():
            return [*place.data, *place.sentinels]
        case _:
            return [place]


async def refused(url: str, *words: str) -> None:
    """See that nothing can be decided there, and that one of these is said to be why."""
    told: list[str] = []
    async with bus_on(url, deadline=5) as bus:
        bus.observers.register(lambda event: told.append(event.error), on="policy:failed")

        async def said() -> bool:
            assert (await bus.check(Call())).reason == UNAVAILABLE
            return any(word in text for word in words for text in told)

        await eventually(said, 20, what=f"one of {words}")
    assert not [text for text in told if SECRET in text or "PRIVATE" in text]


async def test_every_verb_works_with_a_certificate_of_ones_own(place: Place):
    """Decisions, waiting, administration and news, over the lane and beside it."""
    await every_verb(place.url)


async def test_nobody_comes_in_without_a_certificate(place: Place):
    url = with_options(place.bare_url, {"ssl_ca_certs": str(of(place).ca_file)})
    await refused(url, *SHOWN_OUT)


async def test_nobody_comes_in_with_a_certificate_of_another_authority(place: Place):
    theirs = of(place).shown_by_client(of(place).stranger)
    await refused(with_options(place.bare_url, of(place).options | theirs), *SHOWN_OUT)


@pytest.mark.parametrize("authority", ["unknown", "wrong"])
async def test_a_server_of_another_authority_is_refused(place: Place, authority: str):
    options = dict(of(place).options)
    options["ssl_ca_certs"] = str(of(place).other_ca_file)
    if authority == "unknown":
        del options["ssl_ca_certs"]
    await refused(with_options(place.bare_url, options), "certificate verify failed")


@contextmanager
def posing_as_elsewhere(place: Place) -> Iterator[None]:
    """Have every server show a certificate of the right authority, for another host."""
    try:
        for server in all_of(place):
            of(place).present(server, of(place).elsewhere)
        yield
    finally:
        for server in all_of(place):
            # The helper's own connection has been there since before.
            of(place).present(server, of(place).server)


@pytest.mark.parametrize("place", ["server", "cluster"], indirect=True)
async def test_a_certificate_of_another_host_is_refused_unless_told_otherwise(place: Place):
    with posing_as_elsewhere(place):
        await refused(place.url, "IP address mismatch")
        async with bus_on(f"{place.url}&ssl_check_hostname=false", deadline=5) as bus:
            assert await bus.check(Call())


async def test_passwords_go_over_it_and_are_never_shown(place: Place):
    """A worker of a name and a password of its own, and one that has a wrong one."""
    servers = [server for server in all_of(place) if "sentinel " not in server.name]
    rights = ["on", f">{SECRET}", "~*", "&*", "+@all"]
    try:
        for server in servers:
            server.execute("ACL", "SETUSER", "worker", *rights)
        named = place.url.replace("://", f"://worker:{SECRET}@", 1)
        async with bus_on(named, deadline=5) as bus:
            assert await bus.check(Call())
        await refused(named.replace(SECRET, "another"), "invalid username-password")
    finally:
        for server in servers:
            server.execute("ACL", "DELUSER", "worker")


@pytest.mark.parametrize("place", ["cluster", "sentinel"], indirect=True)
async def test_it_finds_its_server_again_after_its_connections_were_lost(place: Place):
    async with bus_on(place.url, deadline=5) as bus:
        assert await bus.check(Call())
        for server in all_of(place):
            server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await recovered(bus)


async def test_the_doctor_sees_it(place: Place):
    findings = (await examine(place.url, Keyspace(NAMESPACE), deadline=10)).findings
    (tls,) = [one for one in findings if one.check == "tls"]
    assert tls.status == "ok"
    assert "verified, with a certificate of our own" in tls.found
    if isinstance(place, SentinelGroup):
        (sentinels,) = [one for one in findings if one.check == "sentinel"]
        assert sentinels.found.startswith("3 of 3 answer")


async def test_sentinels_may_speak_in_the_clear_where_the_servers_do_not(pool: Pool):
    """`ssl=true` is about the servers, `rediss+sentinel` about the sentinels as well."""
    url = "redis+sentinel://127.0.0.1:1/service?ssl=true"
    async with bus_on(url) as bus:
        store: Any = bus._store
        pool_of_ours = store._calls.connections.client.connection_pool
        assert type(pool_of_ours.make_connection()).__name__ == "SentinelManagedSSLConnection"
        (witness,) = pool_of_ours.sentinel_manager.sentinels
        assert type(witness.connection_pool.make_connection()).__name__ == "Connection"


# ---- what is wrong is said on opening, and the key is never shown


@pytest.fixture
def made(tmp_path) -> Certificates:
    return Certificates(tmp_path, "127.0.0.1", mutual=True)


SCHEMES = ["rediss://h/0", "rediss+cluster://h", "rediss+sentinel://h/service"]


@pytest.mark.parametrize("url", SCHEMES)
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
async def test_a_file_that_is_not_there_is_named(made, url: str, option: str):
    options = made.options | {option: "/nowhere/at-all.pem"}
    text = f"url option {option}='/nowhere/at-all.pem': No such file"
    with pytest.raises(ConfigError, match=text):
        await bus_on(with_options(url, options)).open()


@pytest.mark.parametrize("url", SCHEMES)
async def test_a_file_of_something_else_is_named(made, url: str):
    (made.ca_file.parent / "empty.pem").touch()
    for option, given in [
        ("ssl_ca_certs", made.ca_file.parent / "empty.pem"),
        ("ssl_certfile", made.ca_file.parent / "empty.pem"),
        ("ssl_keyfile", made.stranger[1]),
    ]:
        with pytest.raises(ConfigError, match=r"url option ssl_\w+='.*in PEM") as caught:
            await bus_on(with_options(url, made.options | {option: str(given)})).open()
        assert "PRIVATE" not in str(caught.value)


async def test_a_key_alone_is_no_certificate(made):
    options = {"ssl_keyfile": str(made.client[1])}
    with pytest.raises(ConfigError, match="expected ssl_certfile as well"):
        await bus_on(with_options(SCHEMES[0], options)).open()


def encrypted(pair: tuple[Path, Path], directory: Path) -> tuple[Path, Path]:
    """Get the pair with its key as one that only a password opens."""
    key = load_pem_private_key(pair[1].read_bytes(), None)
    path = directory / "encrypted-key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )
    return pair[0], path


async def test_an_encrypted_key_wants_its_password_in_the_url_and_not_on_the_terminal(
    place: Place, tmp_path: Path
):
    own = of(place).shown_by_client(encrypted(of(place).client, tmp_path))
    url = with_options(place.bare_url, of(place).options | own)
    for wrong in ("", "&ssl_password=another"):
        with pytest.raises(ConfigError, match="ssl_password opens"):
            await bus_on(url + wrong).open()
    async with bus_on(f"{url}&ssl_password={SECRET}", deadline=5) as bus:
        assert await bus.check(Call())


@pytest.mark.parametrize("url", ["redis://h", "redis+cluster://h", "redis+sentinel://h/service"])
def test_certificates_without_tls_are_refused(url: str):
    expected = url.partition("h")[0].replace("redis", "rediss")
    with pytest.raises(ConfigError, match="ssl_ca_certs is for TLS") as caught:
        bus_on(f"{url}?ssl_ca_certs=/etc/ssl/ca.pem")
    assert expected in str(caught.value)


@pytest.mark.parametrize("url", ["rediss+cluster://h", "rediss+sentinel://h/service"])
def test_a_scheme_with_tls_is_not_talked_out_of_it(url: str):
    with pytest.raises(ConfigError, match="url option ssl='false': expected true"):
        bus_on(f"{url}?ssl=false")
    with pytest.raises(ConfigError, match="url option ssl='perhaps': expected true or false"):
        bus_on(f"{url.replace('rediss', 'redis')}?ssl=perhaps")
