"""Decisions, verdicts and the errors that carry them."""

from __future__ import annotations

import copy
import pickle

import pytest

from stanchion import (
    CircuitOpen,
    CircuitState,
    ConcurrencyLimited,
    ConfigError,
    Decision,
    Mode,
    OnOutage,
    Outcome,
    PolicyFailed,
    QuotaExceeded,
    RateLimited,
    Reason,
    Signal,
    StanchionError,
    StoreUnavailable,
    Verdict,
    Vetoed,
)
from stanchion.errors import shown

PASSES = Verdict("first", allowed=True)
WAITS = Verdict("second", allowed=False, reason="limit_reached", retry_after=1.5)
LATER = Verdict("third", allowed=False, reason="quota_exhausted", retry_after=60.0)
NEVER = Verdict("fourth", allowed=False, reason="cost_above_limit")
SHADOW = Verdict("shadow", allowed=False, reason="no_free_slot", retry_after=9.0, enforced=False)


def test_an_allowed_decision_is_true_and_blames_nobody():
    decision = Decision(allowed=True, verdicts=(PASSES, SHADOW))
    assert decision
    assert decision.signal is Signal.PROCEED
    assert decision.vetoes == ()
    assert (decision.policy, decision.reason) == (None, None)
    assert decision.retry_after == 0.0


def test_a_veto_is_false_and_names_the_first_that_refused():
    decision = Decision(allowed=False, signal=Signal.RETRY, verdicts=(PASSES, SHADOW, WAITS, LATER))
    assert not decision
    assert decision.vetoes == (WAITS, LATER)
    assert (decision.policy, decision.reason) == ("second", "limit_reached")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((WAITS,), 1.5),
        ((WAITS, LATER), 60.0),
        ((LATER, SHADOW), 60.0),
        ((WAITS, NEVER), None),
        ((NEVER,), None),
    ],
)
def test_retry_after_is_when_all_who_refused_could_admit(verdicts, expected):
    assert Decision(allowed=False, verdicts=verdicts).retry_after == expected


@pytest.mark.parametrize("value", [PASSES, Decision(allowed=True)])
def test_answers_cannot_be_changed(value):
    with pytest.raises(AttributeError):
        value.allowed = False


@pytest.mark.parametrize(
    "kind", [Vetoed, RateLimited, QuotaExceeded, CircuitOpen, ConcurrencyLimited]
)
def test_a_veto_error_carries_the_decision_even_between_processes(kind):
    error = kind(Decision(allowed=False, verdicts=(WAITS, LATER)))
    assert str(error) == "vetoed by 'second': limit_reached, retry after 60.000 s"
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert again.decision == error.decision
    assert isinstance(error, Vetoed)
    assert isinstance(error, StanchionError)


def test_a_veto_that_no_wait_ends_gives_no_time():
    assert str(Vetoed(Decision(allowed=False, verdicts=(NEVER,)))) == (
        "vetoed by 'fourth': cost_above_limit"
    )


def test_every_error_has_one_root():
    for kind in (Vetoed, StoreUnavailable, PolicyFailed, ConfigError):
        assert issubclass(kind, StanchionError)
    for kind in (StoreUnavailable, PolicyFailed, ConfigError):
        assert not issubclass(kind, Vetoed)


def test_a_declaration_error_names_field_value_and_remedy():
    assert str(ConfigError.of("limit", 0, "expected at least 1")) == "limit=0: expected at least 1"


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, ["x"] * 10_000, "a\nb\0"])
def test_a_value_in_an_error_is_one_short_line(value):
    text = shown(value)
    assert len(text) < 100
    assert "\n" not in text
    assert "\0" not in text


def test_the_words_of_the_api_are_lower_case_text():
    assert [str(signal) for signal in Signal] == ["proceed", "fail", "skip", "retry", "fallback"]
    assert [str(outcome) for outcome in Outcome] == ["success", "failure", "neutral"]
    assert [str(mode) for mode in Mode] == ["enforce", "shadow", "off"]
    assert [str(choice) for choice in OnOutage] == ["veto", "admit", "local"]
    assert [str(state) for state in CircuitState] == [
        "closed",
        "open",
        "half_open",
        "forced_open",
        "disabled",
    ]
    assert all(str(reason).replace("_", "").islower() for reason in Reason)
