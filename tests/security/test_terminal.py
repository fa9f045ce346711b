"""What the command line prints of what users chose cannot act on the terminal that shows it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import EventBus, Outcome
from stanchion.cli import main
from stanchion.events import Event
from stanchion.observers.sinks.console import json_line, line
from stanchion.store.keys import escape
from tests.security.hostile import NAMESPACE, NASTY, Request, every_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import RealServer

    Run = Callable[..., tuple[int, str, str]]

EVIL = "\x1b]0;o\x07\x1b[2J\x9b3m\u202e[b]x[/b]$(a)\r\n\x00\x7f"
# What tables and colours are made of, and no more of it.
OURS = re.compile(r"\x1b\[[0-9;]*m")
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> None:
    assert not ACTS.findall(OURS.sub("", text)), ascii(text)
    assert "\x1b[2J" not in text


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process; gets its status, and what it wrote."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stanchion", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        harmless(captured.out)
        harmless(captured.err)
        code = end.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether standard output says that it is a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
    return request.param


async def use(url: str, *users: Any) -> None:
    """Use every kind of limit as these users, and break their circuits."""
    options: dict[str, Any] = {"namespace": NAMESPACE, "deadline": 10}
    async with EventBus.from_url(url, policies=every_kind(), **options) as bus:
        for user in users:
            decision = await bus.check(Request(user=user))
            if decision.permit is not None:
                await bus.settle(decision.permit, Outcome.FAILURE)


def test_ids_that_are_stored(run: Run, valkey: RealServer, seen: bool):
    asyncio.run(use(valkey.url, EVIL, *NASTY))
    at = ("--url", valkey.url, "--namespace", NAMESPACE)
    status, table, _ = run("inspect", *at)
    assert (status, "%1B%5D0" in table) == (0, True)
    status, out, _ = run("inspect", *at, "--json")
    states = json.loads(out)
    assert [state["by"] for state in states if state["by"] == [EVIL]]
    for key in [state["key"] for state in states if state["by"] == [EVIL]]:
        status, out, _ = run("inspect", *at, key)
        assert (status, key in out) == (0, True)
    key = f"stanchion:{{{NAMESPACE}}}:rate:rate:{escape('a b')}"
    assert run("override", *at[:2], key, "7")[0] == 0
    assert run("override", *at[:2], key, "--remove")[0] == 0


@pytest.mark.parametrize(
    "key",
    [
        f"stanchion:{{{NAMESPACE}}}:rate:rate:{EVIL}",
        f"stanchion:{{{NAMESPACE}}}:rate:rate:x\x1b[31m",
        f"stanchion:{{{NAMESPACE}}}:rate:rate:x{{y}}",
        "$(reboot)",
        "'; FLUSHALL; '",
    ],
    ids=ascii,
)
def test_keys_that_are_given(run: Run, valkey: RealServer, key: str):
    """Shell text and escape sequences are no keys, and are shown as what they are."""
    run("inspect", "--url", valkey.url, "--", key)
    status, _, err = run("override", "--url", valkey.url, "--", key, "7")
    assert status == 2
    assert "expected stanchion:{<namespace>}" in err
    assert not valkey.execute("DBSIZE")


def test_what_somebody_else_has_written(run: Run, valkey: RealServer, seen: bool):
    """Whoever may write to Redis may write anything, and is not to own the operator's terminal."""
    prefix = f"stanchion:{{{NAMESPACE}}}:"
    at = ("--url", valkey.url, "--namespace", NAMESPACE)
    with valkey.sync_client() as client:
        for family in ("rate", "quota", "slots", "circuit"):
            name = EVIL.encode("ascii", "ignore").decode()
            client.hset(f"{prefix}{family}:{name}:{name}", mapping={"v": "1", "spec": EVIL})
            client.hset(f"{prefix}{family}:{EVIL}:{EVIL}", mapping={"v": "1", "spec": EVIL})
            client.hset(f"{prefix}{family}:p:{EVIL}", mapping={EVIL: EVIL, "state": EVIL})
        client.set(f"{prefix}rate:p:text{EVIL}", EVIL)
        client.hset(f"{prefix}halts", mapping={EVIL: EVIL, "*": json.dumps({"why": EVIL})})
        # Not even text.
        client.hset(b"stanchion:{hostile}:rate:p:\xff\xfe", mapping={"v": "1"})
        for key in client.scan_iter(match="*"):
            client.expire(key, 60)
    for words in ((), ("--json",)):
        status, out, _ = run("inspect", *at, *words)
        assert (status, "\\u001b" in out) == (0, True)
        assert run("halts", valkey.url, *at[2:], *words)[0] == 0
    run("doctor", valkey.url, *at[2:])
    run("doctor", valkey.url, *at[2:], "--json")
    with valkey.sync_client() as client:
        client.delete(b"stanchion:{hostile}:rate:p:\xff\xfe")


def test_halts(run: Run, valkey: RealServer, seen: bool):
    """Whatever a tenant calls itself, it can be stopped, seen, and let go on again."""
    who = ("--who", "ops", "--why", "abuse")
    at = (valkey.url, "--namespace", NAMESPACE)
    for value in (EVIL.replace("\x00", ""), "a b=c", "x" * 30_000, "Zoe\u0308"):
        by = ("--on", "security:*", "--by", f"user={value}")
        status, out, err = run("halt", *at, *by, *who)
        assert (status, err) == (0, "")
        assert "is halted" in out
        status, out, _ = run("halts", *at, "--json")
        assert [one["by"] for one in json.loads(out)] == [{"user": value}]
        assert run("halts", *at)[0] == 0
        assert run("resume", *at, *by)[0] == 0
    status, _, err = run("halt", *at, "--on", "*", "--who", EVIL, "--why", "x")
    assert (status, "printable" in err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ("--namespace", EVIL),
        ("--policy", EVIL, "--url", "redis://localhost:1"),
        ("--url", f"redis://h/{EVIL}"),
        ("--url", "redis://\x1b[2Jlocal\x9b3m:1/0"),
        ("--url", "unix:///\x1b[2J/s.sock"),
    ],
    ids=ascii,
)
def test_mistakes_are_told_in_plain_letters(run: Run, words: tuple[str, ...]):
    status, _, err = run("inspect", *words)
    assert status in {1, 2}
    assert err.count("\n") == 1


@pytest.mark.parametrize("write", [line, lambda event: line(event, colour=True), json_line])
def test_events_as_tail_shows_them(write: Callable[[Event], str]):
    text = write(Request(pipeline=EVIL, node=EVIL, tenant=EVIL, user=EVIL, metadata={EVIL: [EVIL]}))
    assert "\n" not in text
    # Delete alone does nothing to a terminal, and is no control character to JSON.
    harmless(text.replace("\x7f", "") if write is json_line else text)
