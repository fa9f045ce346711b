"""`RulePolicy`: conditions in CEL, reasons with values, and no answer that is taken for a yes."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import cel
import pytest
from pydantic import BaseModel

from stanchion import ConfigError, Event, EventBus, Outcome
from stanchion.policies.rules import Rule, RulePolicy
from tests.busses import rate


class Tier(StrEnum):
    FREE = "free"
    PRO = "pro"


class User(BaseModel):
    name: str
    age: int | None = None


class Ask(Event, type="rules_test:ask"):
    tenant: str = "acme"
    tokens: int | None = 1
    model: str = "m1"
    tier: Tier = Tier.FREE
    user: User | None = None
    tags: tuple[str, ...] = ()
    share: float = 0.5


def rules(*given: Any, **fields: Any) -> RulePolicy:
    made = [
        one if isinstance(one, Rule) else {"name": f"rule-{number}", "reason": "no", **one}
        for number, one in enumerate(given)
    ]
    constants = {"limit": 8000, "blocked": ["evil"]}
    given_fields: dict[str, Any] = {"name": "rules", "on": Ask, "constants": constants}
    return RulePolicy(**{**given_fields, "rules": made, **fields})


async def says(when: str, event: Ask) -> str:
    verdict = await rules({"when": when}).evaluate(event)
    return verdict.reason


def refused(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        rules({"when": "tokens > limit", **fields})
    return str(caught.value)


# ---- deciding


@pytest.mark.parametrize(
    ("when", "fields", "vetoes"),
    [
        ("tokens > limit", {"tokens": 8001}, True),
        ("tokens > limit", {"tokens": 8000}, False),
        ("tenant in blocked", {"tenant": "evil"}, True),
        ("tenant in blocked", {}, False),
        ("tier == 'free' && tokens > 10", {"tokens": 11}, True),
        ("tier == 'free' && tokens > 10", {"tokens": 11, "tier": Tier.PRO}, False),
        ("event_type == 'rules_test:ask'", {}, True),
        ("user != null && user.age < 18", {"user": User(name="kim", age=12)}, True),
        ("user != null && user.age < 18", {}, False),
        ("tokens == null", {"tokens": None}, True),
        ("tags.exists(tag, tag.startsWith('x-'))", {"tags": ("a", "x-b")}, True),
        ("tags.all(t, t != 'a')", {"tags": ("a",)}, False),
        ("has(metadata.plan) && metadata.plan == 'free'", {"metadata": {"plan": "free"}}, True),
        ("has(metadata.plan) && metadata.plan == 'free'", {}, False),
        ("metadata.limits.tokens < tokens", {"metadata": {"limits": {"tokens": 0}}}, True),
        ("timestamp < timestamp('2026-01-01T00:00:00Z')", {}, False),
        ("share > 0.25 || tokens > 5", {}, True),
        ("model.matches('^(a+)+$')", {"model": "a" * 40 + "b"}, False),
        ("size(model) > 3 ? tokens > 0 : false", {"model": "long-one"}, True),
    ],
)
async def test_a_condition_reads_the_events_fields(when, fields, vetoes):
    event = Ask(timestamp=datetime(2026, 6, 1, tzinfo=UTC), **fields)
    assert await says(when, event) == ("no" if vetoes else "ok")


async def test_the_first_rule_that_is_true_gives_the_reason_the_signal_and_the_advice():
    policy = rules(
        Rule(name="never", when="false", reason="never"),
        Rule(
            name="big",
            when="tokens > limit",
            reason="{tokens:,} tokens are above {limit}",
            signal="fallback",
            advice={"model": "small"},
        ),
        Rule(name="any", when="true", reason="{tenant}, {user.name}, {metadata.plan}, {{braces}}"),
        on_veto="skip",
        advice={"why": "rules"},
    )
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        decision = await bus.check(Ask(tokens=9000))
        assert (decision.policy, decision.reason) == ("rules", "9,000 tokens are above 8000")
        assert (decision.signal, decision.advice) == ("fallback", {"model": "small"})
        assert decision.verdicts[0].detail == "rule 'big'"
        decision = await bus.check(Ask(user=User(name="kim")))
        assert decision.reason == "acme, kim, ?, {braces}"
        assert (decision.signal, decision.advice) == ("skip", {"why": "rules"})


async def test_a_value_in_a_reason_is_one_line_and_short():
    policy = rules({"when": "true", "reason": "<{model}>"})
    verdict = await policy.evaluate(Ask(model="a\nb\x1b[31m" + "c" * 200))
    assert verdict.reason == "<a b [31m" + "c" * 72 + "...>"


async def test_a_veto_by_a_rule_has_cost_nothing():
    policy = rules({"when": "tokens > limit"})
    async with EventBus.from_url("memory://", policies=[rate(on=Ask, limit=1), policy]) as bus:
        assert not await bus.check(Ask(tokens=9000))
        permit = await bus.admit(Ask())
        await bus.settle(permit, Outcome.SUCCESS)


# ---- what has no answer


@pytest.mark.parametrize(
    ("when", "fields", "why"),
    [
        ("tokens > limit", {"tokens": None}, "values of kinds"),
        ("!(tokens > limit)", {"tokens": None}, "values of kinds"),
        ("tokens > '5'", {}, "values of kinds"),
        ("metadata.plan == 'free'", {}, "there is no 'plan'"),
        ("metadata.plan != 'free'", {}, "there is no 'plan'"),
        ("metadata.plan.name == 'free'", {"metadata": {"plan": None}}, "values of kinds"),
        ("user.age < 18", {}, "values of kinds"),
        ("tags[3] == 'a'", {}, "IndexError"),
        ("tokens / 0 > 1", {}, "ZeroDivisionError"),
        ("tokens + 9223372036854775807 > 1", {}, "OverflowError"),
        ("tokens", {}, "gives int, and not true or false"),
        ("model", {}, "gives str"),
        ("null", {}, "gives NoneType"),
    ],
)
async def test_what_cannot_be_decided_is_a_veto_with_a_reason_and_no_exception(when, fields, why):
    verdict = await rules({"when": when}).evaluate(Ask(**fields))
    assert (verdict.allowed, verdict.reason) == (False, "undecidable")
    detail = verdict.detail or ""
    assert detail.startswith("rule 'rule-0': ")
    assert why in detail


async def test_an_event_without_the_field_is_vetoed_and_the_field_is_named():
    policy = rules({"when": "tokens > limit"}, on="rules_unseen:*")
    document = {
        "specversion": "1.0",
        "id": "1",
        "source": "/elsewhere",
        "type": "rules_unseen:thing",
        "data": {"tokens": 9000},
    }
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        decision = await bus.check(Event.from_cloudevent(document))
        assert (decision.allowed, decision.reason) == (False, "undecidable")
        assert decision.verdicts[0].detail == "rule 'rule-0': the event has no tokens"


async def test_what_is_not_needed_may_be_missing():
    event = Ask(tokens=None)
    assert await says("model == 'm2' && tokens > limit", event) == "ok"
    assert await says("model == 'm1' || tokens > limit", event) == "no"


async def test_in_shadow_an_undecidable_event_passes_and_is_reported():
    policy = rules({"when": "tokens > limit"}, mode="shadow")
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        decision = await bus.check(Ask(tokens=None))
        assert decision
        assert decision.verdicts[0].reason == "undecidable"
        assert not decision.verdicts[0].enforced


async def test_a_number_beyond_64_bits_is_no_smaller_one():
    assert await says("tokens > limit", Ask(tokens=2**70)) != "ok"


async def test_an_expression_over_long_text_takes_no_long():
    began = time.perf_counter()
    assert (
        await says("model.matches('(a*)*$') && model.matches('(x+x+)+y')", Ask(model="x" * 10**5))
        == "ok"
    )
    assert time.perf_counter() - began < 2


# ---- declared


@pytest.mark.parametrize(
    ("when", "told", "column"),
    [
        ("tokens >", "mismatched input 'end'", 9),
        ("tokens > limit andd true", "mismatched input 'andd'", 16),
        ("tokens = 5", "token recognition error", 8),
        ("(tokens > 5", "missing ')'", 12),
        ("tokens > 8000 && tokns < 5", "Ask has no field 'tokns'; there are ", 18),
        ("model == 'tokns' && tokns > 1", "Ask has no field 'tokns'", 21),
        ("tokens > 1 && exec('x')", "no function 'exec'; there are ", 15),
        ("user.name == x.name", "Ask has no field 'x'", 14),
        ("tokens > 1 || model.matches('(a')", "'(a' is nothing that matches takes: ", 29),
        ("timestamp > timestamp('today')", "'today' is nothing that timestamp takes: ", 23),
        ("duration('5 minutes') > duration('1m')", "'5 minutes' is nothing", 10),
        ("tags.exists(t, t == q)", "Ask has no field 'q'", 21),
    ],
)
def test_a_mistake_is_refused_where_it_is_declared_and_its_column_pointed_at(when, told, column):
    text = refused(when=when)
    assert text.startswith("RulePolicy 'rules': rule 'rule-0': when, column ")
    assert told in text
    first, source, arrow = text.split("\n")
    assert f"column {column}:" in first
    assert source == f"    {when}"
    assert arrow.index("^") - 4 == column - 1


def test_in_several_lines_the_line_is_named():
    text = refused(when="tokens > 5 &&\n  tokns < 9")
    assert "when, line 2, column 3: Ask has no field 'tokns'" in text
    assert text.split("\n")[1:] == ["      tokns < 9", "      ^"]
    text = refused(when="tokens > 5 &&\n  model ==")
    assert "when, line 2, column " in text
    assert text.split("\n")[1] == "      model =="


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reason": "{tokns} are many"}, "reason: Ask has no field 'tokns'"),
        ({"reason": "{tokens.__class__.__mro__}"}, None),
        ({"reason": "{tokens[0]}"}, "is no field such as {tokens}"),
        ({"reason": "{}"}, "is no field such as {tokens}"),
        ({"reason": "{tokens!r}"}, "is no field such as {tokens}"),
        ({"reason": "a { b"}, "write {{ for a brace"),
        ({"when": "tokens > 1 " + "&& true " * 1000}, "expected at most 4000"),
        ({"signal": "proceed"}, "signal"),
        ({"whem": "true"}, "rules"),
    ],
)
async def test_a_reason_reaches_only_plain_values(fields, told):
    if told is not None:
        assert told in refused(**fields)
        return
    verdict = await rules({"when": "true", **fields}).evaluate(Ask())
    assert verdict.reason == "?", "there is no such value, and no object to reach into"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rules": []}, "rules=(): expected at least one"),
        ({"constants": {"tokens": 1}}, "constants='tokens': Ask has such a field"),
        (
            {"rules": [{"name": "a", "when": "true", "reason": "r"}] * 2},
            "rules='a': two rules have this name",
        ),
        ({"on_outage": "local"}, "on_outage='local'"),
        ({"limits": 1}, "limits: no such field"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_by_name(fields, told):
    with pytest.raises(ConfigError) as caught:
        rules({"when": "true"}, **fields)
    assert told in str(caught.value)


def test_deeply_nested_conditions_are_refused_or_taken_and_never_end_the_process():
    program = (
        "from stanchion import ConfigError\n"
        "from stanchion.policies.conditions import Values, compiled\n"
        "for depth in (20, 200, 1900):\n"
        "    try: compiled('x', '(' * depth + 'true' + ')' * depth).holds(Values({}))\n"
        "    except ConfigError as error: assert len(str(error)) < 500, str(error)\n"
        "    compiled('x', '!' * depth + 'true').holds(Values({}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]


def test_the_package_of_another_maker_under_the_same_name_is_told_apart(monkeypatch):
    monkeypatch.delattr(cel, "compile")
    assert "uninstall it, then pip install" in refused()


def test_a_missing_package_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cel", None)
    assert 'pip install "stanchion[rules]"' in refused()
