"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from stanchion import ConfigError
from stanchion.durations import micros, seconds

ACCEPTED = 'expected a timedelta, seconds, or text such as "250ms", "30s", "1m", "1h", "1d"'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1m", 60.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        (" 2 s ", 2.0),
        (1, 1.0),
        (0.001, 0.001),
        (timedelta(minutes=1), 60.0),
        (timedelta(microseconds=1), 1e-6),
        ("3660d", 3660 * 86400.0),
    ],
)
def test_a_duration_is_read(value, expected):
    assert seconds(value, field="per") == expected
    assert micros(value, field="per") == round(expected * 1_000_000)


@pytest.mark.parametrize(
    "value", ["", "1", "s", "1 minute", "1w", "-1s", "1e3s", "1s 1s", None, [], b"1s", True]
)
def test_what_is_no_duration_is_refused_by_name(value):
    with pytest.raises(ConfigError) as caught:
        seconds(value, field="lease")
    assert str(caught.value) == f"lease={value!r}: {ACCEPTED}"


@pytest.mark.parametrize(
    "value",
    [0, "0s", -1, timedelta(0), timedelta(seconds=-1), float("nan"), float("inf"), 1e-7, "3661d"],
)
def test_a_duration_that_cannot_be_lived_is_refused(value):
    with pytest.raises(ConfigError, match=r"^lease=.*expected between 1 microsecond and 3660 days"):
        seconds(value, field="lease")
