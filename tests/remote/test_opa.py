"""`OpaPolicy` and `RegoPolicy`: the same rules, asked over HTTP and decided in the process."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stanchion import ConfigError, Reason
from stanchion.events import PolicyVetoed
from stanchion.observers import Recorder
from stanchion.policies.remote import RegoPolicy
from tests.remote import faulty as deeds
from tests.remote.asking import CALL, Call, opa_policy
from tests.remote.opa_shell import OpaShell
from tests.waiting import eventually

RULES = """
package test

import data.budget

default flag := false
flag if input.tokens <= 100

small if input.tokens <= 100

ruling := {"allow": true} if input.tokens <= 100
ruling := {"allow": false, "reason": sprintf("%d tokens", [input.tokens]), "retry_after": 1.5} if {
    input.tokens > 100
}

several := {"allow": false, "reasons": ["one", "two", "one"]}

deny contains sprintf("%d tokens are over %d", [input.tokens, budget.most]) if {
    input.tokens > budget.most
}
deny contains {"msg": sprintf("%s is not open to %s", [input.model, input.tenant])} if {
    input.model == "large"
    input.tenant != "acme"
}

typed if input.event_type == "remote:call"
both := 1 if true
both := 2 if input.tokens > 100
number := 7
text := "yes"
nothing := null
empty := {}
strange := {"allow": "yes"}
"""

SMALL, BIG = Call(tenant="acme", tokens=10), Call(tenant="other", model="large", tokens=1000)


@pytest.fixture(params=["rest", "in-process"])
def declared(request, opa: OpaShell):
    """Declares a policy for a rule, in one way and the other."""

    def declare(path: str, rego: str = RULES, **fields: Any) -> Any:
        data = fields.pop("data", {"budget": {"most": 100}})
        if request.param == "rest":
            opa.load(rego, **data)
            return opa_policy(opa.url, path, timeout=2, **fields)
        given = {"name": "opa", "on": Call, "rego": rego, "path": path, "data": data}
        return RegoPolicy(**{**given, "timeout": 2, **fields})

    return declare


# ---- what a rule may say

ANSWERS = {
    "true": ("test/flag", SMALL, None),
    "false": ("test/flag", BIG, "denied"),
    "undefined": ("test/small", BIG, "undefined"),
    "allow-object": ("test/ruling", SMALL, None),
    "deny-object": ("test/ruling", BIG, "1000 tokens"),
    "reasons": ("test/several", SMALL, "one; two"),
    "no-denials": ("test/deny", SMALL, None),
    "denials": ("test/deny", BIG, None),
    "no-package": ("elsewhere/allow", SMALL, "undefined"),
    "number": ("test/number", SMALL, "undefined"),
    "text": ("test/text", SMALL, "undefined"),
    "null": ("test/nothing", SMALL, "undefined"),
    "empty-object": ("test/empty", SMALL, "undefined"),
    "strange-object": ("test/strange", SMALL, "undefined"),
    "event-type": ("test/typed", SMALL, None),
}


@pytest.mark.parametrize(("path", "event", "reason"), ANSWERS.values(), ids=list(ANSWERS))
async def test_a_rule_says_yes_or_no_and_anything_else_is_a_veto(
    in_memory, declared, path, event, reason
):
    bus = await in_memory(declared(path))
    decision = await bus.check(event)
    if path == "test/deny" and event is BIG:
        reasons = {"1000 tokens are over 100", "large is not open to other"}
        assert set(str(decision.reason).split("; ")) == reasons
        return
    assert decision.reason == reason
    assert decision.allowed == (reason is None)
    if reason == "undefined":
        kinds = {"small": "undefined", "allow": "undefined", "number": "a number", "text": "a text"}
        kinds |= {"nothing": "null"}
        kind = kinds.get(path.partition("/")[2], "an object without allow")
        assert f"data.{path.replace('/', '.')} is {kind}" in str(decision.vetoes[0].detail)


async def test_undefined_is_a_veto_whatever_an_outage_would_be(in_memory, declared):
    bus = await in_memory(declared("test/nowhere", on_outage="admit"))
    decision = await bus.check(CALL)
    assert (decision.allowed, decision.reason) == (False, "undefined")


async def test_a_denial_says_when_to_come_back(in_memory, declared):
    bus = await in_memory(declared("test.ruling"))
    assert (await bus.check(BIG)).retry_after == 1.5


async def test_two_values_for_one_rule_are_a_failure(in_memory, declared):
    bus = await in_memory(declared("test/both"))
    assert (await bus.check(BIG)).reason == Reason.POLICY_FAILED


async def test_the_input_is_the_event_or_what_is_made_of_it(in_memory, declared):
    rego = 'package test\n\nallow if input == {"who": "acme", "much": 10, "id": "x1"}'
    template = {"who": "{tenant}", "much": "{tokens}", "id": "{id}"}
    bus = await in_memory(declared("test/allow", rego, data={}, input=template))
    assert await bus.check(Call(id="x1", tenant="acme", tokens=10))
    assert not await bus.check(Call(id="x2", tenant="acme", tokens=10))


async def test_text_of_all_kinds_arrives_as_it_is(in_memory, declared):
    text = 'naïve "quotes" \\ \u2028 \U0001f600 \x00'
    rego = "package test\n\nallow if input.tenant == data.expected"
    bus = await in_memory(declared("test/allow", rego, data={"expected": text}))
    assert await bus.check(Call(tenant=text))


@pytest.mark.parametrize("path", ["", "a b", "../x", "test//allow", "1x", "test/allow?x=1"])
def test_a_path_that_is_none_is_told(declared, path):
    with pytest.raises(ConfigError, match=r"path=.*expected the path of a rule"):
        declared(path)


def test_a_field_that_the_event_has_not_is_told(declared):
    with pytest.raises(ConfigError, match=r"input\.much='tokns': Call has no field 'tokns'"):
        declared("test/flag", input={"much": "{tokns}"})


# ---- over HTTP


async def test_a_verdict_has_the_id_under_which_opa_logged_the_event(in_memory, opa):
    opa.load(RULES, budget={"most": 100})
    recorder = Recorder(on=PolicyVetoed)
    bus = await in_memory(opa_policy(opa.url, "test/flag"), observers=[recorder])
    decision = await bus.check(BIG)
    (logged,) = opa.log
    (verdict,) = decision.verdicts
    assert verdict.decision_id == logged["decision_id"]
    assert logged["input"]["id"] == BIG.id
    told = await recorder.wait_for(PolicyVetoed)
    assert told.verdicts[0].decision_id == logged["decision_id"]
    opa.logs_decisions = False
    assert (await bus.check(BIG)).verdicts[0].decision_id is None


async def test_rules_that_change_are_in_force_with_the_next_question(in_memory, opa):
    bus = await in_memory(opa_policy(opa.url))
    assert (await bus.check(CALL)).reason == "undefined"
    opa.load("package test\n\nallow := true")
    assert await bus.check(CALL)


@pytest.mark.parametrize("given", ["token", "function", "variable"])
async def test_a_token_is_sent_and_one_that_is_wrong_fails(in_memory, monkeypatch, given):
    monkeypatch.setenv("OPA_TOKEN", "t0p-secret")
    ways = {
        "token": {"bearer": "t0p-secret"},
        "function": {"bearer": lambda: "t0p-secret"},
        "variable": {"bearer_env": "OPA_TOKEN"},
    }
    opa = OpaShell(token="t0p-secret")
    await opa.start()
    try:
        opa.load("package test\n\nallow := true")
        bus = await in_memory(opa_policy(opa.url, **ways[given]))
        assert await bus.check(CALL)
        wrong = await in_memory(opa_policy(opa.url, bearer="wr0ng"))
        (veto,) = (await wrong.check(CALL)).vetoes
        assert veto.detail == "answered 401: unauthorized"
    finally:
        await opa.stop()


async def test_an_answer_without_an_object_is_none(in_memory, faulty):
    faulty.deed = deeds.answer([True])
    bus = await in_memory(opa_policy(faulty.url))
    assert (await bus.check(CALL)).vetoes[0].detail == "answered with no object"
    assert faulty.requests[0].path == "/v1/data/test/allow"


# ---- in the process


def test_rego_that_does_not_compile_is_told_with_its_place():
    with pytest.raises(ConfigError, match=r"RegoPolicy 'r': rego: .*rego\[0\]:3"):
        RegoPolicy(name="r", on=Call, rego="package test\n\nallow if inptu.tokens", path="test")


def test_rego_that_names_what_is_not_there_is_told():
    with pytest.raises(ConfigError, match="rego: "):
        RegoPolicy(name="r", on=Call, rego=("package a", "package a\n\nx := y"), path="a")


async def test_modules_are_texts_files_and_folders(in_memory, tmp_path: Path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "one.rego").write_text("package test\n\nallow if small")
    (tmp_path / "two.rego").write_text("package test\n\nsmall if input.tokens < data.most")
    files = (tmp_path / "rules", tmp_path / "two.rego")
    rego = ("package other\n\nx := 1", "package more")
    policy = RegoPolicy(
        name="r", on=Call, rego=rego, files=files, path="test/allow", data={"most": 100}
    )
    bus = await in_memory(policy)
    assert await bus.check(SMALL)
    assert not await bus.check(BIG)
    with pytest.raises(ConfigError, match="cannot be read"):
        RegoPolicy(name="r", on=Call, files=tmp_path / "none.rego", path="test/allow")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"a folder without \*\.rego files"):
        RegoPolicy(name="r", on=Call, files=tmp_path / "empty", path="test/allow")
    with pytest.raises(ConfigError, match="expected a module, or files"):
        RegoPolicy(name="r", on=Call, path="test/allow")


LONG = """
package test

allow if {
    some x in numbers.range(1, input.tokens)
    some y in numbers.range(1, input.tokens)
    x * y == 1
    x + y == input.tokens + 1
}

allow if input.tokens == 1
"""


async def test_an_evaluation_that_takes_too_long_holds_up_nobody(in_memory):
    policy = RegoPolicy(name="r", on=Call, rego=LONG, path="test/allow", timeout=0.1)
    bus = await in_memory(policy)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    began = time.monotonic()
    decision = await bus.check(Call(tokens=400))
    took = time.monotonic() - began
    ticking.cancel()
    assert decision.vetoes[0].detail == "no answer within 0.1 s"
    assert took < 2
    assert ticks > 1, "the loop went on"
    await eventually(lambda: idle(bus), 20, what="the evaluation to end")


async def idle(bus):
    return await bus.check(Call(tokens=1))


async def test_its_thread_ends_with_the_bus(in_memory):
    def threads():
        return [one for one in threading.enumerate() if one.name == "stanchion-rego"]

    policy = RegoPolicy(name="r", on=Call, rego="package t\n\nallow := true", path="t/allow")
    bus = await in_memory(policy)
    await bus.check(CALL)
    assert len(threads()) == 1
    await bus.close()
    await eventually(lambda: not threads(), what="the thread to end")


async def test_what_a_rule_prints_goes_to_the_log(in_memory, caplog, capfd):
    rego = "package t\n\nallow if {\n\tprint(input.tenant)\n\ttrue\n}"
    caplog.set_level("DEBUG", "stanchion.policies.rego")
    bus = await in_memory(RegoPolicy(name="r", on=Call, rego=rego, path="t/allow", timeout=2))
    await bus.check(CALL)
    assert "acme" in caplog.text
    assert "acme" not in capfd.readouterr().err


async def test_many_at_once_are_all_answered(in_memory, declared):
    bus = await in_memory(declared("test/flag"), deadline=5)
    decisions = await asyncio.gather(*(bus.check(Call(tokens=n * 10)) for n in range(50)))
    assert [decision.allowed for decision in decisions] == [n * 10 <= 100 for n in range(50)]
