"""A namespace that is spread over shards: what is asked where, and in how many calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from stanchion import ConfigError, Event, EventBus, Outcome, Permit, Verdict
from stanchion.store.keys import Keyspace, subject_of, tag_of
from stanchion.store.sharding import Sharding
from tests.faults.verbs import every_verb
from tests.sharding.calls import (
    NAMESPACE,
    SHARDS,
    SPACE,
    Call,
    breaker,
    chain,
    everyone,
    in_shard,
    quota,
    rate,
    remaining,
    shard_of,
    slots,
    spread_bus,
)

if TYPE_CHECKING:
    from tests.servers import RealServer
    from tests.topologies import Cluster


def keys_of(server: RealServer) -> list[str]:
    return cast("list[str]", server.control.keys("*"))


def script_calls(server: RealServer) -> int:
    stats = cast("dict[str, dict[str, int]]", server.control.info("commandstats"))
    return stats.get("cmdstat_evalsha", {}).get("calls", 0)


@pytest.mark.parametrize("shard_by", ["who", ("tenant", "who")])
async def test_every_verb_works_where_subjects_are_spread(server: RealServer, shard_by: str):
    await every_verb(server.url, shard_by=shard_by, shards=SHARDS)


async def test_every_verb_works_where_subjects_are_spread_over_nodes(cluster: Cluster):
    await every_verb(cluster.url, shard_by="who")


async def test_tenants_are_spread_over_the_nodes_of_a_cluster(cluster: Cluster):
    async with spread_bus(cluster.url, chain()) as bus:
        events = [Call(tenant=f"tenant-{n}", model=f"model-{n}") for n in range(100)]
        decisions = await asyncio.gather(*(bus.check(event) for event in events))
    assert not [one.vetoes for one in decisions if not one.allowed]
    held = [keys_of(node) for node in cluster.nodes]
    assert all(len(keys) > 50 for keys in held)
    tags = {tag_of(key) for keys in held for key in keys} - {NAMESPACE}
    assert tags == {space.tag for space in SPACE.everywhere if space.shard}
    assert len({key_slot(tag.encode()) for tag in tags}) == SHARDS


@pytest.mark.parametrize(("policies", "calls"), [([rate(), quota()], 1), (chain(), 2)])
async def test_each_change_of_shard_is_a_call_more(
    server: RealServer, policies: list[Any], calls: int
):
    async with spread_bus(server.url, policies) as bus:
        assert await bus.check(Call())
        before = script_calls(server)
        for _ in range(50):
            assert await bus.check(Call())
        # Some few others look after the state.
        assert (script_calls(server) - before) // 50 == calls


async def test_a_veto_of_a_later_shard_gives_back_what_the_earlier_ones_took(server: RealServer):
    event = Call(tokens=7)
    async with spread_bus(server.url, [rate(), quota(), slots(limit=1), everyone()]) as bus:
        held = await bus.check(event)
        before = await remaining(bus, event)
        for _ in range(3):
            decision = await bus.check(event)
            assert (decision.policy, decision.reason) == ("in-flight", "no_free_slot")
            assert [verdict.policy for verdict in decision.verdicts] == [
                "calls",
                "tokens",
                "in-flight",
            ]
        assert await remaining(bus, event) == before
        assert held.permit is not None
        assert await bus.settle(held.permit, tokens=7)
        assert await bus.check(event)


async def test_shards_after_a_veto_are_not_asked(server: RealServer):
    async with spread_bus(server.url, [rate(limit=1), slots(), everyone()]) as bus:
        assert await bus.check(Call())
        before = {key: server.control.dump(key) for key in keys_of(server) if ":slots" in key}
        assert (await bus.check(Call())).policy == "calls"
        assert before == {key: server.control.dump(key) for key in before}


async def test_a_policy_by_none_of_the_fields_stays_with_the_namespace(server: RealServer):
    async with spread_bus(server.url, [everyone(limit=5)]) as bus:
        decisions = [await bus.check(Call(tenant=f"tenant-{n}")) for n in range(7)]
    assert [bool(one) for one in decisions] == [True] * 5 + [False] * 2
    assert {tag_of(key) for key in keys_of(server)} == {NAMESPACE}


async def test_a_limit_of_one_tenant_holds_over_buses_and_concurrency(server: RealServer):
    policies = [rate(limit=50, per="1d", burst=50)]
    async with spread_bus(server.url, policies) as one, spread_bus(server.url, policies) as other:
        for tenant in (in_shard(1), in_shard(2), in_shard(2, stem="other")):
            asked = [bus.check(Call(tenant=tenant)) for bus in (one, other) for _ in range(60)]
            assert sum(map(bool, await asyncio.gather(*asked))) == 50


async def test_a_permit_of_several_shards_is_settled_renewed_and_given_back_anywhere(
    server: RealServer,
):
    event = Call(tokens=10)
    async with (
        spread_bus(server.url, chain()) as bus,
        spread_bus(server.url, []) as other,
    ):
        before = await remaining(bus, event)
        decision = await bus.check(event)
        permit = Permit.parse(str(decision.permit))
        assert {hold.shard for hold in permit.holds} == {shard_of("acme"), shard_of("m1")}
        assert await other.renew(permit)
        settled = await other.settle(permit, tokens=4)
        assert dict(settled.statuses) == dict.fromkeys(
            ("calls", "tokens", "in-flight", "provider"), "settled"
        )
        after = await remaining(bus, event)
        assert before["tokens"] is not None
        assert after["tokens"] == before["tokens"] - 4
        assert after["in-flight"] == before["in-flight"]
        again = await bus.settle(permit, tokens=4)
        assert {*again.stale} >= {"tokens", "in-flight", "provider"}
        assert await remaining(bus, event) == after


async def test_a_guard_settles_and_a_cancelled_one_gives_back_in_every_shard(server: RealServer):
    event = Call(tokens=10)
    async with spread_bus(server.url, chain()) as bus:
        async with bus.guard(event) as permit:
            permit.charge(tokens=3)
        before = await remaining(bus, event)
        entered = asyncio.Event()

        async def work() -> None:
            async with bus.guard(event) as permit:
                permit.charge(tokens=0)
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        after = await remaining(bus, event)
    assert {**after, "calls": None} == {**before, "calls": None}


async def test_a_failing_model_is_opened_for_every_tenant_and_no_other_model(server: RealServer):
    async with spread_bus(server.url, [rate(), breaker()]) as bus:
        for number in range(3):
            decision = await bus.check(Call(tenant=f"tenant-{number}"))
            assert decision.permit is not None
            await bus.settle(decision.permit, Outcome.FAILURE)
        assert (await bus.check(Call(tenant="other"))).reason == "circuit_open"
        assert await bus.check(Call(tenant="other", model="m2"))


async def test_a_veto_by_a_custom_policy_gives_back_every_shard(server: RealServer):
    class Never:
        name, on, priority = "never", Call, 200

        async def evaluate(self, event: Event) -> Verdict:
            del event
            return Verdict(self.name, allowed=False, reason="no")

    async with spread_bus(server.url, chain()) as bus:
        before = await remaining(bus, Call(tokens=5))
        bus.register(Never())
        assert (await bus.check(Call(tokens=5))).policy == "never"
        bus.unregister("never")
        assert await remaining(bus, Call(tokens=5)) == before


async def test_a_private_subject_is_found_again_by_its_values(server: RealServer):
    async with spread_bus(server.url, [rate(limit=1, private=True)]) as bus:
        assert await bus.check(Call(tenant="Ann Example"))
        assert not await bus.check(Call(tenant="Ann Example"))
        assert await bus.reset("calls", tenant="Ann Example") == 1
        assert await bus.check(Call(tenant="Ann Example"))
        assert not [key for key in keys_of(server) if "Ann" in key]


async def test_reset_by_some_values_finds_subjects_in_all_shards(server: RealServer):
    policy = rate(by=("model", "tenant"), limit=1)
    async with spread_bus(server.url, [policy]) as bus:
        for number in range(20):
            assert await bus.check(Call(tenant=f"tenant-{number}", model=f"m{number % 2}"))
        assert await bus.reset("calls", model="m1") == 10
        assert len([state async for state in bus.inspect("calls")]) == 10
        assert await bus.reset("calls") == 10


def test_the_first_field_that_a_policy_counts_by_decides():
    sharding = Sharding(("tenant", "model"))
    assert sharding.field_among(("model", "tenant")) == "tenant"
    assert sharding.field_among(("model",)) == "model"
    assert sharding.field_among(("user",)) is None


@given(st.text() | st.none(), st.text() | st.none())
def test_equal_subjects_share_a_shard_and_no_text_makes_a_tag(one: str | None, other: str | None):
    first, second = (SPACE.of(("tenant",), (value,)) for value in (one, other))
    tags = {space.tag for space in SPACE.everywhere}
    assert {first.tag, second.tag} <= tags - {NAMESPACE}
    keys = [
        space.keys(rate().kind, "calls", subject_of([value]))[0]
        for space, value in ((first, one), (second, other))
    ]
    assert all(tag_of(key) in tags and key.count("{") == key.count("}") == 1 for key in keys)
    assert (keys[0] == keys[1]) == (subject_of([one]) == subject_of([other]))


async def test_a_permit_of_a_shard_that_there_is_not_is_refused():
    async with (
        spread_bus("memory://", [rate()]) as bus,
        EventBus.from_url("memory://", policies=[rate()], namespace=NAMESPACE) as unspread,
    ):
        permit = (await bus.check(Call())).permit
        assert permit is not None
        with pytest.raises(ConfigError, match="permit shard"):
            await unspread.settle(permit)


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ({"shard_by": "tenant", "shards": 1}, "shards"),
        ({"shard_by": "tenant", "shards": 5000}, "shards"),
        ({"shard_by": "tenant", "shards": 2.5}, "shards"),
        ({"shards": 8}, "shard_by"),
        ({"shard_by": ("tenant", "tenant")}, "shard_by"),
        ({"shard_by": ("tenant", "")}, "shard_by"),
        ({"shard_by": (7,)}, "shard_by"),
    ],
)
def test_what_cannot_be_a_spread_is_refused(terms: dict[str, object], text: str):
    with pytest.raises(ConfigError, match=text):
        EventBus.from_url("memory://", **terms)  # pyright: ignore[reportArgumentType]


def test_names_of_an_unspread_namespace_have_its_name_for_a_tag():
    assert Keyspace("plain").keys(rate().kind, "calls", "acme") == (
        "stanchion:{plain}:rate:calls:acme",
        "stanchion:{plain}:rate.settled:calls:acme",
    )
