"""`stanchion halt`, `halts` and `resume`, and what a running worker makes of them."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from stanchion import EventBus
from stanchion.cli import halting, main
from stanchion.policies.kill_switch import KillSwitch
from tests.busses import Call
from tests.waiting import eventually

WHO = ("--who", "alice", "--why", "runaway costs")


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.delenv("STANCHION_URL", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stanchion", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, " ".join(captured.err.split())

    return run


def test_one_command_stops_a_running_worker_and_another_lets_it_go_on(run, valkey):
    async def scenario():
        async with EventBus.from_url(valkey.url, policies=[KillSwitch(name="stop")]) as bus:
            call = Call(tenant="acme")
            assert await bus.check(call)
            halted = await asyncio.to_thread(
                run, "halt", valkey.url, "--on", "busses:*", "--by", "tenant=acme", *WHO
            )

            async def stopped():
                return (await bus.check(call)).reason == "halted"

            await eventually(stopped, 1.0)
            assert await bus.check(Call(tenant="other"))
            listed = await asyncio.to_thread(run, "halts", valkey.url, "--json")
            resumed = await asyncio.to_thread(run, "resume", valkey.url)
            await eventually(lambda: bus.check(call), 1.0)
            return halted, listed, resumed

    halted, listed, resumed = asyncio.run(scenario())
    name = "busses:* tenant=acme"
    assert halted == (0, f"{name} is halted in namespace default until it is resumed\n", "")
    (one,) = json.loads(listed[1])
    assert (one["on"], one["by"], one["who"]) == ("busses:*", {"tenant": "acme"}, "alice")
    assert (one["why"], one["until"]) == ("runaway costs", None)
    assert resumed == (0, "all that was halted (1) goes on in default\n", "")


def test_what_is_halted_is_listed_for_people(run, valkey):
    status, _, told = run("halts", valkey.url)
    assert (status, "nothing is halted" in told) == (0, True)
    assert run("halt", valkey.url, "--on", "llm:*", "--for", "1h", *WHO)[0] == 0
    assert "(it was already)" in run("halt", valkey.url, "--on", "llm:*", *WHO)[1]
    status, out, _ = run("halts", valkey.url)
    assert status == 0
    for word in ("llm:*", "alice", "runaway costs"):
        assert word in out
    status, _, told = run("resume", valkey.url, "--on", "tool:*")
    assert (status, "tool:* was halted" in told) == (1, True)
    status, out, _ = run("resume", valkey.url, "--on", "llm:*")
    assert (status, out) == (0, "llm:* goes on in default\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("halt", "--on", "nonsense", *WHO), "nonsense"),
        (("halt", "--on", "llm:*", "--by", "tenant", *WHO), "expected a field and its value"),
        (("halt", "--on", "llm:*", "--for", "soon", *WHO), "soon"),
        (("halt", "--on", "llm:*", "--who", "", "--why", "x"), "who"),
        (("halt", "--on", "llm:*"), "--who"),
        (("resume", "--by", "tenant=acme"), "--on"),
        (("halts", "memory://"), "memory"),
    ],
)
def test_a_mistake_is_told_by_name(run, words, told):
    status, _, text = run(*words)
    assert status == 2
    assert told in text


@pytest.mark.parametrize("command", [("halt", "--on", "llm:*", *WHO), ("resume",), ("halts",)])
def test_a_server_that_is_away_is_told_as_such(run, valkey, monkeypatch, command):
    monkeypatch.setattr(halting, "_DEADLINE", 0.3)
    verb, *options = command
    valkey.pause()
    status, out, text = run(verb, valkey.url, *options)
    assert (status, out) == (1, "")
    assert "not known" in text or "cannot read" in text
