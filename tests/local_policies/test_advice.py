"""What goes with the signal of a veto, whichever kind of policy vetoes."""

from __future__ import annotations

import pytest

from stanchion import ConfigError, Decision, Event, EventBus, RateLimit, Signal, Verdict
from stanchion.config import read_settings
from stanchion.policies import BuiltInPolicy
from tests.busses import Call, Custom, breaker, quota, rate, slots

SMALL = {"model": "small", "limits": [1, 2]}


async def vetoed(bus: EventBus, event: Event | None = None) -> Decision:
    """Ask until the veto."""
    for _ in range(10):
        decision = await bus.check(event or Call(tenant="t", tokens=400))
        if not decision:
            return decision
    pytest.fail("nothing was vetoed")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("make", [rate, quota, slots])
async def test_a_veto_carries_the_advice_of_its_policy(open_bus, make, cache) -> None:
    policy = make(on_veto="fallback", advice=SMALL)
    bus = await open_bus(policy, cache_denials=cache)
    admitted = await bus.check(Call(tenant="t", tokens=400))
    for _ in range(2):  # the second time it may be known without asking
        decision = await vetoed(bus)
        assert (decision.signal, decision.advice) == (Signal.FALLBACK, SMALL)
    assert (admitted.advice, admitted.verdicts[0].advice) == ({}, None)
    assert (await bus.peek(Call(tenant="t", tokens=400))).advice == SMALL


async def test_that_of_the_first_veto_counts_and_nobody_can_change_it(open_bus) -> None:
    first = rate(advice=SMALL, priority=1)
    bus = await open_bus(first, rate("other", advice={"model": "other"}))
    (await vetoed(bus)).advice["limits"].append(3)
    assert (await vetoed(bus)).advice == {"model": "small", "limits": [1, 2]}
    given = {"model": ["a"]}
    policy = rate(advice=given)
    given["model"].append("b")
    assert policy.advice == {"model": ["a"]}
    assert rate() == rate(advice=None)
    assert hash(rate()) == hash(rate())


async def test_what_a_caller_does_with_it_changes_nothing_for_the_next(open_bus) -> None:
    kept = {"limits": [1, 2]}
    bus = await open_bus(Custom(answer=Verdict("custom", allowed=False, advice=kept)))
    (await vetoed(bus)).advice["limits"].append(3)
    assert (await vetoed(bus)).advice == {"limits": [1, 2]}
    assert kept == {"limits": [1, 2]}


async def test_units_that_were_taken_ahead_and_open_circuits_advise_too(open_bus) -> None:
    ahead = rate(algorithm="fixed_window", prefetch=2, on_veto="retry", advice=SMALL)
    bus = await open_bus(ahead)
    assert (await vetoed(bus)).advice == SMALL
    bus = await open_bus(breaker(on_veto="skip", advice=SMALL))
    await bus.force("provider", "forced_open")
    assert (await vetoed(bus)).advice == SMALL


async def test_so_does_a_policy_that_cannot_be_asked(valkey) -> None:
    failing = Custom(answer=RuntimeError("no"), on_veto=Signal.FALLBACK)
    failing.advice = SMALL  # pyright: ignore[reportAttributeAccessIssue]
    async with EventBus.from_url("memory://", policies=[failing]) as bus:
        decision = await bus.check(Call())
        assert (decision.signal, decision.advice) == (Signal.FALLBACK, SMALL)
    shares = [rate(on_outage="local", advice=SMALL, limit=1), rate("other", advice=SMALL)]
    async with EventBus.from_url(valkey.url, policies=shares[1:]) as bus:
        valkey.kill()
        assert (await bus.check(Call())).advice == SMALL
    async with EventBus.from_url(valkey.url, policies=shares[:1], processes=2) as bus:
        assert (await bus.check(Call())).advice == SMALL


@pytest.mark.parametrize("advice", [{"at": object()}, {"x": float("nan")}, {1: 2}, "small"])
def test_what_json_cannot_carry_is_refused_where_it_is_declared(advice) -> None:
    with pytest.raises(ConfigError, match="advice"):
        rate(advice=advice)


def test_a_file_can_say_it(tmp_path) -> None:
    file = tmp_path / "stanchion.yaml"
    file.write_text(
        "url: memory://\npolicies:\n  - {kind: rate_limit, name: calls, on: busses:call, limit: 1,"
        " per: 1m, on_veto: fallback, advice: {model: small}}\n"
    )
    (policy,) = read_settings(file).policies
    assert isinstance(policy, BuiltInPolicy)
    assert policy.advice == {"model": "small"}
    assert isinstance(policy, RateLimit)
    assert Verdict("x", allowed=True).advice is None
