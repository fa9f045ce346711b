"""What travels in one call is decided one by one all the same."""

from __future__ import annotations

import asyncio

from tests.busses import Call, calls_of_scripts, rate, warm


async def test_the_same_question_is_answered_anew_once_another_has_taken_something(open_bus):
    bus = await open_bus(rate(cost="tokens"))
    asked = (6, 2, 6, 3, 6, 1)
    decisions = await asyncio.gather(*(bus.check(Call(tokens=tokens)) for tokens in asked))
    told = [(decision.allowed, decision.verdicts[0].remaining) for decision in decisions]
    assert told == [(False, 5), (True, 3), (False, 3), (True, 0), (False, 0), (False, 0)]


async def test_many_that_ask_the_same_are_told_apart(open_bus):
    bus = await open_bus(rate())
    decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(8)))
    told = [(decision.allowed, decision.verdicts[0].remaining) for decision in decisions]
    assert told == [*((True, left) for left in (4, 3, 2, 1, 0)), *[(False, 0)] * 3]
    ids = {decision.permit.id for decision in decisions if decision.permit}
    assert len(ids) == 5


async def test_a_call_is_bounded_in_requests_and_in_bytes(open_shared, server):
    short = rate("short", by="tenant", limit=9)
    by = tuple(f"metadata.{letter}" for letter in "abcdefgh")
    bus = await open_shared(short)
    await warm(bus, server, Call(tenant="warm"))
    with server.counting() as counted:
        events = [Call(tenant=f"t{number}") for number in range(33)]
        assert all(await asyncio.gather(*(bus.check(event) for event in events)))
    assert calls_of_scripts(counted) == 2
    for name in ("long", "longer"):
        bus.register(rate(name, by=by, limit=9))
    with server.counting() as counted:
        wide = [
            {letter: f"{number}".rjust(100, letter) for letter in "abcdefgh"}
            for number in range(30)
        ]
        events = [Call(tenant="t", metadata=fields) for fields in wide]
        assert sum(map(bool, await asyncio.gather(*(bus.check(event) for event in events)))) == 9
    # Thirty times four keys of 0.8 kB do not fit into 64 kB.
    assert calls_of_scripts(counted) == 2
