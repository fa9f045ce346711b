"""Identifiers as an attacker may choose them, and what the library says of which are the same."""

from __future__ import annotations

import re
import unicodedata
from enum import Enum, StrEnum
from typing import Any

from hypothesis import strategies as st
from redis.crc import key_slot

from stanchion import CircuitBreaker, Concurrency, Event, Quota, RateLimit

NAMESPACE = "hostile"
# Names, and a subject of one or two fields of at most 100 characters each.
LONGEST_KEY = 160
# What there is once in a namespace, and what there is for each subject.
INDEX = re.compile(rf"stanchion:\{{{NAMESPACE}\}}:[a-z]+")
KEY = re.compile(rf"stanchion:\{{{NAMESPACE}\}}:[a-z]+(?:\.[a-z]+)?:[a-z]+:[!-~]+")
PART = re.compile(r"[A-Za-z0-9._@+=%~:-]+")


class Plan(StrEnum):
    FREE = "free"
    ODD = "{}:\n"


class Number(Enum):
    ONE = 1


class Request(Event, type="security:request"):
    """What is asked about; the fields take anything."""

    user: object = None
    other: object = None
    tokens: object = 1


NASTY: tuple[Any, ...] = (
    *("", "-", "~", "%", "%2D", "%25", "%7E", " ", "{", "}", "{}", "}{", "{x}", "a{hostile}b"),
    *(":", "a:b", "::", "*", "?", "[a]", "\x00", "\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\x9b2J"),
    *("\ud800", "\udfff", "\ud83e\udd80", "🦀", "\u202egnp.exe", "\u200f", "\ufeff", "\u2028"),
    *("Zoë", "Zoe\u0308", "ﬁ", "fi", "Å", "\u212b", "А", "A", "ａ", "a", "ß", "ss", "İ", "i̇"),
    *("a" * 100, "a" * 101, "a" * 102, "é" * 17, "🦀" * 50, "\x00" * 40, "x" * 40 + "~" + "0" * 32),
    *(
        None,
        "None",
        True,
        "True",
        False,
        0,
        "0",
        -1,
        2**64,
        10**4000,
        Plan.FREE,
        Plan.ODD,
        Number.ONE,
    ),
    *("$(reboot)", "'; DROP TABLE users; --", "../../etc/passwd", "%s%n", "%00", "%zz", "1"),
)
TINY = st.text("a:~%-{}\n\x00e\u0301é", max_size=4)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=120)
FORMS = st.builds(
    unicodedata.normalize, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), st.text(max_size=20)
)
LONG = st.builds(
    lambda text, count, end: text * count + end,
    st.text(min_size=1, max_size=3),
    st.integers(30, 400),
    st.sampled_from(["", "a", "b", "~", ":"]),
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NASTY), TINY, ANY_TEXT, FORMS, LONG, st.integers(), st.booleans(), st.none()
)


def same(value: Any) -> str | None:
    """Get what is equal for values that are one subject: their text in NFC, None for none."""
    if isinstance(value, Enum):
        value = value.value
    return None if value is None else unicodedata.normalize("NFC", str(value))


def every_kind(by: str | tuple[str, ...] = "user", **fields: Any) -> tuple[Any, ...]:
    """Make a policy of each family: at most one admission of a subject."""
    common: dict[str, Any] = {"on": Request, "by": by, **fields}
    return (
        RateLimit(name="rate", limit=1, per="1h", **common),
        Quota(name="quota", limit=1000, per="1d", cost="tokens", **common),
        Concurrency(name="slots", limit=5, lease="30s", **common),
        CircuitBreaker(name="breaker", consecutive_failures=1, open_for="1h", **common),
    )


def check_keys(keys: list[bytes]) -> list[str]:
    """Get the keys of subjects; all are short, printable, and on the namespace's own slot."""
    slots = {key_slot(key) for key in keys}
    assert slots <= {key_slot(NAMESPACE.encode())}, keys
    names = [key.decode("ascii") for key in keys]
    for name in names:
        assert len(name) <= LONGEST_KEY
        assert KEY.fullmatch(name) or INDEX.fullmatch(name), name
        assert name.count("{") == name.count("}") == 1
    return [name for name in names if KEY.fullmatch(name)]
