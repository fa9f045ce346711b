"""A bus from a YAML file and the environment: what it says, and what it says to mistakes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import stanchion.sync
from stanchion import (
    CircuitBreaker,
    Concurrency,
    ConfigError,
    Event,
    EventBus,
    OnOutage,
    Quota,
    RateLimit,
    Verdict,
)
from stanchion.config import read_settings
from stanchion.observers import LoggingObserver
from tests.busses import Call

FILE = """
url: memory://
namespace: staging
deadline: 500ms
processes: 4
imports: [tests.busses]
policies:
  - kind: rate_limit
    name: in-calls
    on: busses:call
    by: [tenant, model]
    limit: {free: 60, "*": 600}
    limit_by: tenant
    per: 1m
    on_outage: local
  - kind: quota
    name: tokens
    on: [busses:call, "llm:*"]
    by: tenant
    limit: 2_000_000
    per: day
    cost: tokens
    warn_at: [0.5]
  - kind: concurrency
    name: slots
    on: busses:call
    limit: 8
    lease: 30s
  - kind: circuit_breaker
    name: provider
    on: busses:call
    by: model
    consecutive_failures: 3
    failures: [builtins:TimeoutError, builtins:OSError]
  - kind: custom
    factory: tests.unit.test_config:Terms
    options: {terms: [secret]}
observers:
  - factory: stanchion.observers:LoggingObserver
"""


class Terms:
    """A policy of somebody's own."""

    name = "terms"
    on = "busses:*"
    priority = 200

    def __init__(self, terms: list[str]) -> None:
        self.terms = terms

    async def evaluate(self, event: Event) -> Verdict:
        allowed = getattr(event, "model", "") not in self.terms
        return Verdict(self.name, allowed=allowed, reason="a secret term")


def fails() -> None:
    """A factory that does not work."""
    raise RuntimeError("no such luck")


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Any:
        path = tmp_path / "stanchion.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("URL", "NAMESPACE", "DEADLINE", "PROCESSES"):
        monkeypatch.delenv(f"STANCHION_{name}", raising=False)


def test_a_file_says_all_that_from_url_takes(write):
    settings = read_settings(write(FILE), {})
    assert (settings.url, settings.namespace) == ("memory://", "staging")
    assert (settings.deadline, settings.processes) == ("500ms", 4)
    rate, quota, slots, circuit, custom = settings.policies
    assert rate == RateLimit(
        name="in-calls",
        on="busses:call",
        by=("tenant", "model"),
        limit={"free": 60, "*": 600},
        limit_by="tenant",
        per="1m",
        on_outage=OnOutage.LOCAL,
    )
    assert quota == Quota(
        name="tokens",
        on=("busses:call", "llm:*"),
        by="tenant",
        limit=2_000_000,
        per="day",
        cost="tokens",
        warn_at=(0.5,),
    )
    assert slots == Concurrency(name="slots", on="busses:call", limit=8, lease="30s")
    assert isinstance(circuit, CircuitBreaker)
    assert circuit.failures == (TimeoutError, OSError)
    assert custom.name == "terms"
    assert [type(one.observer) for one in settings.observers] == [LoggingObserver]


async def test_a_bus_of_a_file_decides(write):
    async with EventBus.from_config(write(FILE)) as bus:
        decision = await bus.check(Call(tenant="acme"))
        assert decision
        names = [verdict.policy for verdict in decision.verdicts]
        assert names == ["in-calls", "tokens", "slots", "provider", "terms"]
        vetoed = await bus.check(Call(tenant="acme", model="secret"))
        assert (vetoed.policy, vetoed.reason) == ("terms", "a secret term")


def test_the_blocking_face_reads_the_same_file(write):
    with stanchion.sync.EventBus.from_config(write(FILE)) as bus:
        assert bus.check(Call(tenant="acme"))


def test_the_environment_comes_first(write):
    settings = read_settings(
        write(FILE),
        {
            "STANCHION_URL": "redis://elsewhere/1",
            "STANCHION_NAMESPACE": "17",
            "STANCHION_DEADLINE": "2.5",
            "STANCHION_PROCESSES": "8",
            "STANCHION_POLICY_IN_CALLS__LIMIT": "{'*': 5}",
            "STANCHION_POLICY_TOKENS__PER": "month",
            "STANCHION_POLICY_TOKENS__MODE": "shadow",
            "UNRELATED": "x",
        },
    )
    assert (settings.url, settings.namespace) == ("redis://elsewhere/1", "17")
    assert (settings.deadline, settings.processes) == (2.5, 8)
    rate, quota = settings.policies[:2]
    assert isinstance(rate, RateLimit)
    assert isinstance(quota, Quota)
    assert rate.limit == {"*": 5}
    assert (quota.per, quota.mode) == ("month", "shadow")


def test_the_environment_of_the_process_is_read_by_default(write, monkeypatch):
    monkeypatch.setenv("STANCHION_NAMESPACE", "production")
    assert read_settings(write("url: memory://")).namespace == "production"


def test_the_url_may_come_from_the_environment_alone(write):
    assert read_settings(write("policies: []"), {"STANCHION_URL": "memory://"}).url == "memory://"


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("", {}, r"stanchion.yaml=None: expected a mapping with \['url', "),
        ("[1]", {}, r"stanchion.yaml=\[1\]: expected a mapping"),
        ("policies: []", {}, r"url=None: expected \"redis://...\""),
        ("url: memory://\nnamespace: 1", {}, "namespace=1: expected text"),
        ("url: memory://\nurl: x", {}, r"found duplicate key \"url\""),
        ("url: [", {}, "no YAML that can be read: while parsing"),
        ("url: memory://\npolicy: []", {}, r"unknown field 'policy': expected \['url'"),
        ("url: memory://\npolicies: 3", {}, "policies=3: expected a list"),
        ("url: memory://\npolicies: [3]", {}, r"policies\[0\]=3: expected a mapping with kind"),
        ("url: memory://\npolicies: [{kind: rate}]", {}, r"policies\[0\]: kind='rate': expected"),
        (
            "url: memory://\npolicies: [{kind: quota, name: q, on: 'a:b', limit: 0, per: day}]",
            {},
            r"policies\[0\]: Quota: limit=0: expected from 1",
        ),
        (
            "url: memory://\npolicies: [{kind: quota, name: q, on: 'a:b', limit: 1, pre: day}]",
            {},
            r"policies\[0\]: Quota.*pre",
        ),
        ("url: memory://\nimports: [no.such]", {}, r"imports\[0\]='no.such': cannot be imported"),
        (
            "url: memory://\npolicies: [{kind: custom, factory: tests.unit.test_config:Nope}]",
            {},
            "factory='tests.unit.test_config:Nope': tests.unit.test_config has no such class",
        ),
        (
            "url: memory://\nobservers: [{factory: tests.unit.test_config:fails}]",
            {},
            r"observers\[0\]: tests.unit.test_config:fails: RuntimeError: no such luck",
        ),
        (
            "url: memory://\nobservers: [{factory: os, options: 3}]",
            {},
            r"observers\[0\]: factory='os': expected \"module:Name\"",
        ),
        (
            "url: memory://",
            {"STANCHION_POLICY_CALLS__LIMIT": "3"},
            "STANCHION_POLICY_CALLS__LIMIT='3': .* has no such policy",
        ),
        ("url: memory://", {"STANCHION_PROCESSES": "["}, "STANCHION_PROCESSES: no YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(write, text, environ, words):
    with pytest.raises(ConfigError, match=words):
        read_settings(write(text), environ)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read"):
        EventBus.from_config(tmp_path / "absent.yaml")


def test_without_the_extra_the_error_names_it(write):
    path = write("url: memory://")
    program = (
        "import sys; sys.modules['ruamel.yaml'] = None\n"
        "from stanchion import EventBus, ConfigError\n"
        "try: EventBus.from_config(sys.argv[1])\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert 'pip install "stanchion[config]"' in done.stdout
