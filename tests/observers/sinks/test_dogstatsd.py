"""DogStatsdSink: what arrives at a socket in the agent's place."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError, StanchionError
from stanchion.events import LLMPromptSent, PipelineFailed
from stanchion.observers import ObserverManager
from stanchion.observers.sinks.dogstatsd import DogStatsdSink
from tests.observers.sinks.runs import NOON, circuit, control_events, failed_run, quota, run_events

METRIC = re.compile(r"(?P<name>[\w.]+):(?P<value>[-\d.e+]+)\|(?P<kind>[a-z]+)(?:\|#(?P<tags>.*))?")
EVENT = re.compile(r"_e\{(\d+),(\d+)\}:(.*)", re.DOTALL)


@dataclass(frozen=True)
class Metric:
    name: str
    value: float
    kind: str
    tags: frozenset[str]


class Agent:
    """A socket that reads what DogStatsD clients send."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        self._socket.settimeout(5)
        self._lines: list[str] = []

    def read(self) -> list[str]:
        """Get every line so far: on this machine a datagram is there once it has been sent."""
        self._socket.setblocking(False)
        while True:
            try:
                self._lines += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self._lines

    def metrics(self, name: str) -> list[Metric]:
        found: list[Metric] = []
        for line in self.read():
            if line.startswith("_e"):
                continue
            match = METRIC.fullmatch(line)
            assert match is not None, line
            tags = frozenset((match["tags"] or "").split(","))
            found.append(Metric(match["name"], float(match["value"]), match["kind"], tags))
        return [metric for metric in found if metric.name == name]

    def one(self, name: str) -> Metric:
        (found,) = self.metrics(name)
        return found

    def events(self) -> list[tuple[str, str, str]]:
        """Get title, text and the rest of each event, cut by the lengths that it gives."""
        found: list[tuple[str, str, str]] = []
        for line in self.read():
            match = EVENT.fullmatch(line)
            if match is not None:
                title, text = int(match[1]), int(match[2])
                body = match[3].encode()
                rest = body[title + text + 1 :].decode()
                found.append(
                    (body[:title].decode(), body[title + 1 : title + 1 + text].decode(), rest)
                )
        return found


@contextmanager
def udp() -> Iterator[tuple[Agent, dict[str, Any]]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield Agent(bound), {"host": "127.0.0.1", "port": bound.getsockname()[1]}


@contextmanager
def unix() -> Iterator[tuple[Agent, dict[str, Any]]]:
    # Short, since it holds a socket.
    with tempfile.TemporaryDirectory(prefix="stanchion-test-") as folder:
        path = str(Path(folder, "dsd.sock"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
            bound.bind(path)
            yield Agent(bound), {"socket": path}


async def sent(agent: dict[str, Any], *events: Any, **settings: Any) -> None:
    sink = DogStatsdSink(**agent, **settings)
    await sink.handle_batch(events)
    await sink.close()


@pytest.mark.parametrize("transport", [udp, unix])
async def test_a_run_is_counted_and_timed(transport: Any):
    with transport() as (agent, where):
        await sent(where, *run_events("r1"))

        assert agent.one("stanchion.runs") == Metric(
            "stanchion.runs", 1, "c", frozenset({"pipeline:report", "outcome:completed"})
        )
        duration = agent.one("stanchion.llm.call.duration")
        assert (duration.value, duration.kind) == (2.5, "d")
        assert duration.tags == {"provider:acme", "model:m1", "outcome:completed"}
        tokens = {
            tag: metric.value
            for metric in agent.metrics("stanchion.llm.tokens")
            for tag in metric.tags
            if tag.startswith("token_type")
        }
        assert tokens == {"token_type:input": 100, "token_type:output": 150}
        assert agent.one("stanchion.llm.cost").value == 0.25
        assert "reason:limit" in agent.one("stanchion.vetoes").tags
        assert agent.events() == []


async def test_a_circuits_state_is_a_gauge():
    with udp() as (agent, where):
        await sent(where, circuit(CircuitState.HALF_OPEN))
        state = agent.one("stanchion.circuit.state")
        assert (state.value, state.kind) == (1, "g")
        assert state.tags == {"policy:provider", "subject:m1"}


async def test_what_matters_to_people_is_an_event():
    with udp() as (agent, where):
        await sent(where, *control_events(), *failed_run("r1"))
        found = {title: (text, rest) for title, text, rest in agent.events()}
    assert found.keys() == {
        "Circuit provider is open",
        "Quota tokens is at 80%",
        "Policy authz could not be asked",
        "Policy calls was changed",
        "Run of report failed",
    }
    text, rest = found["Circuit provider is open"]
    assert text == "m1: failure_rate"
    assert f"|d:{int(NOON.timestamp())}" in rest
    assert "|t:error" in rest
    assert "|k:circuit:opened provider m1" in rest
    assert "event_type:circuit:opened" in rest
    assert found["Quota tokens is at 80%"][0] == "acme: 800 of 1000"


async def test_a_circuit_that_closes_is_a_success():
    with udp() as (agent, where):
        await sent(where, circuit(CircuitState.CLOSED, previous=CircuitState.HALF_OPEN))
        ((title, _, rest),) = agent.events()
    assert title == "Circuit provider is closed"
    assert "|t:success" in rest


async def test_events_can_be_left_out():
    with udp() as (agent, where):
        await sent(where, quota(1.0), events=False)
        assert agent.metrics("stanchion.quota.thresholds")
        assert agent.events() == []


async def test_names_and_texts_cannot_break_the_protocol():
    hostile = "a|#b:c,d\n_e{1,1}:x|y\nstanchion.fake:1|c"
    with udp() as (agent, where):
        await sent(
            where,
            LLMPromptSent(model=hostile),
            PipelineFailed(pipeline=hostile, error=hostile * 1000),
            circuit(CircuitState.OPEN, hostile),
        )
        assert len(agent.events()) == 2
        for _, _, rest in agent.events():
            kinds = [part[0] for part in rest.removeprefix("|").split("|")]
            assert kinds == ["d", "k", "t", "#"], rest
        assert not agent.metrics("stanchion.fake")
        (tag,) = agent.one("stanchion.llm.prompts").tags
        assert re.fullmatch(r"model:[\w:./-]+", tag)


async def test_tags_of_the_caller_are_on_everything():
    with udp() as (agent, where):
        await sent(where, *failed_run("r1"), tags=["region:eu"])
        assert "region:eu" in agent.one("stanchion.runs").tags
        ((_, _, rest),) = agent.events()
        assert "region:eu" in rest


async def test_tags_are_bounded():
    events = [LLMPromptSent(model=f"m{number}") for number in range(10)]
    with udp() as (agent, where):
        await sent(where, *events, max_values=3)
        models = [tag for one in agent.metrics("stanchion.llm.prompts") for tag in one.tags]
        folded = agent.one("stanchion.labels.folded")
    assert sorted(set(models)) == ["model:m0", "model:m1", "model:m2", "model:other"]
    assert models.count("model:other") == 7
    assert (folded.value, folded.tags) == (7, {"label:model"})


async def test_a_datagram_holds_many_metrics_and_stays_small():
    sizes: list[int] = []
    with udp() as (_, where), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        await sent({**where, "port": bound.getsockname()[1]}, *run_events("r1") * 5, events=False)
        bound.setblocking(False)
        while True:
            try:
                sizes.append(len(bound.recv(65536)))
            except BlockingIOError:
                break
    assert 1 < len(sizes) < 20
    assert max(sizes) <= 1432


async def test_nothing_but_what_was_asked_for_is_sent():
    with udp() as (agent, where):
        await sent(where, *run_events("r1"))
        assert not [line for line in agent.read() if "datadog.dogstatsd" in line]


async def test_what_the_system_does_not_take_counts_as_failed():
    with unix() as (agent, where):
        sink = DogStatsdSink(**where)
        await sink.handle_batch(run_events("r1"))
        assert agent.read()
        os.unlink(where["socket"])  # noqa: PTH108 - within a coroutine, pathlib is refused
        await sink.close()
        async with ObserverManager() as manager:
            name = manager.register(sink)
            manager.notify(LLMPromptSent(model="m"))
            assert await manager.drain(5)
            stats = manager.stats()[name]
    # Not sent again: part of it may have been counted.
    assert (stats.failed, stats.retried) == (1, 0)


async def test_a_socket_that_is_not_there_is_an_error_that_tells_how_much_was_lost():
    sink = DogStatsdSink(socket="/no/such/socket")
    with pytest.raises(StanchionError, match="datagrams could not be sent"):
        await sink.handle_batch(run_events("r1"))
    await sink.close()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": 0}, "port=0"),
        ({"port": "8125"}, "port='8125'"),
        ({"socket": "/s", "host": "h"}, "socket='/s'"),
        ({"tags": "a:b"}, "tags='a:b'"),
        ({"tags": [1]}, r"tags=\[1\]"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_values": 0}, "max_values=0"),
        ({"max_series": 0}, "max_series=0"),
        ({"on": 7}, "on=7"),
    ],
)
def test_an_argument_that_cannot_work_is_named(settings: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        DogStatsdSink(**settings)


def test_without_the_client_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['datadog'] = None\n"
        "from stanchion.observers.sinks.dogstatsd import DogStatsdSink\n"
        "try: DogStatsdSink()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigError")
    assert "pip install 'stanchion[datadog]'" in done.stdout
