"""What a decision tells an HTTP client."""

from __future__ import annotations

from stanchion import Decision, Outcome, response_headers
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, breaker, quota, rate, slots


async def test_an_admission_tells_what_is_left_of_every_limit():
    async with memory_bus(
        rate(limit=600, per="1m", burst=100), quota(limit=1000), slots(), breaker()
    ) as bus:
        headers = response_headers(await bus.check(Call(tokens=100)))
    # The quota's day is the whole first of January; a circuit has no limit to tell of.
    assert headers == {
        "RateLimit-Policy": '"calls";q=600, "tokens";q=1000, "slots";q=2',
        "RateLimit": '"calls";r=99;t=1, "tokens";r=900;t=86400, "slots";r=1;t=30',
    }


async def test_a_veto_tells_when_to_come_again_in_whole_seconds_rounded_up():
    async with memory_bus(rate(limit=2, per="3s")) as bus:
        for _ in range(2):
            assert await bus.check(Call())
        await bus.clock.advance("400ms")
        decision = await bus.check(Call())
        assert decision.retry_after == 1.1
        headers = response_headers(decision, legacy=True)
    assert headers == {
        "RateLimit-Policy": '"calls";q=2',
        "RateLimit": '"calls";r=0;t=3',
        "Retry-After": "2",
        "X-RateLimit-Limit": "2",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "3",
    }


async def test_a_veto_for_good_tells_no_time_to_come_again():
    async with memory_bus(rate(limit=2, cost="tokens")) as bus:
        headers = response_headers(await bus.check(Call(tokens=3)))
    assert "Retry-After" not in headers


async def test_the_old_headers_tell_of_the_policy_that_refused_else_of_the_tightest():
    async with memory_bus(rate(limit=10), quota(limit=1000)) as bus:
        first = response_headers(await bus.check(Call(tokens=700)), legacy=True)
        assert (first["X-RateLimit-Limit"], first["X-RateLimit-Remaining"]) == ("1000", "300")
        refused = response_headers(await bus.check(Call(tokens=400)), legacy=True)
        assert (refused["X-RateLimit-Limit"], refused["X-RateLimit-Remaining"]) == ("1000", "300")
        bus.unregister("tokens")
        assert response_headers(await bus.check(Call()), legacy=True)["X-RateLimit-Limit"] == "10"


async def test_an_open_circuit_tells_when_to_come_again():
    async with memory_bus(breaker(consecutive_failures=1, open_for="10s")) as bus:
        await bus.settle(await bus.admit(Call()), Outcome.FAILURE)
        assert response_headers(await bus.check(Call()), legacy=True) == {"Retry-After": "10"}


async def test_a_policy_in_shadow_is_not_told_of():
    async with memory_bus(rate(limit=1, mode="shadow"), Custom()) as bus:
        assert response_headers(await bus.check(Call()), legacy=True) == {}


def test_a_decision_without_policies_has_nothing_to_tell():
    assert response_headers(Decision(allowed=True), legacy=True) == {}
