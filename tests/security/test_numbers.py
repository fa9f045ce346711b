"""Hostile numbers, names and permits: refused or vetoed, and nothing stored is the worse for it."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanchion import Concurrency, ConfigError, EventBus, Outcome, Permit, Quota, RateLimit
from stanchion.permit import Hold
from tests.busses import snapshot
from tests.security.hostile import NASTY, Request, every_kind

if TYPE_CHECKING:
    from tests.busses import Buses

LARGEST = 2**53 - 1
WRONG: tuple[Any, ...] = (
    *(float("nan"), float("inf"), float("-inf"), 1.0, 1e308, -1, -(10**5000), 2**53, 2**64),
    *(10**5000, True, False, None, "5", "nan", b"5", [5], {"a": 1}, 5j, object()),
)
COSTLY = (
    RateLimit(name="gcra", on=Request, limit=1000, per="1h", cost="tokens"),
    RateLimit(name="log", on=Request, limit=1000, per="1h", cost="tokens", algorithm="sliding_log"),
    RateLimit(
        name="sliding", on=Request, limit=9, per="1h", cost="tokens", algorithm="sliding_window"
    ),
    RateLimit(name="fixed", on=Request, limit=9, per="1h", cost="tokens", algorithm="fixed_window"),
    Quota(name="quota", on=Request, limit=1000, per="1d", cost={"tokens": 1000}),
    Quota(name="rolling", on=Request, limit=1000, per="1d", cost="tokens", rolling=True),
    Concurrency(name="slots", on=Request, limit=9, cost="tokens", lease="30s"),
)


REFUSED = {"limit_reached", "quota_exhausted", "no_free_slot", "cost_above_limit"}
TWO_STORES = pytest.mark.parametrize("store_url", ["fakeredis", "valkey9"], indirect=True)


@TWO_STORES
async def test_a_cost_that_is_none_is_refused_and_nothing_is_touched(open_bus: Buses):
    bus = await open_bus(*COSTLY)
    permit = await bus.admit(Request(tokens=1))
    before = await snapshot(bus)
    for wrong in WRONG:
        with pytest.raises(ConfigError, match=r"cost 'tokens' is .*expected a whole number"):
            await bus.check(Request(tokens=wrong))
        with pytest.raises(ConfigError, match=r"cost tokens=.*expected a whole number from 0"):
            await bus.settle(permit, tokens=wrong)
        with pytest.raises(ConfigError, match=r"cost tokens=.*expected a whole number from 0"):
            permit.charge(tokens=wrong)
        if wrong is not None:
            with pytest.raises(ConfigError):
                await bus.override("gcra", wrong)
            with pytest.raises(ConfigError):
                await bus.sync("gcra", remaining=wrong)
    assert await snapshot(bus) == before


@TWO_STORES
@pytest.mark.parametrize("tokens", [0, 1001, 2**52, LARGEST // 1000, LARGEST])
async def test_a_huge_cost_is_vetoed_or_refused_and_settling_it_corrupts_nothing(
    open_bus: Buses, tokens: int
):
    for policy in COSTLY:
        bus = await open_bus(policy)
        if policy.name == "quota" and tokens > LARGEST // 1000:
            with pytest.raises(ConfigError, match="sum of all metrics"):
                await bus.check(Request(tokens=tokens))
        else:
            decision = await bus.check(Request(tokens=tokens))
            assert decision.allowed is (tokens == 0)
            assert decision.reason in {None, *REFUSED}
        permit = await bus.admit(Request(tokens=1))
        for _ in range(3):
            permit.charge(tokens=LARGEST)
        assert (await bus.settle(permit, Outcome.FAILURE)).statuses
        assert {state.error async for state in bus.inspect()} <= {None}
        assert (await bus.check(Request(tokens=1))).reason in {None, *REFUSED}
        assert await bus.reset(policy.name) == 1
        assert await bus.check(Request(tokens=1))
        await bus.reset(policy.name)


NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@settings(max_examples=60, deadline=None, database=None)
@given(
    name=st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=80),
        st.sampled_from([value for value in NASTY if isinstance(value, str)]),
        st.builds(lambda text: f"name{text}", st.sampled_from(["\n", "\x00", "}", ":", "\u0301"])),
    )
)
def test_only_plain_names_can_be_declared(name):
    declare = [
        lambda: RateLimit(name=name, on=Request, limit=1, per="1m"),
        lambda: EventBus.from_url("memory://", namespace=name),
    ]
    for one in declare:
        if NAME.fullmatch(name):
            assert one()
        else:
            with pytest.raises(ConfigError, match="expected 1 to 64 of letters"):
                one()


def test_a_policy_has_no_more_fields_than_its_keys_can_hold():
    fields = [f"metadata.f{number}" for number in range(9)]
    assert RateLimit(name="p", on=Request, by=tuple(fields[:8]), limit=1, per="1m")
    with pytest.raises(ConfigError, match=r"by=.*expected at most 8 fields"):
        RateLimit(name="p", on=Request, by=tuple(fields), limit=1, per="1m")


@TWO_STORES
async def test_the_longest_subject_can_be_settled(open_bus: Buses):
    fields = {f"f{number}": "x" * 100 for number in range(8)}
    bus = await open_bus(*every_kind(tuple(f"metadata.{name}" for name in fields)))
    permit = Permit.parse(str(await bus.admit(Request(metadata=fields))))
    assert set((await bus.settle(permit)).statuses.values()) == {"settled"}


@TWO_STORES
@pytest.mark.parametrize("inside", ["text", ["list"], 3, 1.5, True], ids=repr)
async def test_metadata_of_another_shape_than_declared_is_an_error_of_ours(open_bus: Buses, inside):
    """Who makes the event chooses what stands where the policy looks for an object."""
    bus = await open_bus(*every_kind("metadata.user.id"))
    with pytest.raises(ConfigError, match=r"by='metadata.user.id': .*no 'id' in what is of type"):
        await bus.check(Request(metadata={"user": inside}))
    assert not await snapshot(bus)


# ---- permits that somebody else has written


def forged(**changes: Any) -> str:
    hold = Hold("rate", "gcra", "-", 1, (("rate", 1, 1),), (0, 0))
    document = json.loads(base64.urlsafe_b64decode(str(Permit("x", "default", (hold,)))[5:] + "=="))
    row = document["h"][0]
    for place, value in changes.pop("hold", {}).items():
        row[place] = value
    document |= changes
    text = json.dumps(document)
    return "stp1." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@TWO_STORES
@pytest.mark.parametrize(
    "hold",
    [
        {0: "rate:{x}\r\n"},
        {0: ""},
        {1: "bucket"},
        {2: "a b"},
        {2: "{x}"},
        {2: "x\n"},
        {2: ""},
        {2: "x" * 1001},
        {3: -1},
        {3: 2**53},
        {3: 1e300},
        {3: True},
        {5: [float("nan")]},
        {5: [2**60]},
        {6: "1"},
    ],
    ids=str,
)
async def test_a_permit_that_was_tampered_with_is_refused(open_bus: Buses, hold):
    bus = await open_bus(RateLimit(name="rate", on=Request, limit=5, per="1h"))
    await bus.admit(Request())
    before = await snapshot(bus)
    with pytest.raises(ConfigError, match=r"permit|kind"):
        await bus.settle(Permit.parse(forged(hold=hold)))
    assert await snapshot(bus) == before


@settings(max_examples=150, deadline=None, database=None)
@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode())))
def test_what_is_no_permit_is_refused(body):
    for text in (body.decode("latin-1"), "stp1." + base64.urlsafe_b64encode(body).decode()):
        with pytest.raises(ConfigError, match="permit"):
            Permit.parse(text)


def test_a_permit_that_is_too_long_or_nested_is_refused_at_once():
    deep = base64.urlsafe_b64encode(b"[" * 1_000_000).decode()
    many = forged(h=[["rate", "gcra", "-", 1, [], [], 0, False, 0]] * 1001)
    for text in ("stp1." + "A" * (16 * 2**20), "stp1." + deep, many):
        with pytest.raises(ConfigError) as caught:
            Permit.parse(text)
        assert len(str(caught.value)) < 300
