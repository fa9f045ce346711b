"""`stanchion inspect` against a real server, beside what redis-cli gets from the same script."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys

import pytest

from stanchion import EventBus
from stanchion.cli import main
from stanchion.store.scripts import lua_directory
from tests.busses import Call, breaker, quota, slots
from tests.servers import missing

KEY = "stanchion:{default}:quota:tokens:acme"


@pytest.fixture
def run(monkeypatch, capsys, valkey):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stanchion", "inspect", "--url", valkey.url, *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


@pytest.fixture
def used(valkey):
    """A server on which three policies have been asked."""

    async def use():
        policies = [quota(by=("tenant",)), slots(by=("model",)), breaker(by=("model",))]
        async with EventBus.from_url(valkey.url, policies=policies) as bus:
            for tenant in ("acme", 'a}{b:\n"\0'):
                assert await bus.check(Call(tenant=tenant, tokens=600))
            assert not await bus.check(Call(tenant="acme", tokens=600))

    asyncio.run(use())


def test_every_key_has_a_line(run, used):
    status, out, err = run()
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["policy", "kind", "subject", "used", "state", "next", "ttl"]
    rows = {(row[0], row[2]): row for row in lines[2:]}
    assert rows["tokens", "acme"][3:6] == ["600", "of", "1,000"]
    assert rows["slots", "m1"][3:7] == ["2", "of", "2", "full"]
    assert rows["provider", "m1"][3:5] == ["-", "closed"]
    assert ("tokens", "a%7D%7Bb%3A%0A%22%00") in rows
    assert len(rows) == 4
    assert "\x1b" not in out


def test_one_policy_can_be_asked_for(run, used):
    _, out, _ = run("--policy", "slots")
    assert [line.split()[0] for line in out.splitlines() if line.strip()][2:] == ["slots"]


def test_json_has_every_line_of_every_key(run, used):
    status, out, _ = run("--json")
    states = {state["key"]: state for state in json.loads(out)}
    acme = states[KEY]
    assert status == 0
    assert len(states) == 4
    assert (acme["used"], acme["limit"], acme["by"]) == (600, 1000, ["acme"])
    assert acme["values"]["declared.limit"] == "1000"
    assert acme["ttl"] > 0


def test_what_has_not_been_used_is_nothing(run):
    status, out, err = run("--policy", "tokens")
    assert (status, out) == (0, "")
    assert "no state of policy 'tokens' in namespace 'default'" in err
    assert run("--json") == (0, "[]\n", "")


def test_one_key_shows_the_lines_that_redis_cli_gets(run, used, valkey):
    status, out, err = run(KEY)
    assert (status, err) == (0, "")
    shown = [tuple(line.split(None, 1)) for line in out.splitlines()]
    cli = shutil.which("redis-cli")
    if cli is None:
        missing("redis-cli is not installed (Debian: apt-get install redis-tools)")
    got = subprocess.run(
        [
            *(cli, "-h", valkey.host, "-p", str(valkey.port)),
            *("--eval", str(lua_directory() / "inspect.lua"), KEY),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [tuple(line.split(None, 1)) for line in got.splitlines()]
    assert [name for name, *_ in shown] == [name for name, *_ in lines]

    def standing(lines):
        moving = ("_in", "ttl")
        return [line for line in lines if not line[0].endswith(moving) and line[0][:4] != "aux."]

    assert standing(shown) == standing(lines)


def test_one_key_can_be_had_as_json(run, used):
    _, out, _ = run(KEY, "--json")
    values = json.loads(out)
    assert (values["key"], values["policy"], values["held"]) == (KEY, "tokens", "600")


def test_a_key_that_holds_nothing_says_so(run):
    status, out, _ = run("stanchion:{default}:quota:tokens:nobody")
    assert status == 0
    assert "absent" in out


def test_what_is_no_key_is_a_mistake(run):
    status, _, err = run("tokens")
    assert status == 2
    assert "stanchion: not a state key" in err


def test_a_key_of_another_type_is_told_and_does_not_hide_the_others(run, used, valkey):
    valkey.execute("SET", "stanchion:{default}:rate:calls:-", "x", "EX", "60")
    _, out, _ = run()
    assert "unreadable" in out
    assert "tokens" in out
