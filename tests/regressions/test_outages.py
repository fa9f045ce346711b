"""Defects of what limiters and breakers do while Redis is away, that users have met elsewhere.

Covered elsewhere in full:
- a hung server, and how long one check may take (redis-py's minute by default, litellm#24181,
  envoyproxy/ratelimit#462, #978): tests/faults/test_hung_server.py
- one blip that shuts everything (litellm#40620): tests/faults/test_outage_gate.py
- errors of the client that get out: tests/faults/test_only_our_errors.py
"""

from __future__ import annotations

import pytest

from stanchion import CircuitOpen, ConfigError, EventBus, RateLimited, Vetoed
from stanchion.events import PolicyFailed
from stanchion.observers import Recorder
from tests.busses import Call, breaker, quota, rate, slots
from tests.servers import free_port


def away() -> str:
    return f"redis://127.0.0.1:{free_port()}/0"


async def test_an_outage_is_an_answer_and_no_error():
    """slowapi (zzstoatzz/plyr.fm#1787): a Redis outage was a 500 on every route.

    istio#12115: nor is it told as a limit that was reached.
    """
    policies = [rate(), quota(), slots(), breaker()]
    async with EventBus.from_url(away(), policies=policies) as bus:
        for ask in (bus.check, bus.peek):
            decision = await ask(Call())
            assert (decision.allowed, decision.reason) == (False, "store_unavailable")
            assert decision.retry_after is None
        with pytest.raises(Vetoed) as caught:
            async with bus.guard(Call()):
                pytest.fail("entered")
        assert not isinstance(caught.value, RateLimited | CircuitOpen)
        assert caught.value.decision.reason == "store_unavailable"


async def test_local_shares_of_all_replicas_stay_within_the_limit():
    """dataspoke-baseline#112: a silent fall-back to memory made it the limit times replicas."""
    policy = rate(limit=10, per="1h", on_outage="local")
    admitted, url = 0, away()
    for _ in range(4):
        async with EventBus.from_url(url, policies=[policy], processes=4) as bus:
            for _ in range(10):
                decision = await bus.check(Call())
                admitted += bool(decision)
                # And it is not silent.
                assert decision.verdicts[0].reason in {"local_share", "limit_reached"}
    assert admitted == 8  # two each
    # Nobody gets it without saying how many there are.
    with pytest.raises(ConfigError, match="processes"):
        EventBus.from_url(url, policies=[policy])


@pytest.mark.parametrize("on_outage", ["veto", "admit"])
async def test_protection_does_not_vanish_silently(on_outage: str):
    """bolshakov/stoplight#419, #448: with Redis away it answered with defaults: all closed."""
    recorder = Recorder()
    policy = breaker(on_outage=on_outage)
    async with EventBus.from_url(away(), policies=[policy], observers=[recorder]) as bus:
        decision = await bus.check(Call())
        assert bool(decision) == (on_outage == "admit")
        assert decision.verdicts[0].reason == "store_unavailable"
        told = await recorder.wait_for(PolicyFailed)
        assert told.policy == "provider"
