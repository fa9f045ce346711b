"""Secrets are covered before any observer sees an event, and the caller's event stays as it is."""

from __future__ import annotations

import asyncio
import json
import threading
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer, model_validator

from stanchion import EventBus
from stanchion.decisions import Verdict
from stanchion.errors import ConfigError
from stanchion.events import (
    Event,
    LLMPromptSent,
    NodeStarted,
    PipelineStarted,
    PolicyVetoed,
    ToolCalled,
    UnknownEvent,
)
from stanchion.observers import ObserverManager, Recorder
from tests.observers.contract import SECRET
from tests.observers.doubles import Batching

COVERED = "[redacted]"


class Colour(Enum):
    RED = "red"


class Card(BaseModel):
    number: str
    owner: str


class Typed(Event, type="redaction:typed"):
    """A field of each kind, all of them named alike."""

    s_text: str = "x"
    s_maybe: int | None = 5
    s_number: int = 7
    s_ratio: float = 0.5
    s_flag: bool = True
    s_list: tuple[str, ...] = ("a", "b")
    s_any: Any = None
    card: Card | None = None
    inner: Event | None = None


class Strict(Event, type="redaction:strict"):
    colour: Colour = Colour.RED
    token: str = "t"


class Together(Event, type="redaction:together"):
    """Its fields have to agree."""

    secret: str
    again: str

    @model_validator(mode="after")
    def _agree(self):
        if self.secret != self.again:
            raise ValueError("they differ")
        return self


class Broken(Event, type="redaction:broken"):
    secret: str = SECRET

    @field_serializer("secret")
    def _write(self, value):
        raise RuntimeError(value)


async def seen(event: Event, *redact: str) -> Event:
    """Get the event as an observer sees it."""
    recorder = Recorder()
    async with ObserverManager(redact=redact) as manager:
        manager.register(recorder)
        manager.notify(event)
        return await recorder.wait_for("*")


def data(event: Event) -> Any:
    return event.to_cloudevent()["data"]


def prompt(**fields: Any) -> LLMPromptSent:
    return LLMPromptSent(model="m", prompt=SECRET, **fields)


# --------------------------------------------------------------------------------------- which


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("prompt", {"prompt"}),
        ("PROMPT", {"prompt"}),
        ("pro*t", {"prompt"}),
        ("api_key", {"metadata.api_key", "metadata.auth.API_KEY", "metadata.list.api_key"}),
        ("metadata.api_key", {"metadata.api_key"}),
        ("auth.api_key", {"metadata.auth.API_KEY"}),
        ("metadata.*.api_key", {"metadata.auth.API_KEY", "metadata.list.api_key"}),
        ("*_key", {"metadata.api_key", "metadata.auth.API_KEY", "metadata.list.api_key"}),
        ("metadata.dotted.name", {"metadata.dotted.name"}),
        ("rompt", set()),
        ("key", set()),
        ("metadata.api", set()),
    ],
)
async def test_fields_are_found_by_name_at_any_depth(name, covered):
    metadata = {
        "api_key": "1",
        "auth": {"API_KEY": "2", "user": "u"},
        "list": [{"api_key": "3"}, 5, None],
        "dotted.name": "4",
        "none_key": None,
    }
    event = prompt(metadata=metadata)
    found = data(await seen(event, name))
    flat = {
        "prompt": found["prompt"],
        "metadata.api_key": found["metadata"]["api_key"],
        "metadata.auth.API_KEY": found["metadata"]["auth"]["API_KEY"],
        "metadata.list.api_key": found["metadata"]["list"][0]["api_key"],
        "metadata.dotted.name": found["metadata"]["dotted.name"],
    }
    assert {place for place, value in flat.items() if value == COVERED} == covered
    # What is not there is not covered either, and nothing else has changed.
    assert found["metadata"]["none_key"] is None
    assert found["metadata"]["auth"]["user"] == "u"
    assert event.metadata == metadata
    assert event.prompt == SECRET


async def test_an_event_without_any_of_them_is_handed_on_as_it_is():
    for event in (
        NodeStarted(node="n", metadata={"a": [1, {"b": 2}]}),
        LLMPromptSent(model="m"),
        ToolCalled(tool="t", arguments={"text": "prompt"}),
    ):
        assert await seen(event, "prompt", "metadata.api_key") is event


async def test_nothing_is_covered_unless_asked_for():
    event = prompt()
    assert await seen(event) is event


@pytest.mark.parametrize("names", ["prompt", 5, None, ("",), (5,), ("a..b",), ("metadata.",)])
def test_what_names_no_field_is_refused(names):
    with pytest.raises(ConfigError, match="redact="):
        ObserverManager(redact=names)


# ---------------------------------------------------------------------------------------- typed


async def test_a_value_whose_type_takes_no_text_becomes_none_or_empty():
    event = Typed(s_any={"deep": 1}, metadata={"s_number": 5})
    found = await seen(event, "s_*")
    assert isinstance(found, Typed)
    assert found.s_text == COVERED
    assert found.s_maybe is None
    assert (found.s_number, found.s_ratio, found.s_flag, found.s_list) == (0, 0.0, False, ())
    assert found.s_any == COVERED
    assert found.metadata == {"s_number": COVERED}
    # It is an event like any other: it can be written and read back.
    assert Event.from_cloudevent(found.to_cloudevent()) == found
    # The second time it is known what fits.
    assert await seen(event, "s_*") == found


async def test_models_verdicts_and_events_in_fields_are_searched_too():
    event = Typed(
        card=Card(number="4111", owner="o"), inner=prompt(run_id="r", metadata={"number": 1})
    )
    found = await seen(event, "number", "inner.data.prompt")
    assert isinstance(found, Typed)
    assert found.card == Card(number=COVERED, owner="o")
    assert isinstance(found.inner, LLMPromptSent)
    assert (found.inner.prompt, found.inner.metadata) == (COVERED, {"number": COVERED})
    verdict = Verdict(policy="p", allowed=False, reason=SECRET)
    vetoed = PolicyVetoed(
        policy="p", reason="r", asked_type="a:b", asked_id="1", verdicts=(verdict,)
    )
    told = await seen(vetoed, "verdicts.reason")
    assert isinstance(told, PolicyVetoed)
    assert (told.reason, told.verdicts[0].reason) == ("r", COVERED)


@pytest.mark.parametrize("event", [Strict(), Together(secret=SECRET, again=SECRET)])
async def test_where_nothing_fits_the_type_the_document_is_what_is_left(event):
    found = await seen(event, "colour", "secret", "token")
    assert isinstance(found, UnknownEvent)
    assert found.event_type == event.event_type
    assert found.id == event.id
    document = event.to_cloudevent()
    document["data"].update(
        dict.fromkeys(("colour", "secret", "token") & data(event).keys(), COVERED)
    )
    assert found.to_cloudevent() == document


async def test_events_of_unknown_types_are_covered_too():
    document = {
        "specversion": "1.0",
        "id": "1",
        "source": "/x",
        "type": "their:thing",
        "data": {"prompt": SECRET, "list": [{"prompt": SECRET}], "id": "kept"},
        "secretext": "abc",
    }
    found = await seen(Event.from_cloudevent(document), "prompt", "secretext", "id")
    assert found.to_cloudevent() == {
        **document,
        "data": {"prompt": COVERED, "list": [{"prompt": COVERED}], "id": "kept"},
        "secretext": COVERED,
    }


async def test_what_an_event_is_known_by_stays_and_what_is_made_of_a_secret_goes():
    event = PipelineStarted(pipeline="for-acme", run_id="acme-1", node="n", tenant="acme")
    found = await seen(event, "id", "timestamp", "pipeline", "run_id", "tenant")
    document = found.to_cloudevent()
    assert (found.id, found.timestamp) == (event.id, event.timestamp)
    assert (document["type"], document["source"]) == ("pipeline:started", "/stanchion")
    assert document["data"]["tenant"] == COVERED
    assert "acme" not in json.dumps(document)


async def test_attributes_that_an_event_was_read_with_are_kept():
    document = {**prompt().to_cloudevent(), "partitionkey": "k", "source": "/elsewhere"}
    found = (await seen(Event.from_cloudevent(document), "prompt")).to_cloudevent()
    document["data"]["prompt"] = COVERED
    assert found == document


async def test_attributes_that_it_was_read_with_are_covered_by_name_too():
    document = {**NodeStarted(node="n").to_cloudevent(), "apitoken": SECRET}
    found = await seen(Event.from_cloudevent(document), "api*")
    assert isinstance(found, NodeStarted)
    assert found.to_cloudevent() == {**document, "apitoken": COVERED}


# ------------------------------------------------------------------------------------ every way


async def test_every_kind_of_observer_sees_the_same_covered_event():
    got: list[Event] = []

    class Batches(Batching):
        async def handle_batch(self, events):
            got.extend(events)

    class Retried:
        idempotent = True

        async def handle(self, event):
            got.append(event)
            if len([one for one in got if one is event]) < 2:
                raise ConnectionError

    async with ObserverManager(redact=("prompt",)) as manager:
        for observer in (Batches(), Retried(), got.append, got.append):
            manager.register(observer)
        manager.notify(prompt())
        assert await manager.drain()
    assert len(got) >= 4
    # Worked out once, for all of them.
    assert len({id(event) for event in got}) == 1
    assert SECRET not in repr(got)


async def test_it_happens_in_the_loop_and_not_in_the_time_of_who_notifies():
    threads: set[int] = set()

    class Telling(Event, type="redaction:telling"):
        secret: str = SECRET

        @field_serializer("secret")
        def _write(self, value):
            threads.add(threading.get_ident())
            return value

    async with ObserverManager(redact=("secret",)) as manager:
        manager.register(Recorder())
        await asyncio.to_thread(manager.notify, Telling())
        assert await manager.drain()
    assert threads == {threading.get_ident()}


async def test_an_event_that_cannot_be_covered_is_seen_by_nobody(caplog):
    recorder, batching = Recorder(), Batching()
    manager = ObserverManager(redact=("secret",))
    manager.register(recorder)
    manager.register(batching)
    for event in (ToolCalled(tool="a"), Broken(), ToolCalled(tool="b")):
        manager.notify(event)
    async with manager:
        assert await manager.drain()
        for stats in manager.stats().values():
            assert (stats.delivered, stats.failed, stats.received) == (2, 1, 3)
    assert [event.event_type for event in recorder.events] == ["tool:called"] * 2
    assert batching.batches == [["a", "b"]]
    assert "is not told of a redaction:broken, which cannot be redacted: " in caplog.text
    assert SECRET not in caplog.text


async def test_a_bus_and_its_configuration_take_the_names(tmp_path):
    file = tmp_path / "bus.yaml"
    file.write_text(
        "url: memory://\nredact: [prompt]\nobservers:\n  - factory: stanchion.observers:Recorder\n"
    )
    kept = Recorder()
    for bus in (
        EventBus.from_url("memory://", observers=[kept], redact=["prompt"]),
        EventBus.from_config(file),
    ):
        async with bus:
            bus.observers.register(kept, name="mine")
            bus.notify(prompt())
            found = await kept.wait_for(LLMPromptSent)
            assert found.prompt == COVERED
            kept.clear()


def test_a_configuration_that_names_no_fields_is_refused(tmp_path):
    file = tmp_path / "bus.yaml"
    for text, named in (("redact: prompt", "expected a list"), ("redact: [5]", "redact=5")):
        file.write_text(f"url: memory://\n{text}\n")
        with pytest.raises(ConfigError, match=named):
            EventBus.from_config(file)
