"""Policies that ask a service, declared in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stanchion import ConfigError, EventBus
from stanchion.config import read_settings
from stanchion.policies.remote import HttpPolicy, OpaPolicy, RegoPolicy
from tests.remote.asking import Call, http_policy, opa_policy

FILE = """
url: memory://
policies:
  - kind: opa
    name: opa
    on: remote:call
    url: {opa}
    path: test/allow
    by: [tenant, model]
    cache_admit: 30s
    bearer: ${{OPA_TOKEN}}
  - kind: http
    name: authz
    on: [remote:call]
    url: {http}
    subject: {{type: tenant, id: "{{tenant}}"}}
    resource: {{type: model, id: "{{model}}"}}
    timeout: 250ms
    on_outage: admit
    mode: shadow
    headers: {{X-Api-Key: "${{API_KEY}}"}}
  - kind: rego
    name: rego
    on: remote:call
    files: {rules}
    path: test/allow
    data: {{most: 100}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch):
    def write(opa: str = "http://127.0.0.1:1", http: str = "http://127.0.0.1:1") -> Path:
        monkeypatch.setenv("OPA_TOKEN", "t0ken")
        monkeypatch.setenv("API_KEY", "k3y")
        rules = tmp_path / "rules"
        rules.mkdir(exist_ok=True)
        (rules / "test.rego").write_text("package test\n\nallow if input.tokens <= data.most")
        path = tmp_path / "stanchion.yaml"
        path.write_text(FILE.format(opa=opa, http=http, rules=rules))
        return path

    return write


def test_a_file_declares_them(config):
    opa, http, rego = read_settings(config()).policies
    assert isinstance(opa, OpaPolicy)
    assert isinstance(http, HttpPolicy)
    assert isinstance(rego, RegoPolicy)
    assert (opa.by, opa.cache_admit, http.timeout) == (("tenant", "model"), 30.0, 0.25)


async def test_they_are_asked(config, opa, faulty):
    opa.load("package test\n\nallow if input.tokens < 50")
    async with EventBus.from_config(config(opa.url, faulty.url)) as bus:
        assert await bus.check(Call(tenant="acme", tokens=10))
        assert faulty.requests[0].headers["x-api-key"] == "k3y"
        assert (await bus.check(Call(tenant="acme", model="m2", tokens=70))).policy == "opa"


def test_a_mistake_is_told_with_its_place_and_without_what_is_secret(config):
    path = config()
    path.write_text(path.read_text().replace("path: test/allow", "path: ''", 1))
    with pytest.raises(ConfigError, match=r"policies\[0\]: OpaPolicy 'opa': path=''") as caught:
        read_settings(path)
    assert "t0ken" not in str(caught.value)


def test_a_variable_that_is_not_set_is_told(config, monkeypatch):
    path = config()
    monkeypatch.delenv("OPA_TOKEN")
    with pytest.raises(ConfigError, match=r"policies\[0\]: bearer: .*no variable OPA_TOKEN"):
        read_settings(path)


@pytest.mark.parametrize(
    ("missing", "extra"), [("aiohttp", "http"), ("aiohttp", "opa"), ("opa_bindings", "opa")]
)
def test_an_extra_that_is_missing_is_named(monkeypatch, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    declare = {
        ("aiohttp", "http"): lambda: http_policy("http://127.0.0.1:1"),
        ("aiohttp", "opa"): lambda: opa_policy("http://127.0.0.1:1"),
        ("opa_bindings", "opa"): lambda: RegoPolicy(name="r", on=Call, rego="package a", path="a"),
    }
    with pytest.raises(ConfigError, match=rf"needs .*pip install 'stanchion\[{extra}\]'"):
        declare[missing, extra]()


def test_nothing_optional_is_loaded_before_it_is_used():
    program = (
        "import sys, stanchion, stanchion.policies.remote\n"
        "print({'aiohttp', 'opa_bindings'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"
