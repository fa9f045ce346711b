"""`stanchion tail`: what it shows, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
import time
from functools import partial

import pytest

from stanchion import CircuitState, ConfigError, Event, EventBus
from stanchion.cli.tailing import Filter, start_of
from stanchion.events import PolicyVetoed, ToolCalled
from stanchion.observers import RedisPublisher
from stanchion.observers.sinks.redis_stream import RedisStreamSink
from tests.busses import breaker
from tests.observers.commands import running
from tests.waiting import eventually_sync

READY = "Ctrl-C to end"


class Call(Event, type="tail:call"):
    model: str = "m1"
    tokens: int = 1
    cached: bool = False


async def published(url, *events):
    """Publish events, from a process that is not the one that shows them."""
    async with EventBus.from_url(url, observers=[RedisPublisher(on="*")]) as bus:
        for event in events:
            bus.notify(event)
        assert await bus.observers.drain()


async def appended(url, *events):
    async with EventBus.from_url(url, observers=[RedisStreamSink()]) as bus:
        for event in events:
            bus.notify(event)
        assert await bus.observers.drain()


# ---- what it shows


async def test_events_are_shown_as_they_happen_and_only_those_that_were_asked_for(valkey, tmp_path):
    wanted = ("--on", "tail:*", "--on", "policy:vetoed", "--where", "tenant=acme", "--count", "2")
    with running(tmp_path, "tail", valkey.url, *wanted) as command:
        command.says(READY)
        await published(
            valkey.url,
            Call(tenant="other"),
            ToolCalled(tool="t", tenant="acme"),
            Call(tenant="acme", tokens=7),
            PolicyVetoed(policy="p", reason="limit", asked_type="x:y", asked_id="1", tenant="acme"),
        )
        assert command.ended() == 0
    first, second = command.lines
    assert re.fullmatch(r"\S+Z tail:call tenant=acme model=m1 tokens=7 cached=false", first)
    assert " policy:vetoed tenant=acme policy=p reason=limit " in second


async def test_what_the_shared_state_tells_is_shown_although_no_worker_publishes(valkey, tmp_path):
    async with EventBus.from_url(valkey.url, policies=[breaker()]) as bus:
        await bus.force("provider", CircuitState.OPEN)
        with running(tmp_path, "tail", valkey.url, "--json", "--count", "1") as command:
            command.says(READY)
            # What was so before is no news.
            await bus.force("provider", CircuitState.CLOSED)
            assert command.ended() == 0
    (document,) = [json.loads(line) for line in command.lines]
    assert document["type"] == "circuit:closed"


async def test_a_stream_is_shown_from_its_beginning_whole(valkey, tmp_path):
    events = [Call(tokens=number, metadata={"text": "ä\u2028\x1b[2J"}) for number in range(3)]
    await appended(valkey.url, *events)
    wanted = ("--from", "start", "--json", "--count", "3")
    with running(tmp_path, "tail", valkey.url, *wanted) as command:
        assert command.ended() == 0
    assert command.out.isascii()
    assert [Event.from_cloudevent(line) for line in command.lines] == events


async def test_a_stream_is_followed_from_now(valkey, tmp_path):
    await appended(valkey.url, Call(tokens=1))
    with running(tmp_path, "tail", valkey.url, "--stream", "--count", "1") as command:
        command.says(READY)
        await appended(valkey.url, Call(tokens=2))
        assert command.ended() == 0
    assert "tokens=2" in command.out


async def test_a_lost_connection_is_said_and_made_up_for(valkey, tmp_path):
    with running(tmp_path, "tail", valkey.url) as command:
        command.says(READY)
        valkey.execute("CLIENT", "KILL", "TYPE", "pubsub")
        command.says("published meanwhile is not here")
        await published(valkey.url, Call())
        eventually_sync(lambda: "tail:call" in command.out)
        command.signalled(signal.SIGTERM)


async def test_a_terminal_gets_colour_and_a_pipe_does_not(valkey, tmp_path):
    ours, theirs = pty.openpty()
    wanted = ("tail", valkey.url, "--count", "1")
    with running(tmp_path, *wanted, stdout=theirs) as one, running(tmp_path, *wanted) as other:
        os.close(theirs)
        for command in (one, other):
            command.says(READY)
        await published(valkey.url, Call())
        assert (one.ended(), other.ended()) == (0, 0)
    assert b"\x1b[36mtail:call\x1b[0m" in os.read(ours, 1000)
    os.close(ours)
    assert "\x1b" not in other.out


# ---- how it ends


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_ends_without_a_word_when_it_is_told_to(valkey, tmp_path, number, status):
    with running(tmp_path, "tail", valkey.url) as command:
        command.says(READY)
        assert command.signalled(number) == status
    assert len(command.err.splitlines()) == 1


def test_it_ends_while_the_server_is_away(valkey, tmp_path):
    with running(tmp_path, "tail", valkey.url, "--stream") as command:
        command.says(READY)
        valkey.kill()
        command.says("trying again")
        assert command.signalled(signal.SIGINT) == 130


def is_full(pipe):
    """Whether a second event does not fit into a pipe of one page any more."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0] > 2000


async def test_it_ends_when_nobody_reads_its_output_any_more(valkey, tmp_path):
    await appended(valkey.url, *(Call(metadata={"text": "x" * 2000}) for _ in range(200)))
    for what in ("idle", "writing"):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        # More than the pipe holds, so that it is in the middle of a write.
        begin = ("--from", "start", "--json") if what == "writing" else ()
        with running(tmp_path, "tail", valkey.url, *begin, stdout=writer) as command:
            os.close(writer)
            command.says(READY)
            if what == "writing":
                eventually_sync(partial(is_full, reader))
            os.close(reader)
            assert command.ended() == 0
        assert len(command.err.splitlines()) == 1


def test_a_server_that_is_not_there_is_said(valkey, tmp_path):
    valkey.kill()
    for how in ((), ("--stream",)):
        with running(tmp_path, "tail", valkey.url, *how) as command:
            assert command.ended() == 1
        assert command.err.startswith(f"stanchion: cannot read {valkey.url}: ")
        assert len(command.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("memory://",), "memory:// is inside one process"),
        (("redis://x", "--on", "a b"), "on='a b'"),
        (("redis://x", "--where", "tenant"), "where='tenant': expected field=value"),
        (("redis://x", "--from", "yesterday"), "from='yesterday': expected"),
        (("redis://x", "--namespace", "{}"), "namespace='{}'"),
    ],
)
def test_a_mistake_is_said_in_a_line(arguments, words, monkeypatch, capsys):
    from stanchion.cli.app import run

    monkeypatch.setattr("sys.argv", ["stanchion", "tail", *arguments])
    assert run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


# ---- its words


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (["tenant=acme"], True),
        (["tenant=ac*"], True),
        (["tenant=a?me", "tokens=5"], True),
        (["tokens=50"], False),
        (["cached=false"], True),
        (["metadata.a.b=x=y"], True),
        (["metadata.a=*"], True),
        (["metadata.a.b.c=1"], False),
        (["type=tail:call"], True),
        (["id=*"], True),
        (["run_id=null"], True),
        (["tenant=[a]cme"], False),
        (["model=[m]*"], False),
        (["nothing=x"], False),
    ],
)
def test_where_looks_at_the_fields_and_then_at_the_envelope(where, shown):
    event = Call(tenant="acme", tokens=5, metadata={"a": {"b": "x=y"}})
    assert Filter.of((), where)(event) is shown


def test_from_takes_ids_words_and_durations():
    assert [start_of(word) for word in ("0", "start", "$", "now")] == ["0", "0", "$", "$"]
    assert [start_of(word) for word in ("123", "123-4")] == ["123", "123-4"]
    ago = int(start_of("10m").partition("-")[0]) / 1000
    assert time.time() - ago == pytest.approx(600, abs=5)
    with pytest.raises(ConfigError, match="from='soon'"):
        start_of("soon")
