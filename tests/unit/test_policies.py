"""Declarations: what cannot work is refused where it is written, and the text says what to do."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, cast

import pytest

from stanchion import (
    CircuitBreaker,
    CircuitOpen,
    ColdStart,
    Concurrency,
    ConcurrencyLimited,
    ConfigError,
    Event,
    EventBus,
    Mode,
    OnOutage,
    Outcome,
    Quota,
    QuotaExceeded,
    RateLimit,
    RateLimited,
    Signal,
)
from stanchion.events import ToolCalled
from stanchion.policies import Binding
from tests.busses import Call, Custom, Other, SpecialCall, breaker, quota, rate, slots


class Nested(Event, type="policies_unit:nested"):
    """Something with fields of every shape."""

    tenant: str
    tokens: int = 1
    dollars: float = 0.0
    plan: str = "free"


MAKERS = [rate, quota, slots, breaker]
COMMON: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, r"name='a b': expected 1 to 64 of letters"),
    ({"name": ""}, r"name='': expected 1 to 64 of letters"),
    ({"name": "a:b"}, r"name='a:b'"),
    ({"name": 3}, r"name=3: .*string"),
    ({"by": ("tennant",)}, r"by='tennant': Call has no field 'tennant'; it has .*tenant"),
    ({"by": "tennant"}, r"by='tennant': Call has no field 'tennant'"),
    ({"by": ("tenant.name",)}, r"by='tenant.name': 'tenant' of Call holds no fields"),
    ({"by": 3}, r"by=3"),
    ({"on": "nope"}, r"on='nope': expected an event class"),
    ({"on": ()}, r"on=\(\): expected an event class"),
    ({"on": 3}, r"on=3: expected an event class"),
    ({"on": dict}, r"on=<class 'dict'>"),
    ({"on": (Call, ToolCalled), "by": "model"}, r"by='model': ToolCalled has no field 'model'"),
    ({"priority": "high"}, r"priority='high'"),
    ({"mode": "dry-run"}, r"mode='dry-run': .*'enforce', 'shadow' or 'off'"),
    ({"on_outage": "open"}, r"on_outage='open': .*'veto', 'admit' or 'local'"),
    ({"on_veto": "stop"}, r"on_veto='stop': .*'skip'"),
    ({"cold_start": "warm"}, r"cold_start='warm': .*'fresh', 'spent' or 'prorated'"),
    ({"colour": "red"}, r"colour: no such field; accepted are name, on, by, "),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("fields", "text"), COMMON, ids=[repr(fields) for fields, _ in COMMON])
def test_what_every_policy_has_is_checked_where_it_is_declared(make, fields, text):
    with pytest.raises(ConfigError, match=text):
        make(**fields)


OWN: list[tuple[Any, dict[str, Any], str]] = [
    (
        breaker,
        {"cold_start": "spent"},
        r"cold_start='spent': expected one of \['fresh'\]: a circuit has no limit",
    ),
    (rate, {"cold_start": "prorated"}, r"cold_start='prorated': expected one of .*'spent'\]: "),
    (slots, {"cold_start": "prorated"}, r"cold_start='prorated': expected one of .*'spent'\]: "),
    (rate, {"limit": 0}, r"limit'?=0: expected from 1"),
    (rate, {"limit": -1}, r"limit'?=-1: expected from 1"),
    (rate, {"limit": 1.5}, r"limit=1.5: .*integer"),
    (rate, {"limit": "5"}, r"limit='5': .*integer"),
    (rate, {"limit": True}, r"limit=True: .*integer"),
    (rate, {"limit": None}, r"limit=None"),
    (rate, {"limit": 2**53}, r"limit=9007199254740992"),
    (rate, {"per": "minute"}, r"per=\'minute\': expected a timedelta, seconds, or text such as"),
    (rate, {"per": 0}, r"per=0(\.0)?: expected between 1 microsecond and 3660 days"),
    (rate, {"per": -5}, r"per=-5"),
    (rate, {"per": None}, r"per=None"),
    (rate, {"burst": 0}, r"burst=0: .*greater than or equal to 1"),
    (rate, {"burst": 5, "algorithm": "sliding_log"}, r'burst=5: only algorithm="gcra" has it'),
    (rate, {"cost": 6}, r"cost=6: above the burst of 5: never admitted"),
    (rate, {"cost": 3, "burst": 2}, r"cost=3: above the burst of 2: never admitted"),
    (rate, {"cost": -1}, r"cost 'cost' is -1; expected a whole number from 0"),
    (rate, {"cost": "tokns"}, r"cost='tokns': Call has no field 'tokns'; it has .*tokens"),
    (rate, {"cost": 1.5}, r"cost=1.5"),
    (rate, {"algorithm": "leaky"}, r"algorithm='leaky': .*'gcra', 'sliding_window'"),
    (rate, {"slices": 9, "algorithm": "sliding_window"}, r"slices=9"),
    (rate, {"slices": 61, "algorithm": "sliding_window"}, r"slices=61"),
    (rate, {"on_change": "forget"}, r"on_change='forget'"),
    (quota, {"limit": 0}, r"limit'?=0: expected from 1"),
    (quota, {"per": "fortnight"}, r"per='fortnight'"),
    (quota, {"cost": 1001}, r"cost=1001: above the limit of 1000: never admitted"),
    (quota, {"cost": -1}, r"cost 'cost' is -1; expected a whole number from 0"),
    (quota, {"cost": {}}, r"cost=\{\}: expected at least one metric"),
    (quota, {"cost": {"tokens": -5}}, r"'tokens weight' is -5; expected a whole number from 0"),
    (quota, {"cost": {"tokns": 5}}, r"cost='tokns': Call has no field 'tokns'"),
    (quota, {"cost": {"tokens": 1.5}}, r"cost=.*1.5"),
    (quota, {"timezone": "Mars/Phobos"}, r"timezone='Mars/Phobos': expected a name such as"),
    (quota, {"timezone": "../etc"}, r"timezone='../etc': expected a name such as"),
    (quota, {"anchor_day": 15}, r'anchor_day=15: needs per="month"'),
    (quota, {"anchor_day": 32, "per": "month"}, r"anchor_day=32"),
    (quota, {"rolling": True, "per": "month"}, r"rolling takes a duration for per"),
    (quota, {"rolling": True, "rollover": 5}, r"rolling takes a duration for per, and no rollover"),
    (quota, {"rollover": -1}, r"rollover=-1"),
    (quota, {"lease": "soon"}, r"lease='soon': expected a timedelta"),
    (quota, {"unsettled": "keep"}, r"unsettled='keep': .*'charge' or 'refund'"),
    (quota, {"overage": "fine"}, r"overage='fine': .*'debt' or 'clip'"),
    (quota, {"warn_at": (0.0,)}, r"warn_at=\(0.0,\): distinct shares above 0, up to 1"),
    (quota, {"warn_at": (1.5,)}, r"warn_at=\(1.5,\)"),
    (quota, {"warn_at": (0.5, 0.5)}, r"warn_at=\(0.5, 0.5\)"),
    (slots, {"limit": 0}, r"limit'?=0: expected from 1"),
    (slots, {"lease": 0}, r"lease=0(\.0)?: expected between 1 microsecond"),
    (slots, {"cost": 3}, r"cost=3: above the limit of 2: never admitted"),
    (slots, {"cost": -1}, r"cost 'cost' is -1"),
    (slots, {"cost": "tokns"}, r"cost='tokns': Call has no field"),
    (slots, {"burst": 3}, r"burst: no such field; accepted are"),
    (breaker, {"failure_rate": 0}, r"failure_rate=0"),
    (breaker, {"failure_rate": 1.1}, r"failure_rate=1.1"),
    (breaker, {"minimum_calls": 0}, r"minimum_calls=0"),
    (breaker, {"consecutive_failures": 0}, r"consecutive_failures=0"),
    (breaker, {"consecutive_failures": None}, r"nothing would ever trip it: give failure_rate"),
    (breaker, {"slow_call": "1s"}, r"slow_call and slow_call_rate need each other"),
    (breaker, {"failure_rate": 0.5, "slow_call_rate": 0.5}, r"need each other"),
    (breaker, {"failure_rate": 0.5, "window": 5, "minimum_calls": 10}, r"window=5: a number of"),
    (breaker, {"window": 10_001}, r"window=10001: a number of calls from minimum_calls=10"),
    (breaker, {"open_for": 0}, r"open_for=0(\.0)?: expected between"),
    (breaker, {"open_for": "10s", "max_open_for": "5s"}, r"max_open_for='5s': below open_for"),
    (breaker, {"jitter": 1.5}, r"jitter=1.5"),
    (breaker, {"half_open_calls": 0}, r"half_open_calls=0"),
    (breaker, {"min_reporters": 65}, r"min_reporters=65"),
    (breaker, {"failures": 3}, r"failures=3"),
    (breaker, {"limit": 3}, r"limit: no such field; accepted are"),
]


@pytest.mark.parametrize(
    ("make", "fields", "text"), OWN, ids=[f"{make.__name__} {fields!r}" for make, fields, _ in OWN]
)
def test_what_a_policy_has_of_its_own_is_checked_where_it_is_declared(make, fields, text):
    with pytest.raises(ConfigError, match=text) as caught:
        make(**fields)
    assert f"{type(make()).__name__}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [RateLimit, Quota, Concurrency, CircuitBreaker])
def test_what_is_missing_is_named(kind):
    with pytest.raises(ConfigError, match=rf"^{kind.__name__}: name: missing; on: missing"):
        kind()


def test_an_error_about_a_policy_says_which_one():
    with pytest.raises(ConfigError, match=r"^RateLimit 'calls': "):
        rate(per="x")


@pytest.mark.parametrize("make", MAKERS)
def test_a_declaration_is_a_value(make):
    policy = make()
    assert policy == make()
    assert policy != make("another")
    with pytest.raises(ValueError, match="frozen"):
        policy.priority = 1


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_not_said_has_a_default(make):
    policy = make()
    assert policy.by == ()
    assert policy.priority == 100
    assert policy.mode is Mode.ENFORCE
    assert policy.on_outage is OnOutage.VETO
    assert policy.on_veto is Signal.FAIL
    assert policy.cold_start is ColdStart.FRESH


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_stored_names_a_cold_start_only_where_one_is_declared(make):
    assert "cold" not in json.loads(Binding.declared(make()))
    if make is not breaker:
        declared = make(cold_start="spent")
        assert json.loads(Binding.declared(declared))["cold"] == "spent"
        # What a process keeps by itself ends with it.
        share = declared.share(1)
        assert share is not None
        assert share.cold_start is ColdStart.FRESH


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (rate(), RateLimited),
        (quota(), QuotaExceeded),
        (breaker(), CircuitOpen),
        (slots(), ConcurrencyLimited),
    ],
    ids=["rate", "quota", "breaker", "slots"],
)
def test_each_kind_of_policy_has_a_veto_of_its_own(policy, error):
    assert policy.vetoed is error


def test_words_may_be_text_or_members():
    assert rate(mode="shadow") == rate(mode=Mode.SHADOW)
    assert rate(on_outage="admit") == rate(on_outage=OnOutage.ADMIT)
    assert rate(on_veto="skip") == rate(on_veto=Signal.SKIP)
    assert quota(unsettled="refund").unsettled == "refund"


@pytest.mark.parametrize("per", ["1m", 60, 60.0, timedelta(minutes=1)])
def test_durations_are_taken_in_every_form(per):
    assert rate(per=per).declaration()["per"] == 60_000_000


def test_one_field_to_count_by_needs_no_tuple():
    assert rate(by="tenant").fields == rate(by=("tenant",)).fields == ("tenant",)


def test_fields_inside_metadata_are_named_with_dots():
    assert rate(by=("tenant", "metadata.user.id")).fields == ("tenant", "metadata.user.id")


def test_a_glob_is_checked_against_every_type_that_it_matches_by_now():
    with pytest.raises(ConfigError, match=r"by='model': Wave has no field 'model'"):
        rate(on="busses:*", by="model")
    assert rate(on="busses:*", by="tenant").on == "busses:*"


def test_a_cost_above_a_default_burst_is_possible_where_an_event_may_cost_less():
    assert rate(cost="tokens").cost == "tokens"


@pytest.mark.parametrize("kind", [RateLimit, Quota])
def test_a_cost_equal_to_the_most_that_can_pass_is_taken(kind):
    assert kind(name="p", on=Call, limit=5, per="1m", cost=5).cost == 5


# ---- what the end of guarded work means to a policy


class Busy(ConnectionError):
    pass


@pytest.mark.parametrize(
    ("failures", "error", "expected"),
    [
        (None, None, Outcome.SUCCESS),
        (None, ValueError(), Outcome.FAILURE),
        (None, KeyboardInterrupt(), Outcome.NEUTRAL),
        (ConnectionError, Busy(), Outcome.FAILURE),
        (ConnectionError, ValueError(), Outcome.SUCCESS),
        ((TimeoutError, OSError), Busy(), Outcome.FAILURE),
        ((TimeoutError, OSError), KeyError(), Outcome.SUCCESS),
        ((TimeoutError, OSError), KeyboardInterrupt(), Outcome.NEUTRAL),
        (lambda given: isinstance(given, KeyError), KeyError(), Outcome.FAILURE),
        (lambda given: isinstance(given, KeyError), ValueError(), Outcome.SUCCESS),
        (lambda given: Outcome.NEUTRAL, ValueError(), Outcome.NEUTRAL),
        (lambda given: Outcome.FAILURE, KeyboardInterrupt(), Outcome.NEUTRAL),
    ],
)
def test_a_breaker_says_which_errors_are_failures(failures, error, expected):
    assert breaker(failures=failures).classify(error) is expected


def test_a_breaker_may_judge_results_too():
    policy = breaker(failures=lambda given: given == 503)
    assert policy.judge(503) is Outcome.FAILURE
    assert policy.judge(200) is Outcome.SUCCESS
    assert breaker(failures=OSError).judge(503) is Outcome.SUCCESS


# ---- what a bus takes


@pytest.mark.parametrize(
    ("policies", "text"),
    [
        ((rate(), rate()), r"policy name='calls': another policy has it already"),
        ((rate(), Custom("calls")), r"policy name='calls': another policy has it already"),
        ((None,), r"policy=None: expected a built-in policy, or an object with name, on, priority"),
        ((RateLimit,), r"policy=<class .*RateLimit'>: expected"),
        ((Custom,), r"policy=<class .*Custom'>: expected"),
        ((object(),), r"policy=<object object"),
        ((Custom("a b"),), r"policy name='a b': expected 1 to 64 of letters"),
        ((Custom(on="nope"),), r"on='nope': expected an event class"),
        ((Custom(on=()),), r"on=\(\)"),
        ((Custom(priority=cast("Any", "high")),), r"priority of custom='high': expected an int"),
    ],
    ids=["twice", "twice custom", "none", "class", "custom class", *"onspt"],
)
def test_a_bus_refuses_what_is_no_policy(policies, text):
    with pytest.raises(ConfigError, match=text):
        EventBus.from_url("memory://", policies=policies)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"namespace": "a b"}, r"namespace='a b': expected 1 to 64"),
        ({"namespace": "{x}"}, r"namespace='\{x\}'"),
        ({"deadline": 0}, r"deadline=0: expected between 1 microsecond"),
        ({"deadline": "soon"}, r"deadline='soon'"),
        ({"deadline": None}, r"deadline=None"),
        ({"observers": [3]}, r"observer"),
    ],
    ids=repr,
)
def test_a_bus_checks_its_own_arguments(options, text):
    with pytest.raises(ConfigError, match=text):
        EventBus.from_url("memory://", **options)


def test_a_bus_takes_no_argument_that_it_does_not_know():
    with pytest.raises(TypeError, match="prefix"):
        EventBus.from_url("memory://", prefix="x")  # pyright: ignore[reportCallIssue]


def test_policies_are_asked_by_priority_then_in_the_order_of_registration():
    names = {"b": 100, "z": 10, "a": 100, "first": -5, "last": 1000, "c": 100}
    bus = EventBus.from_url(
        "memory://",
        policies=[
            Custom(name, priority=order) if name in "az" else rate(name, priority=order)
            for name, order in names.items()
        ],
    )
    assert [policy.name for policy in bus.policies] == ["first", "z", "b", "a", "c", "last"]


def test_a_subclass_of_an_event_is_bound_by_what_it_inherits():
    assert rate(on=SpecialCall, by=("tenant", "urgent")).fields == ("tenant", "urgent")
    with pytest.raises(ConfigError, match="Other has no field 'urgent'"):
        rate(on=(SpecialCall, Other), by="urgent")
