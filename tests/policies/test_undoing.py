"""What a later veto makes void leaves no byte behind, and takes nothing from anybody else."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from stanchion import CircuitState, EventBus
from stanchion.events import QuotaThresholdReached
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, breaker, every_kind, quota, rate, slots, stored_bytes
from tests.policies.circuits import fail, state
from tests.regressions.looking import fields
from tests.servers import RealServer
from tests.waiting import eventually

KINDS = {policy.name: policy for policy in every_kind()}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


class Objector(Custom):
    """Is asked last, vetoes what has a model of that name, and says first that it was asked."""

    def __init__(self) -> None:
        super().__init__("objector", priority=1000)
        self.meanwhile: Any = None
        self.answer = self._objects

    async def _objects(self, event: Any) -> bool:
        if self.meanwhile is not None and event.model == "vetoed":
            await self.meanwhile()
        return event.model != "vetoed"


VETOED = Call(model="vetoed")
PROBED = "circuit:provider:-"
KEY = "stanchion:{default}:rate:calls:-"


def undos(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Get what is undone from now on, as it is sent."""
    sent: list[tuple[str, Any]] = []
    store = cast("Any", bus)._store
    original = store.give_back

    def give_back(permit: str, parts: Any) -> Any:
        sent.append((permit, parts))
        return original(permit, parts)

    monkeypatch.setattr(store, "give_back", give_back)
    return sent


async def remaining(bus: EventBus) -> list[int | None]:
    return [verdict.remaining for verdict in (await bus.peek(Call())).verdicts]


@each_kind
async def test_a_state_is_as_it_was_or_still_not_there(open_bus, kind):
    bus = await open_bus(kind, Objector())
    await bus.check(VETOED)
    assert not await stored_bytes(bus)
    assert await bus.check(Call())
    before = await stored_bytes(bus)
    assert len(before) > 0
    for _ in range(3):
        assert (await bus.check(VETOED)).policy == "objector"
        assert await stored_bytes(bus) == before


async def test_those_that_travel_together_are_undone_together(open_bus):
    bus = await open_bus(*every_kind(), Objector())
    assert await bus.check(Call())
    before = await stored_bytes(bus)
    vetoed = await asyncio.gather(*(bus.check(VETOED) for _ in range(20)))
    assert not any(vetoed)
    assert {decision.policy for decision in vetoed} >= {"objector"}
    assert await stored_bytes(bus) == before


@pytest.mark.parametrize("first", ["vetoed", "m1"])
async def test_of_those_that_travel_together_only_the_vetoed_are_undone(open_bus, first):
    bus = await open_bus(*every_kind()[:-2], Objector())
    before = await remaining(bus)
    events = [VETOED, Call(), VETOED, Call()]
    decisions = await asyncio.gather(
        *(bus.check(event) for event in (events if first == "vetoed" else events[::-1]))
    )
    assert sum(map(bool, decisions)) == 2
    left = [None if most is None else most - 2 for most in before]
    assert await remaining(bus) == left


@pytest.mark.parametrize("events", [[VETOED, Call()], [Call(), VETOED]], ids=["first", "last"])
async def test_who_travels_with_the_vetoed_keeps_its_slot_and_its_ticket(store_url, events):
    async with memory_bus(slots(), breaker(), Objector(), url=store_url) as alone:
        await alone.check(Call())
        expected = await fields(alone, "slots:slots:-"), await fields(alone, PROBED)
    async with memory_bus(slots(), breaker(), Objector(), url=store_url) as bus:
        await asyncio.gather(*(bus.check(event) for event in events))
        assert (await fields(bus, "slots:slots:-"), await fields(bus, PROBED)) == expected
        assert (await remaining(bus))[0] == 0, "of two, one is taken"


async def test_what_others_take_meanwhile_stays_theirs(open_shared):
    objector = Objector()
    bus, other = await open_shared(*every_kind(), objector), await open_shared(*every_kind())
    before = await remaining(other)
    permits: list[Any] = []

    async def meanwhile() -> None:
        permits.append(await other.admit(Call()))

    objector.meanwhile = meanwhile
    assert (await bus.check(VETOED)).policy == "objector"
    taken = [None if most is None else most - 1 for most in before]
    assert await remaining(other) == taken
    assert await other.settle(permits[0])


@each_kind
async def test_a_second_undo_changes_nothing(open_bus, monkeypatch, kind):
    bus = await open_bus(kind, Objector())
    await bus.check(Call())
    sent = undos(bus, monkeypatch)
    await bus.check(VETOED)
    [(permit, parts)] = sent
    before = await stored_bytes(bus)
    store = cast("Any", bus)._store
    for _ in range(2):
        assert await store.settle(permit, "undo", parts) == ("stale",)
        assert await stored_bytes(bus) == before


@each_kind
async def test_an_undo_that_found_others_there_is_done_once(open_shared, monkeypatch, kind):
    objector = Objector()
    bus, other = await open_shared(kind, objector), await open_shared(kind)
    sent = undos(bus, monkeypatch)

    async def meanwhile() -> None:
        await other.admit(Call())

    objector.meanwhile = meanwhile
    await bus.check(VETOED)
    [(permit, parts)] = sent
    before = await stored_bytes(bus)
    assert await cast("Any", bus)._store.settle(permit, "undo", parts) == ("stale",)
    assert await stored_bytes(bus) == before


@pytest.mark.parametrize("unsettled", ["charge", "refund"])
async def test_leases_that_have_ended_are_there_as_before(server: RealServer, unsettled):
    policies = (
        slots(limit=5),
        quota(lease="30s", unsettled=unsettled),
        quota("rolling", per="1h", rolling=True, lease="30s", unsettled=unsettled),
        rate("log", algorithm="sliding_log", per="30s"),
        breaker(lease="30s"),
    )
    async with memory_bus(*policies, Objector(), url=server.url) as bus:
        for _ in range(2):
            await bus.check(Call())
        await bus.clock.advance("10s")
        await bus.check(Call())
        await bus.clock.advance("25s")
        before = await stored_bytes(bus)
        assert (await bus.check(VETOED)).policy == "objector"
        assert await stored_bytes(bus) == before


async def test_what_has_been_told_is_not_taken_back(server: RealServer):
    policies = quota(limit=10, warn_at=[0.5]), breaker(open_for="30s", half_open_calls=1)
    async with memory_bus(*policies, Objector(), url=server.url) as bus:
        await fail(bus, 2, event=Call(tokens=0))
        await bus.clock.advance("31s")
        for _ in range(3):
            assert (await bus.check(Call(model="vetoed", tokens=6))).policy == "objector"
            assert (await state(bus)) is CircuitState.HALF_OPEN
            assert (await remaining(bus))[:2] == [9, 0], "as with one token and one probe taken"
        assert await bus.check(Call(tokens=6))
        await bus.recorder.wait_for(QuotaThresholdReached)
        assert len(bus.recorder.of(QuotaThresholdReached)) == 1, "each time it was the same window"


async def test_whoever_was_refused_meanwhile_is_told_that_it_may_ask_again(valkey, open_valkey):
    """What is kept of a refusal would else be gone by until it ends."""
    objector, limit = Objector(), rate(limit=1, per="1h")
    bus = await open_valkey(limit, objector)
    other = await open_valkey(limit, cache_denials=True)
    refused: list[Any] = []

    async def meanwhile() -> None:
        refused.append(await other.check(Call()))

    objector.meanwhile = meanwhile
    with valkey.control.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe("stanchion:{default}:wake")
        assert (await bus.check(VETOED)).policy == "objector"
        assert not refused[0]
        told = await eventually(ear.get_message, what="a message to others")
    assert told["data"] in {KEY, KEY.encode()}
    assert await bus.check(Call())
