"""Permits as text: whole, or refused."""

from __future__ import annotations

import base64
import copy
import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanchion import ConfigError, Permit
from stanchion.permit import Hold

AT = 1_700_000_000_000_000
RATE = Hold("calls", "gcra", "acme:m1", 1, (("calls", 1, 1),), (AT, 0, 1))
TOKENS = Hold("tokens", "quota", "acme", 900, (("tokens", 1, 900),), (AT,), AT + 600_000_000)
SLOT = Hold("slots", "slots", "-", 1, (("slots", 1, 1),), (AT,), AT + 30_000_000)
PERMIT = Permit(
    "abc-1",
    "prod",
    (RATE, TOKENS, SLOT),
    policies=("filter",),
    event={"type": "x:y", "data": {"tenant": "a}{b:\n\0é"}},
    admitted_us=AT,
)


def with_holds(*holds: Hold) -> Permit:
    return Permit("abc-2", "prod", holds, admitted_us=AT)


def forged(**changes: Any) -> str:
    """Get the text of a permit with some of its parts exchanged."""
    body = str(PERMIT).removeprefix("stp1.")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    document.update(changes)
    text = json.dumps(document).encode()
    return "stp1." + base64.urlsafe_b64encode(text).decode().rstrip("=")


def encoded(text: str) -> str:
    return "stp1." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_a_permit_travels_as_text():
    text = str(PERMIT)
    again = Permit.parse(text)
    assert again == PERMIT
    assert hash(again) == hash(PERMIT)
    assert str(again) == text
    assert again.holds == PERMIT.holds
    assert again.policies == ("filter",)
    assert again.event == PERMIT.event
    assert (again.id, again.namespace, again.admitted_us) == ("abc-1", "prod", AT)


def test_the_text_fits_headers_queues_and_urls():
    assert str(PERMIT).isascii()
    assert not set(str(PERMIT)) - set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    )


def test_a_permit_is_pickled_and_copied_like_any_value():
    assert pickle.loads(pickle.dumps(PERMIT)) == PERMIT
    assert copy.deepcopy(PERMIT) == PERMIT


def test_charges_stay_with_the_object():
    permit = with_holds(TOKENS)
    permit.charge(tokens=3)
    permit.charge(tokens=4)
    assert permit.charges == {"tokens": 7}
    assert Permit.parse(str(permit)).charges == {}


def test_a_permit_from_before_there_were_shards_is_one_of_none():
    row = ["calls", "gcra", "-", 1, [["calls", 1, 1]], [AT, 0, 1], 0, False, 0]
    (hold,) = Permit.parse(forged(h=[row])).holds
    assert (hold.policy, hold.shard) == ("calls", 0)
    (hold,) = Permit.parse(forged(h=[[*row, 7]])).holds
    assert hold.shard == 7


def test_times_are_aware_and_the_first_lease_to_end_counts():
    assert PERMIT.admitted_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert PERMIT.expires_at == datetime(2023, 11, 14, 22, 13, 50, tzinfo=UTC)
    assert with_holds(RATE).expires_at is None
    assert Permit("i", "n").admitted_at is None


@pytest.mark.parametrize(
    ("costs", "text"),
    [
        ({"token": 1}, r"cost='token': this permit counts \['tokens'\]"),
        ({"tokens": -1}, r"cost tokens=-1: expected a whole number from 0"),
        ({"tokens": 1.0}, r"cost tokens=1.0: expected a whole number"),
        ({"tokens": True}, r"cost tokens=True: expected a whole number"),
        ({"tokens": 2**53}, r"cost tokens=9007199254740992: expected"),
        ({"tokens": "1"}, r"cost tokens='1': expected"),
    ],
)
def test_a_charge_that_cannot_be_counted_is_refused_and_nothing_is_noted(costs, text):
    permit = with_holds(TOKENS)
    with pytest.raises(ConfigError, match=text):
        permit.charge(**costs)
    assert permit.charges == {}


def test_a_permit_of_no_policy_counts_nothing():
    with pytest.raises(ConfigError, match="this permit counts nothing"):
        Permit("i", "n").charge(tokens=1)


def test_custom_policies_may_count_what_they_like():
    permit = Permit("i", "n", policies=("filter",))
    permit.charge(words=12)
    assert permit.charges == {"words": 12}


NO_PERMITS = {
    "nothing": None,
    "bytes": b"stp1.",
    "empty": "",
    "only the mark": "stp1.",
    "not base64": "stp1.!!!!",
    "not ascii": "stp1.é",
    "another version": "stp2." + str(PERMIT).removeprefix("stp1."),
    "more behind": str(PERMIT) + "A",
    "a newline behind": str(PERMIT) + "\n",
    "a space before": " " + str(PERMIT),
    "null": encoded("null"),
    "a list": encoded("[]"),
    "an empty object": encoded("{}"),
    "very deep": encoded("[" * 100_000),
    "infinity": encoded('{"i":"","n":"","h":[],"p":[],"e":null,"a":1e999}'),
    "not a number": encoded('{"i":"","n":"","h":[],"p":[],"e":null,"a":NaN}'),
}


@pytest.mark.parametrize("text", NO_PERMITS.values(), ids=NO_PERMITS)
def test_what_is_no_permit_is_refused(text):
    with pytest.raises(ConfigError, match=r"^permit=.*expected the text that str\(permit\) gave"):
        Permit.parse(text)


def test_a_permit_cut_off_anywhere_is_refused():
    text = str(PERMIT)
    for length in range(len(text)):
        with pytest.raises(ConfigError):
            Permit.parse(text[:length])


GARBAGE: list[dict[str, Any]] = [
    {"h": None},
    {"h": [1]},
    {"h": [[]]},
    {"h": [["calls", "gcra", "-", 1, [], []]]},
    {"h": [["calls", "gcra", "-", "one", [], [], 0, False]]},
    {"h": [["calls", "gcra", "-", 1, [["a"]], [], 0, False]]},
    {"h": [["calls", "gcra", "-", 1, [], ["x"], 0, False]]},
    {"h": [["calls", "gcra", "-", 1e999, [], [], 0, False]]},
    {"h": [["calls", "gcra", "-", 1, [], [], 0, False, 0, -1]]},
    {"h": [["calls", "gcra", "-", 1, [], [], 0, False, 0, 1, 1]]},
    {"h": "abc"},
    {"p": 1},
    {"p": "filter"},
    {"a": "soon"},
    {"a": None},
    {"a": 10**400},
    {"a": -1},
    {"e": "an event"},
    {"e": [1, 2]},
    {"i": None},
    {"i": ["a"]},
    {"n": None},
]


@pytest.mark.parametrize("changes", GARBAGE, ids=lambda changes: repr(changes)[:60])
def test_a_forged_text_of_the_wrong_shape_is_refused(changes):
    with pytest.raises(ConfigError, match=r"^permit="):
        Permit.parse(forged(**changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from("inhpea"), JSON))
def test_whatever_is_in_the_text_it_is_a_whole_permit_or_a_clear_error(changes):
    try:
        permit = Permit.parse(forged(**changes))
    except ConfigError:
        return
    # Nothing that is taken may fail to be used later.
    assert Permit.parse(str(permit)) == permit
    assert permit.admitted_at is None or permit.admitted_at.tzinfo is UTC
    _ = permit.expires_at, repr(permit), hash(permit)
