"""What an event may hold that no limit can count: a clear error, and nothing charged."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import BaseModel

from stanchion import Concurrency, ConfigError, Event, Permit, Quota, RateLimit
from stanchion.testing import memory_bus
from tests.busses import Call, command, quota, rate, slots
from tests.policies.limits import admitted, left


class Loose(Event, type="limits_refused:loose"):
    """A call whose figures anybody may get wrong."""

    who: Any = None
    tokens: Any = 1


KINDS: dict[str, Any] = {"rate": rate, "quota": quota, "slots": slots}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


WRONG = [-1, 1.0, 0.5, "5", None, True, 2**53, float("nan"), [1], {}]


@each_kind
async def test_a_cost_that_is_no_whole_number_from_zero_is_refused(make):
    async with memory_bus(make("p", on=Loose, cost="tokens"), rate("first", on=Loose)) as bus:
        for amount, ask in itertools.product(WRONG, (bus.check, bus.peek, bus.admit)):
            with pytest.raises(ConfigError) as caught:
                await ask(Loose(tokens=amount))
            text = str(caught.value)
            assert f"'p': cost 'tokens' is {amount!r}; expected a whole number from 0 to" in text
            assert "(count money in millionths)" in text
        assert not [key for key in await command(bus, "KEYS", "*") if b":first:" in key]


async def test_a_sum_of_metrics_that_is_too_large_to_count_is_refused():
    policy = quota("p", on=Loose, cost={"tokens": 2**40}, limit=2**52)
    async with memory_bus(policy) as bus:
        with pytest.raises(ConfigError, match="cost 'sum of all metrics' is 9007199254740992"):
            await bus.check(Loose(tokens=2**13))
        await admitted(bus, Loose(tokens=2**12))


@each_kind
async def test_a_subject_that_makes_no_stable_name_is_refused(make):
    async with memory_bus(make("p", on=Loose, by="who", cost="tokens")) as bus:
        for who in (1.5, [1], {"a": 1}, b"bytes", object):
            with pytest.raises(ConfigError) as caught:
                await bus.check(Loose(who=who))
            assert f"'p': by='who': the event holds {who!r}; expected text" in str(caught.value)


@each_kind
async def test_a_real_cost_is_checked_as_the_estimate_is_and_settles_nothing(make):
    async with memory_bus(make("p", cost="tokens", limit=10)) as bus:
        permit = await admitted(bus, tokens=4)
        for amount in WRONG:
            costs: dict[str, Any] = {"tokens": amount}
            with pytest.raises(ConfigError) as charged:
                permit.charge(**costs)
            with pytest.raises(ConfigError) as settled:
                await bus.settle(permit, **costs)
            text = f"cost tokens={amount!r}: expected a whole number from 0"
            assert str(charged.value) == str(settled.value) == text
        assert await left(bus) == 6
        assert await bus.settle(permit)


@each_kind
async def test_a_real_cost_by_a_misspelt_name_is_refused_and_the_names_are_told(make):
    async with memory_bus(make("p", cost="tokens"), rate("plain")) as bus:
        permit = await admitted(bus, tokens=1)
        for wrong in (permit, Permit.parse(str(permit))):
            with pytest.raises(ConfigError, match=r"cost='tokns': .*counts \['plain', 'tokens'\]"):
                await bus.settle(wrong, tokns=1)
        assert await bus.settle(permit, tokens=1, plain=1)


class Inner(BaseModel):
    """What a field may hold."""

    total: int = 0


class Outer(Event, type="limits_refused:outer"):
    """An event with figures inside a field."""

    usage: Inner = Inner()
    maybe: Inner | None = None


DECLARED: list[tuple[dict[str, Any], str]] = [
    ({"on": Outer, "cost": "usage.totl"}, r"cost='usage.totl': Inner has no field 'totl'; it has"),
    ({"on": Outer, "by": "usage.total.x"}, r"by='usage.total.x': 'total' of Outer holds no fields"),
    ({"on": Outer, "by": ("maybe.totl",)}, r"by='maybe.totl': Inner has no field 'totl'"),
    ({"on": Outer, "cost": "id.x"}, r"cost='id.x': 'id' of Outer holds no fields"),
    ({"by": ("tenant", "modle")}, r"by='modle': Call has no field 'modle'; it has .*model"),
    ({"cost": "Tokens"}, r"cost='Tokens': Call has no field 'Tokens'; it has .*tokens"),
    ({"cost": ""}, r"cost='': Call has no field ''; it has"),
    ({"cost": True}, r"cost=True: .*integer"),
    ({"cost": 2**53}, r"cost 'cost' is 9007199254740992; expected a whole number from 0 to"),
    ({"limit": float("inf")}, r"limit=inf: .*integer"),
    ({"limit": 2**52 + 1}, r"limit'?=4503599627370497: expected from 1 to 2\^52"),
    ({"private": "perhaps"}, r"private='perhaps': .*boolean"),
]


@each_kind
@pytest.mark.parametrize(("fields", "text"), DECLARED, ids=[text for _, text in DECLARED])
def test_a_declaration_that_cannot_work_names_field_value_and_what_there_is(make, fields, text):
    with pytest.raises(ConfigError, match=text) as caught:
        make("p", **fields)
    assert str(caught.value).startswith((RateLimit.__name__, Quota.__name__, Concurrency.__name__))


QUOTAS: list[tuple[dict[str, Any], str]] = [
    ({"anchor_day": 0, "per": "month"}, r"anchor_day=0: .*greater than or equal to 1"),
    ({"anchor_day": 32, "per": "month"}, r"anchor_day=32: .*less than or equal to 31"),
    ({"anchor_day": 1.5, "per": "month"}, r"anchor_day=1.5: .*integer"),
    ({"anchor_day": 2, "per": "year"}, r'anchor_day=2: needs per="month"'),
    ({"timezone": "Europe/Berln"}, r"timezone='Europe/Berln': expected a name such as"),
    ({"timezone": ""}, r"timezone='': expected a name such as"),
    ({"timezone": "/etc/localtime"}, r"timezone='/etc/localtime': expected a name such as"),
    ({"timezone": "UTC\x00"}, r"timezone='UTC\\x00': expected a name such as"),
    ({"timezone": 3}, r"timezone=3: .*string"),
    ({"per": "days"}, r"per='days': expected a timedelta, seconds, or text such as"),
    ({"per": "3661d"}, r"per='3661d': expected between 1 microsecond and 3660 days"),
    ({"cost": {"tokens": True}}, r"cost=.*True"),
    ({"cost": {"tokns": 1, "tokens": 1}}, r"cost='tokns': Call has no field 'tokns'"),
    ({"cost": 1500, "rollover": 1000}, r"cost=1500: above the limit of 1000: never admitted"),
    ({"rollover": 2**52 + 1}, r"rollover=4503599627370497"),
    ({"lease": 0}, r"lease=0(\.0)?: expected between 1 microsecond"),
    ({"rolling": True, "per": "day"}, r"rolling takes a duration for per"),
    ({"rolling": True, "slices": 9}, r"slices=9: .*greater than or equal to 10"),
    ({"warn_at": (0.8, float("nan"))}, r"warn_at=\(0.8, nan\): distinct shares above 0"),
    ({"warn_at": "0.8"}, r"warn_at='0.8'"),
]


@pytest.mark.parametrize(("fields", "text"), QUOTAS, ids=[text for _, text in QUOTAS])
def test_a_quota_that_cannot_work_says_why(fields, text):
    with pytest.raises(ConfigError, match=rf"^Quota 'p': .*{text}"):
        quota("p", **fields)


async def test_a_window_may_be_as_short_or_as_long_as_a_duration_may():
    for per in ("0.001ms", 0.000001, "3660d"):
        for make in (rate, quota):
            async with memory_bus(make("p", per=per, cost="tokens", limit=3)) as bus:
                await admitted(bus, Call(tokens=3))
                assert await left(bus) == 0
