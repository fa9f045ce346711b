"""A real Cerbos, asked in AuthZEN and in its own JSON."""

from __future__ import annotations

import asyncio

import pytest

from tests.remote.asking import Call, authzen_policy, http_policy

CHECK = {
    "requestId": "{id}",
    "principal": {"id": "{tenant}", "roles": ["tenant"]},
    "resources": [
        {
            "resource": {"kind": "model", "id": "{model}", "attr": {"tokens": "{tokens}"}},
            "actions": ["{event_type}"],
        }
    ],
}


def own_dialect(url: str):
    """Make a policy that asks Cerbos's own API."""
    return http_policy(
        f"{url}/api/check/resources",
        request=CHECK,
        allow="results.0.actions.remote:call",
        allow_values=("EFFECT_ALLOW",),
        reason="results.0.outputs.0.val",
        decision_id="cerbosCallId",
        timeout=2,
    )


@pytest.fixture(params=["authzen", "own"])
async def bus(request, cerbos, in_memory):
    policy = (
        authzen_policy(cerbos.url, timeout=2)
        if request.param == "authzen"
        else own_dialect(cerbos.url)
    )
    return await in_memory(policy, deadline=5)


async def test_it_allows_and_denies(bus):
    assert await bus.check(Call(tenant="acme", tokens=1000))
    decision = await bus.check(Call(tenant="acme", tokens=1001))
    assert decision.reason in {"denied", "too many tokens: 1001"}


async def test_its_output_is_the_reason_and_its_log_is_linked(cerbos, in_memory):
    bus = await in_memory(own_dialect(cerbos.url), deadline=5)
    (veto,) = (await bus.check(Call(tenant="acme", tokens=1200))).vetoes
    assert veto.reason == "too many tokens: 1200"
    assert veto.decision_id
    assert len(veto.decision_id) == 26


async def test_a_question_that_it_refuses_is_a_failure(bus):
    (veto,) = (await bus.check(Call(tenant=None, tokens=1))).vetoes
    assert veto.detail == "answered 400"


async def test_many_at_once_are_all_answered(bus):
    checks = (bus.check(Call(tenant="acme", tokens=n * 100)) for n in range(40))
    decisions = await asyncio.gather(*checks)
    assert [decision.allowed for decision in decisions] == [n * 100 <= 1000 for n in range(40)]
