"""Key names: readable, on one hash slot, and safe with any text of a user's."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanchion import ConfigError
from stanchion.store.keys import Keyspace, Kind, check_name, escape, subject_of, values_of

SAFE = re.compile(r"[A-Za-z0-9._@+=%~-]+")
LONGEST = 140

NASTY = [
    "a}{b:\n\0",
    "{",
    "}",
    ":",
    "*",
    "?[a]",
    "\\",
    " ",
    "\r\n",
    "\x7f",
    "%",
    "%41",
    "~",
    "",
    "A",
    "é",
    "\ud800",
    "\udcff",
    "日本語",
    "\u202e",
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "x" * 1_000_000,
]
BYTES = st.text(st.characters(exclude_categories=())) | st.sampled_from(NASTY)


@pytest.mark.parametrize("value", NASTY, ids=lambda value: f"{value[:12]!a}{len(value)}")
def test_no_text_of_a_user_reaches_a_key_unescaped(value):
    assert SAFE.fullmatch(escape(value))
    assert len(escape(value)) <= LONGEST


@given(BYTES)
def test_any_text_makes_a_safe_and_bounded_part(value):
    assert SAFE.fullmatch(escape(value))
    assert len(escape(value)) <= LONGEST


def test_texts_that_differ_make_parts_that_differ():
    parts = {escape(value) for value in NASTY}
    assert len(parts) == len(NASTY)


@given(BYTES, BYTES)
def test_two_texts_share_a_part_only_if_they_are_the_same_text_to_a_reader(one, other):
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (escape(one) == escape(other)) is same


def test_long_texts_that_differ_at_the_very_end_are_told_apart():
    long = "x" * 1_000_000
    assert escape(long + "a") != escape(long + "b")
    assert escape(long).startswith("x" * 40)


def test_composed_and_decomposed_accents_are_one_tenant():
    assert escape(unicodedata.normalize("NFD", "Zoë")) == escape(
        unicodedata.normalize("NFC", "Zoë")
    )


SUBJECTS = [
    (),
    (None,),
    ("",),
    ("~",),
    ("%",),
    ("-",),
    ("a", None),
    (None, "a"),
    ("a:b",),
    ("a", "b"),
    ("None",),
    ("a%3Ab",),
]


def test_values_that_differ_make_subjects_that_differ():
    # `()` is left out: the number of values is fixed by the policy's declaration.
    subjects = [subject_of(values) for values in SUBJECTS[1:]]
    assert len(set(subjects)) == len(subjects)


@pytest.mark.parametrize("values", SUBJECTS, ids=repr)
def test_a_subject_tells_the_values_that_it_was_made_of(values):
    assert values_of(subject_of(values)) == values


@given(st.lists(st.none() | st.text(max_size=20), min_size=1, max_size=4))
def test_a_subject_is_one_part_of_a_key_for_each_value(values):
    assert subject_of(values).count(":") == len(values) - 1


def test_a_private_subject_shows_nothing_of_its_values():
    subject = subject_of(["someone@example.org"], private=True)
    assert re.fullmatch(r"[0-9a-f]{32}", subject)
    assert subject != subject_of(["somebody@example.org"], private=True)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_key_of_a_namespace_has_its_hash_tag(kind):
    keys = Keyspace("prod")
    names = [
        *keys.keys(kind, "calls", subject_of(["a}{b"])),
        *keys.line(kind, "calls", subject_of(["{x}"])),
        keys.overrides,
        keys.circuits,
    ]
    for name in names:
        assert name.startswith("stanchion:{prod}:")
        assert name.count("{") == name.count("}") == 1


def test_keys_are_for_people():
    keys = Keyspace("prod")
    subject = subject_of(["acme", "m1"])
    assert keys.keys(Kind.GCRA, "calls", subject) == (
        "stanchion:{prod}:rate:calls:acme:m1",
        "stanchion:{prod}:rate.settled:calls:acme:m1",
    )
    assert keys.keys(Kind.QUOTA, "tokens", subject)[0] == "stanchion:{prod}:quota:tokens:acme:m1"
    assert keys.keys(Kind.CIRCUIT, "p", "-")[0] == "stanchion:{prod}:circuit:p:-"
    assert keys.keys(Kind.SLOTS, "s", "-") == (
        "stanchion:{prod}:slots:s:-",
        "stanchion:{prod}:slots.leases:s:-",
    )


def test_no_two_kinds_of_key_share_a_name():
    keys = Keyspace("n")
    by_family: dict[str, set[str]] = {}
    for kind in Kind:
        state, aux = keys.keys(kind, "p", "s")
        order, alive = keys.line(kind, "p", "s")
        assert len({state, aux, order, alive}) == 4
        by_family.setdefault(kind.family, set()).update((state, aux, order, alive))
    for one, other in itertools.combinations(by_family.values(), 2):
        assert not one & other


@pytest.mark.parametrize("value", ["", "a b", "a:b", "{a}", "a\n", "é", "x" * 65, "a/b"])
def test_a_name_that_cannot_be_part_of_a_key_is_refused(value):
    with pytest.raises(ConfigError) as caught:
        check_name("namespace", value)
    assert str(caught.value).startswith("namespace=")
    assert "expected 1 to 64 of letters" in str(caught.value)
    with pytest.raises(ConfigError, match=r"namespace="):
        Keyspace(value)


@pytest.mark.parametrize("value", ["a", "A-b_c.9", "x" * 64])
def test_a_plain_name_is_taken(value):
    assert check_name("namespace", value) == value


def test_a_kind_is_found_by_the_name_that_scripts_use():
    assert [Kind.named(kind.script_name) for kind in Kind] == list(Kind)
    with pytest.raises(ConfigError, match=r"kind='bucket': expected one of .*'gcra'"):
        Kind.named("bucket")
