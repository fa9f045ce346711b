"""Keys of ours that somebody else has written to, or another version of us."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from stanchion import CircuitState, Outcome, Vetoed
from stanchion.events import CircuitOpened
from stanchion.observers import Recorder
from stanchion.store.keys import Keyspace
from tests.faults.calls import (
    DEADLINE,
    NAMESPACE,
    PREFIX,
    Call,
    ask,
    breaker,
    bus_on,
    charged,
    in_use,
    quota,
    rate,
    slots,
    state,
)

if TYPE_CHECKING:
    from stanchion import Decision, EventBus
    from stanchion.policies import BuiltInPolicy
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer

#: One policy of each kind; all count calls that cost more than one, and settle to another cost.
KINDS: dict[str, BuiltInPolicy] = {
    "gcra": rate(cost="tokens"),
    "sliding_window": rate(cost="tokens", algorithm="sliding_window"),
    "sliding_log": rate(cost="tokens", algorithm="sliding_log"),
    "fixed_window": rate(cost="tokens", algorithm="fixed_window"),
    "quota": quota(),
    "rolling": quota(rolling=True, per="1h"),
    "slots": slots(cost="tokens"),
    "circuit": breaker(),
    "circuit by calls": breaker(window=10, minimum_calls=2),
}
SOUND = [f"sound{number}" for number in range(5)]


def keys_of(policy: BuiltInPolicy, who: str = "bad") -> tuple[str, str]:
    return Keyspace(NAMESPACE).keys(policy.kind, policy.name, who)


def dump(server: RealServer, *keys: str) -> list[Any]:
    """Get what is stored, byte for byte."""
    kept: list[Any] = []
    for key in keys:
        match server.control.type(key):
            case "string":
                kept.append(server.control.get(key))
            case "hash":
                kept.append(server.control.hgetall(key))
            case "zset":
                kept.append(server.control.zrange(key, 0, -1, withscores=True))
            case _:
                kept.append(None)
    return kept


async def make_state(bus: EventBus, who: str = "bad") -> None:
    """Leave state that has every field: something settled, something still held."""
    first = await bus.admit(Call(who=who, tokens=3))
    await bus.admit(Call(who=who, tokens=2))
    await bus.settle(first, Outcome.FAILURE)


async def is_corrupt_alone(
    bus: EventBus, server: RealServer, keys: tuple[str, ...], record: FaultRecord | None = None
) -> Decision:
    """See the bad subject denied, nothing of it touched, and others of the same call admitted."""
    before = dump(server, *keys)
    # Whether state was lost it asks by a script call of its own, when it is opened.
    await bus._parts.epochs.looked()
    evals = server.commandstats()["evalsha"]
    bad, *sound = await asyncio.gather(
        ask(bus, record, who="bad", tokens=2),
        *(ask(bus, record, who=who, tokens=2) for who in SOUND),
    )
    assert server.commandstats()["evalsha"] - evals == 1, "they travelled together"
    assert not bad.allowed
    assert bad.reason == "state_corrupt"
    assert bad.retry_after is None
    assert all(sound), [decision.reason for decision in sound]
    assert dump(server, *keys) == before
    assert (await bus.peek(Call(who="bad"))).reason == "state_corrupt"
    return bad


async def heal(bus: EventBus, policy: BuiltInPolicy) -> None:
    await bus.reset(policy.name, who="bad")
    assert await bus.check(Call(who="bad", tokens=2))
    await bus.reset(policy.name)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_of_another_type_denies_its_subject_alone(
    server: RealServer, kind: str, fault_record: FaultRecords
):
    """WRONGTYPE, in the state key."""
    record = fault_record(21, "a key of another type", server, deadline=DEADLINE)
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    async with bus_on(server.url, [policy]) as bus:
        for value in (("SET", key, "x"), ("LPUSH", key, "x"), ("ZADD", key, "1", "x")):
            server.execute(*value)
            server.execute("EXPIRE", key, 60)
            await is_corrupt_alone(bus, server, (key, aux), record)
            (told,) = [one async for one in bus.inspect(policy.name) if one.subject == "bad"]
            assert told.error is not None
            assert "WRONGTYPE" in told.error
            await heal(bus, policy)


@pytest.mark.parametrize("kind", ["sliding_log", "quota", "rolling", "slots", "circuit"])
async def test_an_aux_key_of_another_type_denies_its_subject_alone(
    valkey: RealServer, kind: str, fault_record: FaultRecords
):
    """WRONGTYPE, in the sorted set beside the state."""
    record = fault_record(21, "the sorted set of another type", valkey, deadline=DEADLINE)
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    async with bus_on(valkey.url, [policy]) as bus:
        permit = await bus.admit(Call(who="bad", tokens=2))
        valkey.execute("SET", aux, "x", "EX", 60)
        await is_corrupt_alone(bus, valkey, (key, aux), record)
        settlement = await bus.settle(permit, Outcome.FAILURE)
        assert set(settlement.statuses.values()) == {"state_corrupt"}
        assert valkey.control.get(aux) == "x"
        (told,) = [one async for one in bus.inspect(policy.name) if one.subject == "bad"]
        assert told.error is not None
        assert "aux" in told.error
        await heal(bus, policy)


@pytest.mark.parametrize("kind", ["gcra", "sliding_window", "fixed_window"])
async def test_marks_of_another_type_keep_a_settlement_from_counting(valkey: RealServer, kind: str):
    """Where the set beside the state is for settlements only, decisions go on."""
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    async with bus_on(valkey.url, [policy]) as bus:
        permit = await bus.admit(Call(who="bad", tokens=2))
        valkey.execute("SET", aux, "x", "EX", 60)
        before = dump(valkey, key, aux)
        settlement = await bus.settle(permit, tokens=9)
        assert settlement.statuses == {policy.name: "state_corrupt"}
        assert dump(valkey, key, aux) == before
        assert await bus.check(Call(who="bad", tokens=2))
        await heal(bus, policy)


@pytest.mark.parametrize("kind", KINDS)
async def test_any_garbled_field_denies_its_subject_alone(
    valkey: RealServer, kind: str, fault_record: FaultRecords
):
    """A field that is no number, field by field."""
    record = fault_record(21, "a field that is garbage", valkey, deadline=DEADLINE)
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    async with bus_on(valkey.url, [policy]) as bus:
        await make_state(bus)
        fields = sorted(cast("dict[str, str]", valkey.control.hgetall(key)))
        await heal(bus, policy)
        assert "at" in fields
        assert "spec" in fields
        for field in fields:
            if field == "ring":
                continue  # letters, of which those that are none count for nothing
            await make_state(bus)
            permit = await bus.admit(Call(who="bad", tokens=1))
            valkey.execute("HSET", key, field, "12x")
            await is_corrupt_alone(bus, valkey, (key, aux), record)
            before = dump(valkey, key, aux)
            settlement = await bus.settle(permit, Outcome.FAILURE)
            assert set(settlement.statuses.values()) == {"state_corrupt"}, field
            assert not await bus.renew(permit) or not permit.expires_at
            assert dump(valkey, key, aux) == before
            told = [one async for one in bus.inspect(policy.name) if one.subject == "bad"]
            if field not in {"state", "forced"}:
                assert told[0].error is not None, field
            await heal(bus, policy)


#: Kinds that read nothing of the declaration under which their state was made.
LENIENT = {"slots", "circuit", "circuit by calls", "sliding_log", "fixed_window"}
SPECS = ["", "no json", "12", '"gcra"', "null", "[]", "{}", '{"kind":12}', "true"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_declaration_that_cannot_be_read_denies_its_subject_alone(
    valkey: RealServer, kind: str
):
    """In the stored declaration, also where it lacks what the kind needs."""
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    lacking = f'{{"kind":"{policy.kind.script_name}"}}'
    async with bus_on(valkey.url, [policy]) as bus:
        for spec in [*SPECS, lacking]:
            await make_state(bus)
            valkey.execute("HSET", key, "spec", spec)
            if spec == lacking and kind in LENIENT:
                # What it used is in its own units: a declaration as of now can take it over.
                assert await bus.check(Call(who="bad", tokens=2))
            else:
                await is_corrupt_alone(bus, valkey, (key, aux))
            await heal(bus, policy)


@pytest.mark.parametrize("version", ["2", "0", "", "one", None])
@pytest.mark.parametrize("kind", KINDS)
async def test_state_of_another_version_is_denied_and_never_misread(
    valkey: RealServer, kind: str, version: str | None, fault_record: FaultRecords
):
    """The schema's number is looked at first."""
    record = fault_record(30, "state with another schema", valkey, deadline=DEADLINE)
    policy = KINDS[kind]
    key, aux = keys_of(policy)
    async with bus_on(valkey.url, [policy]) as bus:
        await make_state(bus)
        permit = await bus.admit(Call(who="bad"))
        if version is None:
            valkey.execute("HDEL", key, "v")
        else:
            valkey.execute("HSET", key, "v", version)
        await is_corrupt_alone(bus, valkey, (key, aux), record)
        settlement = await bus.settle(permit)
        assert set(settlement.statuses.values()) == {"state_corrupt"}
        (told,) = [one async for one in bus.inspect(policy.name) if one.subject == "bad"]
        assert told.error is not None
        assert "schema" in told.error
        await heal(bus, policy)


async def test_one_corrupt_policy_leaves_the_rest_of_its_chain_uncharged(store_url: str):
    """The veto of a corrupt state is a veto like any other; fakeredis agrees."""
    async with bus_on(store_url) as bus:
        store: Any = bus._store
        key, _ = keys_of(KINDS["slots"], "acme")
        await store.execute("SET", key, "x", "EX", "60")
        decision = await bus.check(Call())
        assert [verdict.reason for verdict in decision.verdicts] == [
            "ok",
            "ok",
            "state_corrupt",
            "ok",
        ]
        assert decision.policy == "slots"
        assert [one.policy async for one in bus.inspect()] == ["slots"]
        await bus.reset("slots", who="acme")
        assert await bus.check(Call())


async def test_a_line_of_another_type_denies_those_who_would_stand_in_it(valkey: RealServer):
    """A request that waits needs the line's keys; others of the same call do not."""
    for key in ("order", "alive"):
        async with bus_on(valkey.url, [slots(limit=1)]) as bus:
            assert await bus.check(Call(who="other"))
            valkey.execute("SET", f"{PREFIX}slots.{key}:slots:bad", "x", "EX", 60)
            waiting, passing, elsewhere = await asyncio.gather(
                bus.admit(Call(who="bad"), wait=1),
                bus.check(Call(who="sound")),
                bus.check(Call(who="other")),
                return_exceptions=True,
            )
            assert isinstance(waiting, Vetoed)
            assert waiting.decision.reason == "state_corrupt"
            assert passing
            assert getattr(elsewhere, "reason", None) == "no_free_slot"
        valkey.execute("FLUSHALL")


async def test_an_override_that_cannot_be_read_denies_its_subject_alone(valkey: RealServer):
    """No limit can be told, and the declared one may be the wrong one."""
    policy = KINDS["quota"]
    async with bus_on(valkey.url, [policy]) as bus:
        for text in ("", "x", "5", "null", "{}", '{"limit":"many"}', '{"limit":-1}'):
            valkey.execute("HSET", f"{PREFIX}overrides", "quota:tokens:bad", text)
            await is_corrupt_alone(bus, valkey, keys_of(policy))
        await bus.override("tokens", 7, who="bad")
        assert (await bus.check(Call(who="bad"))).verdicts[0].limit == 7
        await bus.override("tokens", None, who="bad")


async def test_settlements_that_travel_with_a_corrupt_one_are_settled(valkey: RealServer):
    """In the same call, and the same permit's other policies too."""
    async with bus_on(valkey.url) as bus:
        permits = [await bus.admit(Call(who=who)) for who in ("bad", *SOUND)]
        valkey.execute("HSET", f"{PREFIX}quota:tokens:bad", "held", "12x")
        with valkey.counting() as counted:
            bad, *sound = await asyncio.gather(*(bus.settle(permit) for permit in permits))
        assert counted["evalsha"] + counted["eval"] <= 2
        assert all(sound)
        assert bad.statuses["tokens"] == "state_corrupt"
        assert bad.statuses["slots"] == bad.statuses["provider"] == "settled"
        assert in_use(valkey, "bad") == 0
        assert state(valkey, "quota", "tokens", "bad")["held"] == "12x"


async def test_a_corrupt_circuit_keeps_nobody_from_learning_of_the_others(valkey: RealServer):
    """Reading all circuits after a gap passes over what cannot be read."""
    async with bus_on(valkey.url) as bus:
        for who in ("bad", "worse", "worst", "well"):
            await bus.force("provider", CircuitState.OPEN, who=who)
    valkey.execute("HSET", f"{PREFIX}circuit:provider:bad", "state", "ajar")
    valkey.execute("HDEL", f"{PREFIX}circuit:provider:worse", "seq")
    valkey.execute("SET", f"{PREFIX}circuit:provider:worst", "x", "EX", 60)
    recorder = Recorder()
    async with bus_on(valkey.url, observers=[recorder]):
        assert (await recorder.wait_for(CircuitOpened)).subject == "well"


async def test_an_index_of_circuits_of_another_type_keeps_no_circuit_from_changing(
    valkey: RealServer,
):
    """The shared index is for those who look; no decision needs it."""
    async with bus_on(valkey.url, [quota(), breaker(consecutive_failures=1)]) as bus:
        valkey.execute("SET", f"{PREFIX}circuits", "x", "EX", 60)
        permit = await bus.admit(Call())
        assert await bus.settle(permit, Outcome.FAILURE)
        assert (await bus.check(Call())).reason == "circuit_open"
        assert (charged(valkey), in_use(valkey)) == (1, 0)
        assert state(valkey, "circuit", "provider")["state"] == "open"
