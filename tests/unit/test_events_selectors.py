from __future__ import annotations

from typing import Any

import pytest

from stanchion.errors import ConfigError
from stanchion.events import (
    CircuitChanged,
    CircuitOpened,
    ControlEvent,
    Event,
    LLMPromptSent,
    NodeStarted,
    PolicyChanged,
    UnknownEvent,
    check_selector,
    matches,
)


class Call(Event, type="test_selectors:call"):
    pass


class SpecialCall(Call, type="test_selectors:special_call"):
    pass


PROMPT = LLMPromptSent(model="m1")


@pytest.mark.parametrize(
    ("selector", "event", "expected"),
    [
        (LLMPromptSent, LLMPromptSent, True),
        (LLMPromptSent, PROMPT, True),
        (LLMPromptSent, NodeStarted, False),
        (Event, LLMPromptSent, True),
        (Call, SpecialCall, True),
        (SpecialCall, Call, False),
        (ControlEvent, CircuitOpened, True),
        (CircuitChanged, CircuitOpened, True),
        (CircuitChanged, PolicyChanged, False),
        ("llm:prompt", PROMPT, True),
        ("llm:prompt", LLMPromptSent, True),
        ("llm:response", PROMPT, False),
        ("llm:promp", PROMPT, False),
        ("llm:*", PROMPT, True),
        ("llm:*", NodeStarted, False),
        ("*", NodeStarted, True),
        ("*:started", NodeStarted, True),
        ("*:started", PROMPT, False),
        ("node:[st]?arted", NodeStarted, True),
        # The type of a subclass is its own: text does not know of inheritance.
        ("test_selectors:call", SpecialCall, False),
        ((NodeStarted, "llm:*"), PROMPT, True),
        ((NodeStarted, "tool:*"), PROMPT, False),
    ],
)
def test_matches(selector: Any, event: Any, expected: object):
    check_selector(selector)
    assert matches(selector, event) is expected


def test_an_unknown_event_is_selected_by_the_type_of_its_document():
    document = {"specversion": "1.0", "id": "1", "source": "/x", "type": "com.example.made"}
    event = Event.from_cloudevent(document)
    for selector in ("com.example.made", "com.example.*", "*", Event, UnknownEvent):
        check_selector(selector)
        assert matches(selector, event), selector
    assert not matches("com.example.sold", event)


def test_a_class_selects_its_own_redefinition_and_what_derives_from_it():
    def define() -> tuple[type[Event], type[Event]]:
        class Again(Event, type="test_selectors:again"):
            pass

        class Below(Again, type="test_selectors:below"):
            pass

        return Again, Below

    old, old_below = define()
    new, new_below = define()
    for selector in (old, new):
        for event in (old, new, old_below, new_below):
            assert matches(selector, event), (selector is old, event)
    assert not matches(old_below, new)
    assert not matches(old, PROMPT)


@pytest.mark.parametrize(
    "selector",
    [
        "",
        "llm",
        "LLM:call",
        "llm:call ",
        "llm:call\n",
        "llm call:*",
        "llm:[ab",
        "Llm:*",
        "llm:call:more",
        "ein.beispiel\n",
        (),
        ["llm:*"],
        ("llm:*", 3),
        (("llm:*",),),
        None,
        42,
        str,
        PROMPT,
        b"llm:*",
    ],
)
def test_what_cannot_select_is_refused_where_it_is_declared(selector: Any):
    with pytest.raises(ConfigError, match=r"on=.*expected an event class, a type such as"):
        check_selector(selector)


def test_the_error_names_the_field():
    with pytest.raises(ConfigError, match=r"^RateLimit\.on='llm': expected"):
        check_selector("llm", field="RateLimit.on")
