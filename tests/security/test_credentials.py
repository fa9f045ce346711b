"""Passwords, tokens and keys are told to nobody, whatever goes wrong and wherever it is written."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from stanchion import Concurrency, ConfigError, EventBus, RateLimit, StanchionError
from stanchion.cli import main
from stanchion.cli.places import shown
from stanchion.observers import Recorder, RedisPublisher
from stanchion.observers.sinks.eventgrid import EventGridSink
from stanchion.observers.sinks.kafka import KafkaSink
from stanchion.observers.sinks.otlp import OtlpSink
from stanchion.observers.sinks.pagerduty import PagerDutySink
from stanchion.observers.sinks.parquet import ParquetSink
from stanchion.observers.sinks.pulsar import PulsarSink
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.observers.sinks.slack import SlackSink
from stanchion.observers.sinks.webhook import WebhookSink
from stanchion.policies.remote.http import HttpPolicy
from stanchion.policies.remote.opa import OpaPolicy
from stanchion.store.urls import parse_url
from tests.security.hostile import Request
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup, TLSServer

NEEDLE = "n33dle"
PASSWORD = f"{NEEDLE}/pw:@%é"
QUOTED = quote(PASSWORD, safe="")
POLICIES = (
    RateLimit(name="calls", on=Request, by="user", limit=5, per="1m"),
    Concurrency(name="slots", on=Request, limit=1, lease="30s"),
)
USER = ("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "&*", "+@all")


class Ears:
    """Hears all that a process says: logs at every level, events, errors, representations."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        # The root's, hence asyncio's and the client's too.
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self.recorder = Recorder()
        self.told: list[str] = []

    def hear(self, *things: object) -> None:
        for thing in things:
            if isinstance(thing, BaseException):
                self.told += traceback.format_exception(thing)
            self.told += [str(thing), repr(thing)]

    async def use(self, url: str, meanwhile: Callable[[], object] = lambda: None) -> list[object]:
        """Do with a bus at a URL what there is to do; get why the first checks were vetoed."""
        options: dict[str, Any] = {"deadline": 0.5, "policies": POLICIES}
        observers = [self.recorder, RedisPublisher()]
        reasons: list[object] = []
        async with EventBus.from_url(url, observers=observers, **options) as bus:
            for round_ in range(2):
                decision = await bus.check(Request(user="a"))
                reasons.append(decision.reason)
                self.hear(bus, decision, decision.permit, parse_url(url))
                verbs = [
                    bus.reset("calls"),
                    bus.override("calls", None, user="a"),
                    bus.peek(Request(user="a")),
                    bus.admit(Request(user="b"), wait=0.1),
                    *([bus.settle(decision.permit)] if decision.permit else []),
                ]
                for heard in await asyncio.gather(*verbs, return_exceptions=True):
                    self.hear(heard)
                    assert not isinstance(heard, Exception) or isinstance(heard, StanchionError)
                if not round_:
                    meanwhile()
            with pytest.raises((TypeError, AttributeError)) as caught:
                pickle.dumps(bus)
            self.hear(caught.value, bus.observers.stats())
        self.hear(*[event.model_dump_json() for event in self.recorder.events])
        return reasons

    def silence(self) -> None:
        """See that the secret was in nothing that was heard."""
        self.told += [f"{r.getMessage()} {r.exc_text} {r.__dict__!r}" for r in self._caplog.records]
        for spelling in (NEEDLE, QUOTED[:9]):
            assert not [text for text in self.told if spelling in text]


@pytest.fixture
def ears(caplog: pytest.LogCaptureFixture) -> Ears:
    return Ears(caplog)


def forms(port: int) -> dict[str, str]:
    at = f"127.0.0.1:{port}"
    return {
        "redis": f"redis://worker:{QUOTED}@{at}/0",
        "no name": f"redis://:{QUOTED}@{at}/0",
        "as a name": f"redis://{QUOTED}:{QUOTED}@{at}/0",
        "in the query": f"redis://{at}/0?username=worker&password={QUOTED}",
        "tls": f"rediss://worker:{QUOTED}@{at}/0",
        "key of a certificate": f"rediss://{at}/0?ssl_password={QUOTED}&ssl_check_hostname=false",
        "socket": f"unix:///nowhere/s.sock?username=worker&password={QUOTED}",
        "cluster": f"redis+cluster://worker:{QUOTED}@{at},{at}",
        "cluster, query": f"redis+cluster://{at}?password={QUOTED}",
        "sentinel": f"redis+sentinel://worker:{QUOTED}@{at}/main/0",
        "not escaped": f"redis://worker:{NEEDLE}@{NEEDLE}@{at}/0",
    }


@pytest.mark.parametrize("form", forms(0))
async def test_where_nobody_answers(form: str, ears: Ears):
    reasons = await ears.use(forms(free_port())[form])
    assert set(reasons) == {"store_unavailable"}
    ears.silence()


@pytest.mark.parametrize("program", ["valkey", "cluster", "sentinel"])
@pytest.mark.parametrize("where", ["name", "query"])
async def test_where_the_password_is_wrong(
    request: pytest.FixtureRequest, program: str, where: str, ears: Ears
):
    group: RealServer | Cluster | SentinelGroup = request.getfixturevalue(program)
    scheme, _, rest = group.url.partition("://")
    url = f"{scheme}://worker:{QUOTED}@{rest}"
    if where == "query":
        url = f"{group.url}?username=worker&password={QUOTED}"
    assert set(await ears.use(url)) == {"store_unavailable"}
    ears.silence()


@pytest.mark.parametrize("loss", ["killed", "user removed", "connections cut"])
async def test_where_the_server_goes_after_a_login(valkey: RealServer, loss: str, ears: Ears):
    valkey.execute(*USER)
    url = valkey.url.replace("://", f"://worker:{QUOTED}@")
    losses: dict[str, Callable[[], object]] = {
        "killed": valkey.kill,
        "user removed": lambda: valkey.execute("ACL", "DELUSER", "worker"),
        "connections cut": lambda: valkey.execute("CLIENT", "KILL", "TYPE", "normal"),
    }
    reasons = await ears.use(url, losses[loss])
    assert reasons[0] is None
    assert (reasons[1] == "store_unavailable") is (loss != "connections cut")
    if loss == "killed":
        valkey.start()
    ears.silence()


async def test_where_the_certificate_is_not_trusted(tls_server: TLSServer, ears: Ears):
    url = tls_server.bare_url.replace("://", f"://worker:{QUOTED}@")
    assert set(await ears.use(f"{url}?ssl_password={QUOTED}")) == {"store_unavailable"}
    ears.silence()


# Passwords that somebody has pasted as they are, and what else is no URL.
BROKEN = [
    *(f"redis://u:{NEEDLE}{sign}x@h:1/0" for sign in "/#?[]\u2100"),
    *(f"redis+cluster://u:{NEEDLE}{sign}x@h:1,h:2" for sign in "/#?[]"),
    *(f"redis+sentinel://u:{NEEDLE}{sign}x@h:1/main/0" for sign in "/#?[]"),
    *(f"unix://u:{NEEDLE}{sign}x@/s.sock" for sign in "#[]"),
    *(f"redis://u:1{sign}{NEEDLE}@h/0" for sign in "/#?"),
    f"redis://u:{NEEDLE}",
    f"redis://h/{NEEDLE}",
    f"u:{NEEDLE}@h:1",
    f"redis:u:{NEEDLE}@h://",
    f"{NEEDLE}@h://x",
    f"redis://u:{QUOTED}@h:port/0",
    f"redis://u:{QUOTED}@h:0/0",
    f"redis://u:{QUOTED}@h,h/0",
    f"redis://u:{QUOTED}@/0",
    f"redis+cluster://u:{QUOTED}@h/1",
    f"redis+sentinel://u:{QUOTED}@h",
    f"memory://u:{NEEDLE}@h",
    f"embedded://u:{NEEDLE}@h",
    f"redis://u:{QUOTED}@h/0?timeout={NEEDLE}",
    f"redis://u:{QUOTED}@h/0?passwrod={NEEDLE}",
    f"redis+cluster://u:{QUOTED}@h?passwrod={NEEDLE}",
    f"redis+sentinel://u:{QUOTED}@h/main?passwrod={NEEDLE}",
]


@pytest.mark.parametrize("url", BROKEN, ids=ascii)
async def test_where_the_url_cannot_work(url: str, ears: Ears):
    with pytest.raises(ConfigError) as caught:
        async with EventBus.from_url(url, policies=POLICIES):
            pass
    ears.hear(caught.value)
    ears.silence()


@pytest.mark.parametrize("command", ["inspect", "halts", "doctor", "tail"])
def test_the_command_line(
    command: str,
    ears: Ears,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Neither its errors, nor its tracebacks, nor its help, which shows the environment."""
    ears.told.append(shown(f"redis://u:{QUOTED}@h/0?password={QUOTED}"))
    some = ["redis", "in the query", "cluster", "sentinel"]
    urls = [*BROKEN[::7], *(forms(free_port())[form] for form in some)]
    option = ["--url"] if command == "inspect" else []
    for words in ([*option, url] for url in urls):
        monkeypatch.setattr(sys, "argv", ["stanchion", command, *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code
    monkeypatch.setenv("STANCHION_URL", urls[-1])
    monkeypatch.setattr(sys, "argv", ["stanchion", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert "stanchion: " in captured.err
    ears.hear(captured.out, captured.err)
    ears.silence()


KEY = f"{NEEDLE}{'0' * 26}"
HOLDERS: dict[str, Callable[[], object]] = {
    "webhook": lambda: WebhookSink(
        url=f"https://h/{NEEDLE}?x={NEEDLE}",
        secret=f"{NEEDLE}Q{'A' * 25}",
        headers={"Authorization": NEEDLE},
    ),
    "slack": lambda: SlackSink(url=f"https://hooks.slack.com/services/{NEEDLE}"),
    "pagerduty": lambda: PagerDutySink(routing_key=KEY),
    "eventgrid": lambda: EventGridSink(endpoint="https://h/api/events", key=NEEDLE),
    "kafka": lambda: KafkaSink(
        "h:9092", topic="t", tls=True, sasl_username="u", sasl_password=NEEDLE
    ),
    "pulsar": lambda: PulsarSink("pulsar+ssl://h:6651", topic="t", token=NEEDLE),
    "otlp": lambda: OtlpSink("https://h:4318", headers={"api-key": NEEDLE}),
    "parquet": lambda: ParquetSink(
        "s3://bucket", options={"access_key_id": "me", "secret_access_key": NEEDLE, "region": "x"}
    ),
    "stream": lambda: RedisStreamSink(f"redis://u:{NEEDLE}@h:1/0"),
    "http": lambda: HttpPolicy(
        name="p",
        on=Request,
        url="https://h/x",
        dialect="json",
        request={"user": "{user}"},
        allow="ok",
        bearer=NEEDLE,
        headers={"X-Key": NEEDLE},
    ),
    "opa": lambda: OpaPolicy(
        name="p", on=Request, url="https://h", path="a/b", bearer=NEEDLE, headers={"X": NEEDLE}
    ),
}


@pytest.mark.parametrize("kind", HOLDERS)
async def test_what_holds_a_secret_does_not_show_it(kind: str, ears: Ears):
    holder: Any = HOLDERS[kind]()
    ears.hear(holder)
    bus = EventBus.from_url("memory://", **_parts(holder))
    ears.hear(bus, bus.policies, bus.observers.stats())
    if not hasattr(holder, "evaluate"):
        with pytest.raises(ConfigError) as caught:
            bus.observers.register(holder, timeout=-1)
        ears.hear(caught.value)
    ears.silence()


def _parts(holder: Any) -> dict[str, Any]:
    return {"policies" if hasattr(holder, "evaluate") else "observers": [holder]}
