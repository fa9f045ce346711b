"""What providers say of their limits in response headers, in the forms that they use."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanchion.providers import ProviderLimit, parse_limits
from stanchion.testing import memory_bus
from tests.busses import Call, rate
from tests.policies.limits import left, seen, vetoed

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

OPENAI = {
    "date": "Sun, 01 Mar 2026 11:59:59 GMT",
    "content-type": "application/json",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "date": "Sun, 01 Mar 2026 12:00:10 GMT",
    "anthropic-ratelimit-requests-limit": "1000",
    "anthropic-ratelimit-requests-remaining": "999",
    "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:11Z",
    "anthropic-ratelimit-input-tokens-limit": "80000",
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2026-03-01T12:01:00Z",
    "retry-after": "42",
}


def test_headers_as_openai_sends_them():
    told = parse_limits(OPENAI)
    assert dict(told.limits) == {
        "requests": ProviderLimit(60, 59, 1.0),
        "tokens": ProviderLimit(150_000, 149_984, 360.0),
    }
    assert told.retry_after is None


def test_headers_as_anthropic_sends_them_counted_from_the_responses_own_date():
    told = parse_limits(ANTHROPIC, now=NOW)
    assert dict(told.limits) == {
        "requests": ProviderLimit(1000, 999, 1.0),
        "input_tokens": ProviderLimit(80_000, 0, 50.0),
    }
    assert told.retry_after == 42.0


def test_without_a_date_they_count_from_now():
    headers = {name: value for name, value in ANTHROPIC.items() if name != "date"}
    assert parse_limits(headers, now=NOW).limits["input_tokens"].reset_after == 60.0


def test_names_are_read_in_either_case_and_values_with_spaces_around_them():
    headers = {name.title(): f"  {value} " for name, value in OPENAI.items()}
    assert parse_limits(headers) == parse_limits(OPENAI)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("7.66", 7.66),
        ("12ms", 0.012),
        ("1s", 1.0),
        ("1m30s", 90.0),
        ("6m0s", 360.0),
        ("2h3m4.5s", 7384.5),
        ("1d", 86_400.0),
        ("0.0000001", 0.0),
        ("2026-03-01T12:00:30Z", 30.0),
        ("2026-03-01T13:00:30.250+01:00", 30.25),
        ("2026-03-01T11:00:00Z", 0.0),
        ("Sun, 01 Mar 2026 12:02:00 GMT", 120.0),
    ],
)
@pytest.mark.parametrize(
    "name", ["x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-reset", "retry-after"]
)
def test_a_time_is_a_span_seconds_or_a_date(name, text, seconds):
    told = parse_limits({name: text}, now=NOW)
    found = told.retry_after if name == "retry-after" else told.limits["tokens"].reset_after
    assert found == pytest.approx(seconds, abs=1e-9)


def test_a_retry_in_milliseconds_is_the_finer_one():
    assert parse_limits({"retry-after": "1", "retry-after-ms": "250"}).retry_after == 0.25
    assert parse_limits({"retry-after": "1", "retry-after-ms": "soon"}).retry_after == 1.0


MALFORMED = [
    *("", " ", "-1", "-5s", "1e5", "1,000", "nan", "inf", "soon", "5 minutes", "1s1", "s", "\x00"),
    *("5m -1s", "0x10", "99999999999999999999", "1" * 100_000, "1767225600"),
    *("2026-13-01T00:00:00Z", "2026-02-30", "2026-03-01T25:00Z", "Sun, 32 Mar 2026 12:00:00 GMT"),
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan 2026 00:00:00 +99999999999999",
]


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:24]))
def test_what_cannot_be_read_is_left_out_and_the_rest_is_not(text):
    told = parse_limits(
        {
            "x-ratelimit-remaining-tokens": "5",
            "x-ratelimit-reset-tokens": text,
            "anthropic-ratelimit-tokens-reset": text,
            "x-ratelimit-reset-requests": text,
            "retry-after": text,
            "date": text,
        },
        now=NOW,
    )
    assert dict(told.limits) == {"tokens": ProviderLimit(None, 5, None)}
    assert told.retry_after is None


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "", "9" * 40, "0x1f", "1_000"])
def test_an_amount_is_a_whole_number(text):
    headers = {"x-ratelimit-remaining-tokens": text, "anthropic-ratelimit-tokens-limit": text}
    assert dict(parse_limits(headers).limits) == {}


def test_names_that_only_look_alike_are_somebody_elses():
    headers = {
        "x-ratelimit-remaining": "5",
        "x-ratelimit-used-tokens": "5",
        "anthropic-ratelimit-remaining": "5",
        "my-x-ratelimit-remaining-tokens": "5",
    }
    assert dict(parse_limits(headers).limits) == {}


NAMES = st.sampled_from([*OPENAI, *ANTHROPIC, "retry-after", "retry-after-ms"])
TEXTS = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"-?\d{1,20}(\.\d{1,12})?(ms|s|m|h|d)?", fullmatch=True),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,9} \d\d:\d\d:\d\d [A-Z+0-9]{1,9}"),
)


@given(st.dictionaries(NAMES, TEXTS, max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_header_whatever_is_in_it_stops_the_work(headers):
    told = parse_limits(headers, now=NOW)
    ten_years = 3660 * 86_400
    times = [told.retry_after, *(limit.reset_after for limit in told.limits.values())]
    assert all(seconds is None or 0 <= seconds <= ten_years for seconds in times)
    assert all((limit.remaining or 0) >= 0 for limit in told.limits.values())


async def test_what_is_read_is_what_a_limit_takes():
    policies = [rate("requests", limit=1000), rate("input", limit=80_000, cost="tokens")]
    async with memory_bus(*policies) as bus:
        told = parse_limits(ANTHROPIC)
        for name, limit in (("requests", "requests"), ("input", "input_tokens")):
            figures = told.limits[limit]
            assert await bus.sync(
                name, remaining=figures.remaining, reset_after=figures.reset_after
            )
        # Full again in a second, 16 2/3 requests are missing; this one is another.
        assert await left(bus) == 982
        assert (await vetoed(bus, Call(tokens=1))).policy == "input"
        assert (await seen(bus)).limit == 1000


@pytest.mark.parametrize("text", ["0.0000001", "0.0000009ms", "999999999", "300000d", "9999-12-31"])
async def test_a_time_too_short_or_too_long_for_a_limit_is_no_error_when_it_is_synced(text):
    told = parse_limits({"x-ratelimit-reset-tokens": text, "retry-after": text})
    async with memory_bus(rate()) as bus:
        reset = told.limits["tokens"].reset_after if told.limits else None
        await bus.sync("calls", reset_after=reset, retry_after=told.retry_after)
        assert (await seen(bus)).limit == 5
