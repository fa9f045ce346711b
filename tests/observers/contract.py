"""What every sink that carries whole events must do, whatever it writes to.

A sink's own test starts the counterpart and hands it over:

    counterpart = Counterpart(sink=KafkaSink(...), read_back=read_everything_so_far)
    await check_contract(counterpart)

`check_contract` registers the sink with an `ObserverManager` of its own, which starts and closes
it. `read_back` is called several times, also after the sink was closed, and gets every CloudEvents
document (a dict as `to_cloudevent` makes them) that the counterpart has received until then, in the
order in which it received them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from stanchion.events import (
    Event,
    LLMPromptSent,
    LLMResponseReceived,
    NodeCompleted,
    NodeFailed,
    PipelineStarted,
    PolicyVetoed,
    ToolCalled,
)
from stanchion.observers import AnyObserver, ObserverManager
from tests.waiting import eventually

SECRET = "what only the model may read 🔑"
REDACT = ("prompt", "metadata.api_key")
REDACTED = "[redacted]"
BIG = "0123456789abcdef" * 1250  # 20 kB


@dataclass(frozen=True)
class Counterpart:
    """A sink that is not started yet, and what arrives where it writes to."""

    sink: AnyObserver
    read_back: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
    #: Extension attributes that the sink adds to the envelope by design.
    adds: frozenset[str] = frozenset()


def contract_events() -> list[Event]:
    """Get a handful of events of several types and runs, new ones each time."""
    nested = {"deep": {"list": [1, 2.5, None, True, {"Ω": "≈"}], "empty": {}}, "n": -(2**53) + 1}
    return [
        PipelineStarted(pipeline="nightly/Überblick", run_id="run-1", waves=2, nodes=None),
        LLMPromptSent(
            model="m1",
            run_id="run-1",
            node="résumé 'α' \"β\"\n\t",
            tenant="acme",
            prompt=SECRET,
            metadata={"api_key": SECRET, "kept": "日本語 🚀", **nested},
        ),
        LLMPromptSent(model="m2", run_id="run-2", metadata={"auth": {"metadata": {"api_key": 7}}}),
        LLMResponseReceived(model="m1", duration=0.25, run_id="run-1", response=BIG, dollars=1e-6),
        ToolCalled(tool="search", run_id="run-2", arguments={"query": "x & y < z; DROP", **nested}),
        NodeFailed(node="n", run_id="run-2", error="", will_retry=True),
        PolicyVetoed(policy="calls", reason="limit", asked_type="llm:prompt", asked_id="1"),
        NodeCompleted(node="n", run_id="run-1", duration=1.0, result=["a", None, {"b": 0.1}]),
        NodeCompleted(node="n", run_id="run-2", duration=2.0, result=None),
    ]


def expected_document(event: Event) -> dict[str, Any]:
    """Get the document that has to arrive: the event's own, with the secrets covered."""
    document = deepcopy(event.to_cloudevent())
    data = document["data"]
    if data.get("prompt") is not None:
        data["prompt"] = REDACTED
    _cover(data.get("metadata", {}))
    return document


def _cover(metadata: dict[str, Any]) -> None:
    if "api_key" in metadata:
        metadata["api_key"] = REDACTED
    for value in metadata.values():
        if isinstance(value, dict) and isinstance(value.get("metadata"), dict):
            _cover(value["metadata"])


async def check_contract(counterpart: Counterpart, *, timeout: float = 15.0) -> None:
    """Send the events of the contract through a manager and hold what arrived against them."""
    events = contract_events()
    before = [event.to_cloudevent() for event in events]
    manager = ObserverManager(redact=REDACT)
    name = manager.register(counterpart.sink, on="*", timeout=timeout)
    async with manager:
        for event in events:
            manager.notify(event)
        drained = await manager.drain(timeout)
        assert drained, f"not everything was delivered: {manager.stats()[name]}"
    stats = manager.stats()[name]
    assert (stats.delivered, stats.failed, stats.dropped) == (len(events), 0, 0), stats
    # The caller's own events are untouched.
    assert [event.to_cloudevent() for event in events] == before

    expected = {event.id: expected_document(event) for event in events}

    received: list[dict[str, Any]] = []

    async def all_arrived() -> bool:
        received[:] = [dict(document) for document in await counterpart.read_back()]
        missing = expected.keys() - {document.get("id") for document in received}
        assert not missing, f"did not arrive: {[expected[one]['type'] for one in missing]}"
        return True

    await eventually(all_arrived, timeout, what="arrival of every event", interval=0.05)
    assert SECRET not in repr(received)
    for document in received:
        seen = {key: value for key, value in document.items() if key not in counterpart.adds}
        assert seen == expected[document["id"]]
    assert _order(received) == _order([expected[event.id] for event in events])


def _order(documents: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Get the ids of each run in the order of their first arrival."""
    runs: dict[str, list[str]] = defaultdict(list)
    for document in documents:
        run = document["data"].get("run_id")
        if run is not None and document["id"] not in runs[run]:
            runs[run].append(document["id"])
    return dict(runs)
