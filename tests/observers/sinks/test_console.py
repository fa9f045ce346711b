"""Events as lines for people, on a terminal (a real one, of the kernel) and on a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys

import pytest

from stanchion import ConfigError, Event
from stanchion.events import PipelineFailed, ToolCalled, UnknownEvent
from stanchion.observers import ObserverManager
from stanchion.observers.sinks.console import ConsoleSink, line
from tests.observers.contract import Counterpart, check_contract


class Note(Event, type="console:note"):
    text: str
    count: int = 0
    tags: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def rest(text):
    """A line after its time and type."""
    return text.split(" ", 2)[2]


async def sent(sink, *events):
    async with ObserverManager() as manager:
        name = manager.register(sink)
        for event in events:
            manager.notify(event)
        assert await manager.drain()
        assert manager.stats()[name].delivered == len(events)


async def test_every_whole_event_arrives_as_json():
    stream = io.StringIO()

    async def read_back():
        return [json.loads(text) for text in stream.getvalue().splitlines()]

    await check_contract(Counterpart(ConsoleSink(stream, style="json"), read_back))


async def test_an_event_is_one_line_that_begins_with_its_time_and_type():
    stream = io.StringIO()
    event = ToolCalled(tool="find", run_id="r-1", node="n", arguments={"q": "x y"}, attempt=2)
    await sent(ConsoleSink(stream), event)
    (text,) = stream.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z tool:called ", text)
    assert rest(text) == 'run_id=r-1 node=n tool=find arguments={"q":"x y"} attempt=2'


async def test_standard_error_is_where_it_writes_by_default(capsys):
    await sent(ConsoleSink(), Note(text="here"))
    out, err = capsys.readouterr()
    assert (out, rest(err)) == ("", "text=here count=0\n")


@pytest.mark.parametrize(
    "text",
    ["two\nlines", "\x1b[2J\x1b]0;owned\x07", "a\u2028b", "\u202eevil", "\x9b31m", "\r\x00\x7f"],
)
def test_nothing_in_a_value_reaches_the_terminal(text):
    for event in (Note(text=text), Note(text="x", metadata={text: text}), Note(text="ok " + text)):
        shown = line(event)
        assert shown.isprintable(), shown
        assert len(shown.splitlines()) == 1


def test_a_type_of_somebody_else_is_escaped_too():
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "com.example.\u202ething"}
    event = Event.from_cloudevent({**document, "data": {"a": 1}})
    assert isinstance(event, UnknownEvent)
    assert line(event).endswith(" com.example.\\u202ething a=1")


def test_a_long_value_is_cut_and_a_text_with_spaces_is_quoted():
    assert rest(line(Note(text="x" * 500))) == f"text={'x' * 200}... count=0"
    assert rest(line(Note(text="x y", tags=("a",)))) == 'text="x y" count=0 tags=["a"]'
    assert rest(line(Note(text="a=b"))) == 'text="a=b" count=0'


@pytest.mark.parametrize(
    ("environment", "on_terminal", "on_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
async def test_colour_is_for_terminals(environment, on_terminal, on_pipe, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    out, into = os.pipe()
    for (reader, writer), colour in (((ours, theirs), on_terminal), ((out, into), on_pipe)):
        with os.fdopen(writer, "w") as stream:
            await sent(ConsoleSink(stream), PipelineFailed(pipeline="p", error="boom"))
            shown = os.read(reader, 1000).decode()
        os.close(reader)
        assert ("\x1b[31mpipeline:failed\x1b[0m" in shown) is colour
        assert ("\x1b" in shown) is colour


async def test_colour_can_be_asked_for_or_not():
    for colour in (True, False):
        stream = io.StringIO()
        await sent(ConsoleSink(stream, colour=colour), Note(text="x"))
        assert ("\x1b[36mconsole:note" in stream.getvalue()) is colour


async def test_a_stream_that_takes_only_ascii_gets_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    await sent(ConsoleSink(stream), Note(text="Überblick"))
    assert b"\\xdcberblick" in raw.getvalue()


async def test_what_nobody_reads_any_more_is_not_delivered():
    out, into = os.pipe()
    os.close(out)
    with os.fdopen(into, "w") as stream:
        with pytest.raises(BrokenPipeError):
            ConsoleSink(stream).handle_batch([Note(text="x")])
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_stream_that_is_replaced_is_followed(monkeypatch):
    sink, stream = ConsoleSink("stdout"), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    sink.handle_batch([Note(text="x")])
    assert rest(stream.getvalue()) == "text=x count=0\n"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"stream": "stdin"}, "stream="),
        ({"stream": 3}, "stream="),
        ({"colour": "yes"}, "colour="),
        ({"style": "xml"}, "style="),
        ({"on": 3}, "on="),
    ],
)
def test_an_argument_that_cannot_work_is_refused(arguments, field):
    with pytest.raises(ConfigError, match=re.escape(field)):
        ConsoleSink(**arguments)
