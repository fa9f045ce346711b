"""`max_subjects`: how many subjects of a policy may have state, and who is one too many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, ConfigError, EventBus, Outcome, Permit, Verdict
from stanchion.policies import BuiltInPolicy
from stanchion.testing import START_US, memory_bus
from tests.busses import Call, Custom, breaker, command, every_kind, quota, rate, slots, snapshot
from tests.policies.limits import admitted, vetoed
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.servers import RealServer

KINDS = {
    policy.name: policy.model_copy(update={"by": "tenant", "max_subjects": 2})
    for policy in every_kind()
    if isinstance(policy, BuiltInPolicy)
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
INDEX = "stanchion:{test}:subjects:"


def of(tenant: str) -> Call:
    return Call(tenant=tenant)


async def listed(bus: EventBus, policy: str, prefix: str = INDEX) -> dict[str, int]:
    """Get what the index of a policy says: its subjects, and when the state of each ends."""
    rows = await command(bus, "ZRANGE", f"{prefix}{policy}", "0", "-1", "WITHSCORES")
    flat = [x for row in rows for x in row] if rows and isinstance(rows[0], list | tuple) else rows
    return {flat[at].decode(): int(float(flat[at + 1])) for at in range(0, len(flat), 2)}


async def test_on_every_store_each_kind_knows_who_is_one_too_many(store_url: str):
    for kind in KINDS.values():
        async with memory_bus(kind, url=store_url, namespace=kind.name) as bus:
            for tenant in ("a", "b"):
                await admitted(bus, of(tenant))
            before = await snapshot(bus)
            peeked = await bus.peek(of("c"))
            decision = await vetoed(bus, of("c"))
            assert peeked.verdicts == decision.verdicts
            [verdict] = decision.verdicts
            assert (verdict.reason, verdict.limit, verdict.remaining) == ("too_many_subjects", 2, 0)
            assert verdict.retry_after is not None
            assert verdict.retry_after > 0
            assert await snapshot(bus) == before
            # Whoever has state is decided about as ever.
            await admitted(bus, of("a"))
            assert await bus.reset(kind.name, tenant="b") == 1
            await admitted(bus, of("c"))
            assert (await vetoed(bus, of("b"))).reason == "too_many_subjects"
            prefix = f"stanchion:{{{kind.name}}}:subjects:"
            assert (await listed(bus, kind.name, prefix)).keys() == {"a", "c"}


async def test_the_wait_is_until_the_first_state_ends_to_the_microsecond(store_url: str):
    async with memory_bus(slots(by="tenant", max_subjects=2, lease="1m"), url=store_url) as bus:
        await admitted(bus, of("a"))
        await bus.clock.advance(10)
        await admitted(bus, of("b"))
        wait = (await vetoed(bus, of("c"))).retry_after
        ends = await listed(bus, "slots")
        assert wait == pytest.approx(51.0) == (ends["a"] - bus.clock.now_us) / 1e6
        await bus.clock.set_us(ends["a"] - 1)
        assert (await vetoed(bus, of("c"))).retry_after == pytest.approx(1e-6)
        # Its member is still there, and counts no more.
        await bus.clock.set_us(ends["a"])
        await admitted(bus, of("c"))
        assert (await listed(bus, "slots")).keys() == {"b", "c"}


async def test_where_the_bound_was_lowered_all_that_are_too_many_have_to_end(store_url: str):
    async with memory_bus(slots(by="tenant", max_subjects=9, lease="1m"), url=store_url) as bus:
        for tenant in "abcd":
            await admitted(bus, of(tenant))
            await bus.clock.advance(1)
        bus.unregister("slots")
        bus.register(slots(by="tenant", max_subjects=2, lease="1m"))
        ends = await listed(bus, "slots")
        wait = (await vetoed(bus, of("e"))).retry_after
        assert wait == pytest.approx((ends["c"] - bus.clock.now_us) / 1e6)
        await admitted(bus, of("d"))


async def test_those_who_travel_together_count_each_other(store_url: str):
    async with memory_bus(rate(by="tenant", max_subjects=3), url=store_url) as bus:
        decisions = await asyncio.gather(*(bus.check(of(f"t{n}")) for n in range(20)))
        assert [d.allowed for d in decisions] == [True] * 3 + [False] * 17
        assert {d.reason for d in decisions[3:]} == {"too_many_subjects"}
        assert {d.retry_after for d in decisions[3:]} == {3601.0}
        again = await asyncio.gather(*(bus.check(of(f"t{n}")) for n in range(20)))
        assert [d.allowed for d in again] == [True] * 3 + [False] * 17


async def test_all_of_a_chain_is_vetoed_and_nothing_of_it_charged():
    chain = rate("everybody"), rate("each", by="tenant", max_subjects=1), slots("seats")
    async with memory_bus(*chain) as bus:
        await admitted(bus, of("a"))
        before = await snapshot(bus)
        assert (await vetoed(bus, of("b"))).policy == "each"
        assert await snapshot(bus) == before


async def test_in_shadow_mode_it_is_told_and_nothing_is_kept_of_who_is_too_many():
    shadow = rate("each", by="tenant", max_subjects=1, mode="shadow")
    async with memory_bus(shadow, rate("everybody")) as bus:
        await admitted(bus, of("a"))
        decision = await bus.check(of("b"))
        assert decision.allowed
        [first, _] = decision.verdicts
        assert (first.allowed, first.reason) == (False, "too_many_subjects")
        assert (await listed(bus, "each")).keys() == {"a"}
        assert not await command(bus, "EXISTS", "stanchion:{test}:rate:each:b")


@each_kind
async def test_settling_and_renewing_move_the_end_with_the_life_of_the_state(kind: Any):
    async with memory_bus(kind) as bus:
        permit = await admitted(bus, of("a"))
        await bus.clock.advance(5)
        if permit.leased:
            await bus.renew(permit)
        # Another process, where nothing is declared.
        elsewhere = Permit.parse(str(permit))
        assert elsewhere == permit
        bus.unregister(kind.name)
        costs = {} if kind.name in {"breaker", "slots"} else {permit.holds[0].amounts[0][0]: 3}
        assert await bus.settle(elsewhere, Outcome.SUCCESS, **costs)
        [key] = [
            key
            for key in await snapshot(bus)
            if key.endswith(f":{kind.name}:a") and "." not in key.split("}:")[1].split(":")[0]
        ]
        left_us = await command(bus, "PTTL", key) * 1000
        ends = (await listed(bus, kind.name))["a"]
        # A real second or two has passed of its life, and none of the test's.
        assert 0 <= ends - bus.clock.now_us - left_us < 30_000_000


@each_kind
async def test_what_a_later_veto_undoes_leaves_the_index_as_it_was(store_url: str, kind: Any):
    last = Custom("last", priority=1000)
    async with memory_bus(kind, last, url=store_url) as bus:
        last.answer = False
        assert (await vetoed(bus, of("a"))).policy == "last"
        assert not await snapshot(bus, "stanchion:{test}:*:*")
        last.answer = True
        await admitted(bus, of("a"))
        key = f"{INDEX}{kind.name}"
        before = await snapshot(bus, key)
        last.answer = False
        for tenant in ("a", "b"):
            assert (await vetoed(bus, of(tenant))).policy == "last"
            assert {k: v for k, (v, _) in (await snapshot(bus, key)).items()} == {
                k: v for k, (v, _) in before.items()
            }


async def test_a_waiter_comes_again_when_there_may_be_room(open_valkey):
    policy = slots(by="tenant", max_subjects=1, lease="0.2s")
    bus = await open_valkey(policy)
    await admitted(bus, of("a"))
    # Nobody stands in the line of a subject that may not be.
    waiting = asyncio.create_task(bus.admit(of("b"), wait=20))
    asked = asyncio.create_task(bus.admit(of("c"), wait=0.05))
    await asyncio.gather(asked, return_exceptions=True)
    assert not await command(bus, "KEYS", "*:slots.order:*")
    assert (await waiting).id


async def test_a_waiter_of_a_new_subject_takes_its_place_among_subjects():
    async with memory_bus(
        slots("seats", limit=1), rate("each", by="tenant", max_subjects=1)
    ) as bus:
        permit = await admitted(bus, of("a"))
        waiting = [asyncio.create_task(bus.admit(of(name), wait=0.3)) for name in "ab"]
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await listed(bus, "each")).keys() == {"a"}
        await bus.settle(permit)


async def test_units_are_taken_ahead_only_for_those_who_may_be(open_valkey):
    policy = rate(by="tenant", limit=1000, prefetch=10, max_subjects=2)
    bus = await open_valkey(policy)
    for tenant in ("a", "b", "a", "b"):
        assert await bus.check(of(tenant))
    decision = await vetoed(bus, of("c"))
    assert (decision.reason, decision.verdicts[0].limit) == ("too_many_subjects", 2)
    keys = {key.decode() for key in await command(bus, "KEYS", "*:calls:*")}
    assert keys == {f"stanchion:{{default}}:rate:calls:{name}" for name in "ab"}


async def test_a_local_share_has_the_bound_in_each_process(valkey: RealServer):
    policy = rate(by="tenant", max_subjects=2, on_outage="local")
    url = "redis://127.0.0.1:1/0"
    async with EventBus.from_url(url, policies=[policy], processes=2, deadline=0.2) as bus:
        decisions = [await bus.check(of(tenant)) for tenant in "abc"]
    assert [decision.allowed for decision in decisions] == [True, True, False]
    assert decisions[2].reason == "too_many_subjects"


async def test_after_a_loss_it_counts_from_nothing_and_subjects_begin_by_their_rule(store_url: str):
    policy = rate(by="tenant", max_subjects=1, cold_start="spent")
    async with memory_bus(policy, url=store_url) as bus:
        await eventually(lambda: command(bus, "EXISTS", "stanchion:{test}:epoch"))
        await admitted(bus, of("a"))
        keys = await command(bus, "KEYS", "stanchion:{test}:*")
        await command(bus, "DEL", *[key.decode() for key in keys])
        assert (await vetoed(bus, of("b"))).reason == "limit_reached"
        await bus.clock.advance("1m")
        await admitted(bus, of("b"))
        assert (await vetoed(bus, of("a"))).reason == "too_many_subjects"


async def test_each_shard_has_a_bound_and_an_index_of_its_own(valkey: RealServer):
    policy = rate(by="tenant", max_subjects=2)
    options = {"shard_by": "tenant", "shards": 3}
    async with EventBus.from_url(valkey.url, policies=[policy], **options) as bus:
        decisions = await asyncio.gather(*(bus.check(of(f"t{n}")) for n in range(40)))
        assert sum(map(bool, decisions)) == 6
        assert len(await command(bus, "KEYS", "*:subjects:calls")) == 3
        [one] = [d for d in decisions if d][:1]
        assert one.permit is not None
        assert await bus.settle(Permit.parse(str(one.permit)), calls=3)
        assert await bus.reset("calls") == 6
        assert not await command(bus, "KEYS", "*:subjects:*")


async def test_an_operator_may_make_one_more_and_a_provider_may_not():
    async with memory_bus(
        breaker(by="tenant", max_subjects=1), rate(by="tenant", max_subjects=1)
    ) as bus:
        await admitted(bus, of("a"))
        await bus.force("provider", CircuitState.FORCED_OPEN, tenant="b")
        assert (await vetoed(bus, of("b"))).policy == "provider"
        assert (await listed(bus, "provider")).keys() == {"a", "b"}
        assert not await bus.sync("calls", remaining=0, tenant="b")
        assert await bus.sync("calls", remaining=0, tenant="a")
        assert (await listed(bus, "calls")).keys() == {"a"}


async def test_a_state_from_before_the_bound_is_let_in_and_counts_once_it_is_written():
    async with memory_bus(rate(by="tenant")) as bus:
        for tenant in "abc":
            await admitted(bus, of(tenant))
        bus.unregister("calls")
        bus.register(rate(by="tenant", max_subjects=1))
        for tenant in "ab":
            await admitted(bus, of(tenant))
        assert (await listed(bus, "calls")).keys() == {"a", "b"}
        assert (await vetoed(bus, of("d"))).reason == "too_many_subjects"
        await admitted(bus, of("c"))


async def test_an_index_that_cannot_be_read_lets_nobody_new_in(store_url: str):
    async with memory_bus(rate(by="tenant", max_subjects=5), url=store_url) as bus:
        await admitted(bus, of("a"))
        await command(bus, "SET", f"{INDEX}calls", "x", "EX", "60")
        assert (await vetoed(bus, of("b"))).reason == "state_corrupt"
        await admitted(bus, of("a"))
        await command(bus, "DEL", f"{INDEX}calls")
        await admitted(bus, of("b"))
        assert (await listed(bus, "calls")).keys() == {"b"}


async def test_whoever_does_not_declare_it_has_no_index_and_no_longer_permit():
    async with memory_bus(*every_kind()) as bus:
        permit = await admitted(bus)
        assert not await command(bus, "KEYS", "*:subjects:*")
        assert bus.clock.now_us == START_US
        assert not any(hold.bounded for hold in Permit.parse(str(permit)).holds)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2"])
def test_it_is_a_whole_number_from_1(wrong: object):
    with pytest.raises(ConfigError, match="max_subjects"):
        rate(by="tenant", max_subjects=wrong)


@pytest.mark.parametrize("make", [rate, quota, slots, breaker])
def test_it_needs_subjects(make: Any):
    with pytest.raises(ConfigError, match=r"max_subjects=2: needs by"):
        make(max_subjects=2)


def test_the_verdict_is_one_of_the_reasons():
    assert Verdict("p", allowed=False, reason="too_many_subjects").reason == "too_many_subjects"
