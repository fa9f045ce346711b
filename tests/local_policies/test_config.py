"""Policies that decide in the process, from a YAML file."""

from __future__ import annotations

import pytest

from stanchion import ConfigError, Event, EventBus
from stanchion.config import read_settings
from stanchion.events import LLMPromptSent
from stanchion.policies.content import ContentPolicy
from stanchion.policies.kill_switch import KillSwitch
from stanchion.policies.rules import RulePolicy
from stanchion.policies.window import Closed, WindowPolicy

FILE = """
url: memory://
policies:
  - kind: kill_switch
    name: stop
    max_age: 250ms
  - kind: window
    name: hours
    on: [llm:prompt, "busses:*"]
    hours: {mon-fri: ["09:00-12:00", "13:00-17:00"], sat: "10:00-12:00"}
    timezone: Europe/Berlin
    freezes:
      - {start: 2026-12-24, end: 2027-01-01, reason: year end}
    mode: shadow
    on_veto: retry
  - kind: rules
    name: rules
    on: llm:prompt
    constants: {limit: 8000}
    rules:
      - name: big
        when: tokens > limit
        reason: "{tokens} tokens are above {limit}"
        signal: fallback
        advice: {model: small}
  - kind: content
    name: content
    on: llm:prompt
    fields: prompt
    terms: [falcon]
    patterns: {ticket: 'TCK-\\d+'}
    personal: [email]
    redact: [personal_data, pattern]
    judge: tests.local_policies.test_config:judge
"""


async def judge(event: Event) -> str | None:
    return "off topic" if "weather" in (getattr(event, "prompt", "") or "") else None


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "stanchion.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


async def test_every_kind_can_stand_in_a_file_and_works(write):
    path = write(FILE)
    kinds = [type(policy) for policy in read_settings(path, {}).policies]
    assert kinds == [KillSwitch, WindowPolicy, RulePolicy, ContentPolicy]
    async with EventBus.from_config(path) as bus:
        assert isinstance(stop := bus.policies[0], KillSwitch)
        assert stop.max_age == "250ms"

        async def reasons(prompt, tokens=10):
            decision = await bus.check(LLMPromptSent(model="m1", prompt=prompt, tokens=tokens))
            told = [v.reason for v in decision.verdicts if v.reason not in {"ok", *Closed}]
            return told, getattr(decision.event, "prompt", None)

        assert await reasons("jo@example.com, TCK-7") == (["redacted"], "[email], [ticket]")
        assert await reasons("x", 9000) == (["9000 tokens are above 8000"], None)
        assert await reasons("falcon") == (["term"], None)
        assert await reasons("the weather") == (["off topic"], None)


def test_the_environment_comes_before_the_file(write):
    environ = {"STANCHION_POLICY_RULES__CONSTANTS": "{limit: 5}"}
    rules = read_settings(write(FILE), environ).policies[2]
    assert isinstance(rules, RulePolicy)
    assert rules.constants == {"limit": 5}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("tokens > limit", "tokns > limit", "column 1: LLMPromptSent has no field 'tokns'"),
        ("kind: rules", "kind: rule", "expected one of"),
        ("sat:", "satur:", "'satur'"),
        ("test_config:judge", "test_config:jugde", "has no such class or function"),
        ("max_age: 250ms", "max_age: soon", "max_age='soon'"),
    ],
)
def test_a_mistake_names_the_place_in_the_file(write, before, after, told):
    with pytest.raises(ConfigError) as caught:
        read_settings(write(FILE.replace(before, after)), {})
    assert told in str(caught.value)
    assert "policies[" in str(caught.value)
