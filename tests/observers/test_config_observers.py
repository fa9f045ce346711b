"""Observers in a configuration file: kinds, terms, and secrets from the environment."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import traceback

import pytest

from stanchion import ConfigError, Event, EventBus
from stanchion.config import read_settings
from stanchion.observers import LoggingObserver, RedisPublisher
from stanchion.observers.inbox import Overflow
from stanchion.observers.registration import Registration
from stanchion.observers.retry import Quarantine, Retry
from stanchion.observers.sinks.console import ConsoleSink
from stanchion.observers.sinks.jsonl import JsonlSink
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from stanchion.wiring import OBSERVERS
from tests.busses import command

SECRET = "s3cr3t-of-the-environment"


class Step(Event, type="configured:step"):
    number: int


class Picky:
    """An observer of somebody else, which quotes what it does not like."""

    def __init__(self, *, token: str) -> None:
        if token != "liked":
            raise ValueError(f"bad token {token!r}, that is {token[:10]}...")
        self.token = token

    async def handle(self, event: Event) -> None:
        del event


@pytest.fixture
def read(tmp_path):
    """Read a file with these observers."""

    def read(text, **environ):
        file = tmp_path / "stanchion.yaml"
        file.write_text(f"url: memory://\nobservers:\n{text}")
        return read_settings(file, environ).observers

    return read


def test_a_kind_is_its_class_with_the_other_keys_as_arguments(read, tmp_path):
    registrations = read(
        f"""
  - kind: jsonl
    path: {tmp_path}/a.jsonl
    max_bytes: 10MB
    mode: "0640"
    on: ["llm:*", policy:vetoed]
  - {{kind: console, style: json}}
  - {{kind: redis_stream, key: mine, max_age: 1h}}
  - {{kind: redis_pubsub, on: "*"}}
  - factory: stanchion.observers:LoggingObserver
    options: {{logger: mine}}
    terms: {{queue: 7}}
"""
    )
    kinds = [type(one.observer) for one in registrations]
    assert kinds == [JsonlSink, ConsoleSink, RedisStreamSink, RedisPublisher, LoggingObserver]
    assert registrations[0].observer.on == ("llm:*", "policy:vetoed")
    assert registrations[2].observer.key == "mine"
    assert registrations[4].terms == {"queue": 7}


@pytest.mark.parametrize("kind", sorted(OBSERVERS))
def test_every_kind_leads_to_a_class_that_takes_arguments_by_name(kind):
    module, _, name = OBSERVERS[kind].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    assert callable(getattr(found, "handle_batch", None) or getattr(found, "handle", None))


async def test_terms_are_those_of_registering(read):
    registrations = read(
        """
  - kind: console
    terms:
      name: mine
      queue: 20
      overflow: drop_newest
      timeout: 250ms
      concurrency: 2
      batch_size: 5
      batch_delay: 1s
      block_for: 0
      on: ["configured:*"]
      priority: [policy:vetoed]
      retry: {attempts: 3, within: 10s}
      quarantine: {after: 2, pause: 1s}
"""
    )
    (registration,) = registrations
    async with EventBus.from_url("memory://", observers=registrations) as bus:
        assert set(bus.observers.stats()) == {"mine"}
        lane = bus.observers._directory.all()["mine"]
    terms = lane._terms
    assert (terms.queue, terms.overflow, terms.timeout) == (20, Overflow.DROP_NEWEST, 0.25)
    assert (terms.concurrency, terms.batch_size, terms.batch_delay) == (2, 5, 1.0)
    assert (terms.priority, terms.patience.retry) == (("policy:vetoed",), Retry(3, "10s"))
    assert terms.patience.quarantine == Quarantine(2, "1s")
    assert registration.terms["on"] == ("configured:*",)


async def test_a_bus_of_a_file_tells_the_observers_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    file = tmp_path / "stanchion.yaml"
    file.write_text(
        """
url: memory://
namespace: staging
redact: [number]
observers:
  - {kind: jsonl, path: "${PLACE}/events.jsonl", terms: {on: "configured:*", name: file}}
  - {kind: redis_stream}
"""
    )
    async with EventBus.from_config(file) as bus:
        bus.notify(Step(number=7))
        assert await bus.observers.drain()
        assert set(bus.observers.stats()) == {"file", "RedisStreamSink"}
        assert await command(bus, "XLEN", "stanchion:{staging}:stream") == 1
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["type"] == "configured:step"
    assert "7" not in json.loads(line)["data"].values()


async def test_a_registration_is_taken_wherever_an_observer_is():
    seen = []
    given = [Registration.of(seen.append, name="mine", on="configured:*"), seen.append]
    async with EventBus.from_url("memory://", observers=given) as bus:
        bus.notify(Step(number=1))
        assert await bus.observers.drain()
        assert set(bus.observers.stats()) == {"mine", "list.append"}
    assert len(seen) == 2


# ---- the environment


def test_a_variable_stands_for_its_value_in_any_text(read):
    (registration,) = read(
        """
  - kind: redis_stream
    url: redis://:${PASSWORD}@${HOST}:6379/0
    key: "$${HOST}"
    on: ["${GLOB}"]
    terms: {name: "of ${HOST}"}
""",
        PASSWORD=SECRET,
        HOST="example.org",
        GLOB="llm:*",
    )
    assert registration.observer._url == f"redis://:{SECRET}@example.org:6379/0"
    assert registration.observer.key == "${HOST}"
    assert registration.observer.on == ("llm:*",)
    assert registration.terms["name"] == "of example.org"
    assert SECRET not in repr(registration)


def test_a_variable_that_is_not_set_is_named_with_its_place(read):
    words = r"observers\[1\]: key: the environment has no variable STREAM_KEY$"
    with pytest.raises(ConfigError, match=words):
        read("  - kind: console\n  - {kind: redis_stream, key: '${STREAM_KEY}'}", OTHER="x")
    with pytest.raises(ConfigError, match=r"\[0\]: options: a\[0\]: expected the name|\$\{1x\}"):
        read("  - {factory: builtins:dict, options: {a: ['${1x}']}}")


@pytest.mark.parametrize(
    "entry",
    [
        "{kind: redis_stream, url: '${TOKEN}'}",
        "{kind: redis_stream, url: 'kafka://${TOKEN}'}",
        "{kind: jsonl, path: x, fsync: '${TOKEN}'}",
        "{kind: console, stream: '${TOKEN}'}",
        "{factory: 'tests.observers.test_config_observers:Picky', options: {token: '${TOKEN}'}}",
        "{kind: '${TOKEN}'}",
        "{kind: console, terms: {overflow: '${TOKEN}'}}",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, SECRET * 10, "a 'quoted' \\ one\n of two lines"])
def test_what_a_variable_held_is_in_no_error(read, entry, secret):
    with pytest.raises(ConfigError) as caught:
        read(f"  - {entry}", TOKEN=secret)
    shown = "".join(traceback.format_exception(caught.value))
    assert secret[:9] not in shown
    assert repr(secret)[1:10] not in shown


# ---- mistakes


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("3", "expected a mapping with either factory, or kind: one of ['console'"),
        ("{path: x}", "expected a mapping with either factory, or kind"),
        ("{kind: console, factory: 'a:b'}", "expected a mapping with either factory, or kind"),
        ("{kind: paper}", "kind='paper': expected one of ['console', 'dogstatsd'"),
        ("{kind: [console]}", "kind=['console']: expected one of"),
        ("{kind: console, color: true}", "console: unknown field 'color': expected ['stream'"),
        ("{kind: jsonl}", "jsonl: TypeError: "),
        ("{kind: jsonl, path: x, mode: 0600}", "jsonl: mode=600: expected text such as"),
        ("{kind: console, terms: 3}", "terms=3: expected a mapping with ['on', 'name', 'timeout'"),
        ("{kind: console, terms: {size: 3}}", "terms: unknown field 'size': expected ['on'"),
        ("{kind: console, terms: {queue: 0}}", "queue=0: expected an integer of at least 1"),
        ("{kind: console, terms: {retry: {tries: 3}}}", "terms: retry: TypeError: "),
        ("{kind: console, terms: {quarantine: {after: 0}}}", "terms: quarantine: quarantine.after"),
    ],
)
def test_a_mistake_is_named_with_its_place(read, entry, words):
    with pytest.raises(ConfigError, match=re.escape(f"observers[0]: {words}")) as caught:
        read(f"  - {entry}")
    assert "stanchion.yaml: " in str(caught.value)


def test_two_observers_of_one_name_are_found_in_the_file(read):
    with pytest.raises(ConfigError, match=r"observers\[1\]: name='a': an observer has this name"):
        read("  - {kind: console, terms: {name: a}}\n  - {kind: console, terms: {name: a}}")


def test_a_file_that_names_no_sink_imports_none():
    program = "import stanchion, stanchion.config, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = [name for name in done.stdout.decode().split() if ".observers.sinks" in name]
    assert loaded == []
