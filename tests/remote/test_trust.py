"""Whom an `HttpPolicy` trusts, who it says it is, and that what is secret is never shown."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from stanchion import ConfigError
from tests.remote import faulty as deeds
from tests.remote.asking import CALL, http_policy
from tests.remote.faulty import FaultyServer

# ---- TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def secure(ca: trustme.CA):
    """A server with a certificate of ours that wants one of ours from who asks."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    server = FaultyServer()
    await server.start(context)
    yield server
    await server.stop()


@pytest.fixture
def files(ca: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """The authority, and the certificate and key of a client."""
    client = ca.issue_cert("worker@stanchion.test", common_name="worker")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    names = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    return {field: str(tmp_path / name) for field, name in names.items()}


async def test_a_service_that_shows_no_trusted_certificate_is_not_asked(in_memory, secure):
    bus = await in_memory(http_policy(secure.url, bearer="t0ken"))
    decision = await bus.check(CALL)
    assert decision.vetoes[0].detail == "cannot be trusted: its certificate was refused"
    assert secure.requests == []


async def test_a_service_is_trusted_by_the_authority_that_was_declared(in_memory, secure, files):
    bus = await in_memory(http_policy(secure.url, ca=files["ca"]))
    assert await bus.check(CALL)
    assert secure.peers[-1] in (None, {})


async def test_a_certificate_for_another_name_is_not_trusted(in_memory, secure, files):
    url = secure.url.replace("127.0.0.1", "localhost")
    bus = await in_memory(http_policy(url, ca=files["ca"]))
    assert not await bus.check(CALL)
    assert secure.requests == []


async def test_who_asks_shows_its_certificate(in_memory, secure, files):
    bus = await in_memory(http_policy(secure.url, **files))
    assert await bus.check(CALL)
    assert ((("commonName", "worker"),)) in secure.peers[-1]["subject"]


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_a_file_that_cannot_be_used_is_told(files, tmp_path, field):
    (tmp_path / "wrong.pem").write_text("not PEM")
    for path in (str(tmp_path / "wrong.pem"), str(tmp_path / "none.pem")):
        with pytest.raises(ConfigError, match="cannot be used"):
            http_policy("https://127.0.0.1:1", **{**files, field: path})


# ---- secrets

SECRET = "s3cr3t-v4lue"


async def test_what_is_secret_is_never_shown(in_memory, faulty, caplog):
    faulty.deed = deeds.answer({"allow": False, "why": "no"}, status=500)
    url = f"{faulty.url}/hook?key={SECRET}"
    policy = http_policy(url, bearer=SECRET, headers={"X-Api-Key": SECRET})
    bus = await in_memory(policy)
    decision = await bus.check(CALL)
    assert faulty.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert faulty.requests[0].headers["x-api-key"] == SECRET
    await faulty.stop()
    gone = await bus.check(CALL)
    shown = f"{policy!r} {policy} {decision!r} {gone!r} {caplog.text} {bus.policies!r}"
    assert SECRET not in shown
    assert SECRET not in str(policy.model_dump(mode="python", exclude={"url"}))


@pytest.mark.parametrize(
    "fields",
    [
        {"bearer": [SECRET]},
        {"headers": {"X-Key": [SECRET]}},
        {"headers": [SECRET]},
        {"headers": {"X-Key": SECRET + "\n"}},
        {"url": f"http://user:{SECRET}@host"},
        {"url": f"ftp://host/{SECRET}"},
        {"key_password": [SECRET]},
    ],
    ids=["bearer", "header", "headers", "line", "user", "query", "password"],
)
def test_a_mistake_with_a_secret_does_not_show_it(fields):
    with pytest.raises(ConfigError) as caught:
        http_policy(**{"url": "http://127.0.0.1:1", **fields})
    assert SECRET not in str(caught.value)


async def test_a_token_that_cannot_be_sent_fails_and_asks_nothing(in_memory, faulty, monkeypatch):
    monkeypatch.setenv("TOKEN", "a-token")
    bus = await in_memory(
        http_policy(faulty.url, bearer=lambda: "", on_outage="admit", priority=1),
        http_policy(faulty.url, name="env", bearer_env="TOKEN", priority=2),
    )
    monkeypatch.delenv("TOKEN")
    details = [verdict.detail for verdict in (await bus.check(CALL)).verdicts]
    assert details == ["has no bearer token that can be sent"] * 2
    assert faulty.requests == []
