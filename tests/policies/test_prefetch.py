"""What a process takes ahead of a limit, spends without asking, and gives back."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from stanchion import ConfigError, Outcome, Permit, Quota, RateLimit
from stanchion.policies.binding import Binding
from stanchion.pools import Pool
from stanchion.store.keys import Keyspace, Kind
from stanchion.store.protocol import Operation, Part, Reply, Request
from stanchion.store.redis_store import parts_of
from stanchion.testing import memory_bus
from tests.busses import Call, Custom, calls_of_scripts, command, quota, rate, values
from tests.policies.limits import admitted, vetoed
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from stanchion import EventBus
    from tests.busses import Buses
    from tests.servers import RealServer


def ahead(**fields: Any) -> RateLimit:
    """Make a rate of which 100 are taken at a time."""
    return rate(**{"limit": 1000, "prefetch": 100, **fields})


def fixed(**fields: Any) -> RateLimit:
    return ahead(algorithm="fixed_window", per="1h", **fields)


def budget(**fields: Any) -> Quota:
    """Make a budget of 1000 tokens a day, of which 100 are reserved at a time."""
    return quota(**{"prefetch": 100, **fields})


async def charged(bus: EventBus, policy: str = "tokens") -> tuple[int, int]:
    """Get what is used of a quota, and what is held."""
    state = await values(bus, policy)
    return int(state["used"]), int(state["held"])


async def used(bus: EventBus, policy: str = "calls") -> int:
    return int((await values(bus, policy))["used"])


# ---- spending


@pytest.mark.parametrize("make", [ahead, fixed, lambda: budget(cost=1)])
async def test_what_was_taken_in_one_call_is_spent_without_another(
    open_valkey: Buses, valkey: RealServer, make: Callable[[], Any]
):
    bus = await open_valkey(make())
    await admitted(bus)
    with valkey.counting() as counted:
        for _ in range(40):
            await admitted(bus)
    assert calls_of_scripts(counted) == 0
    with valkey.counting() as counted:
        for _ in range(400):
            await admitted(bus)
            await asyncio.sleep(0)
    # Half of it is taken at a time; a reservation is told when it is over, besides.
    assert 1 <= calls_of_scripts(counted) <= 20


@pytest.mark.parametrize("make", [lambda: fixed(limit=95), lambda: budget(cost=1, limit=95)])
async def test_callers_at_once_get_all_of_the_limit_and_no_more(
    open_valkey: Buses, make: Callable[[], Any]
):
    bus = await open_valkey(make())
    decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(300)))
    assert sum(decision.allowed for decision in decisions) == 95
    assert {decision.reason for decision in decisions} <= {None, make().full}


async def test_a_thousand_callers_at_once_with_little_taken_ahead_are_answered_in_time(
    open_valkey: Buses,
):
    bus = await open_valkey(fixed(limit=5000, prefetch=10))
    began = time.monotonic()
    decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(1000)))
    assert all(decisions)
    assert time.monotonic() - began < 1


async def test_callers_that_come_and_go_while_more_is_taken_all_get_an_answer(open_valkey: Buses):
    bus = await open_valkey(fixed(limit=10**6, prefetch=2))

    async def one_after_another(turns: int) -> int:
        count = 0
        for _ in range(40):
            for _ in range(5):
                count += (await bus.check(Call())).allowed
            for _ in range(turns):
                await asyncio.sleep(0)
        return count

    assert sum(await asyncio.gather(*map(one_after_another, range(12)))) == 12 * 40 * 5


@pytest.mark.parametrize("make", [fixed, lambda: budget(name="calls", cost=1)])
async def test_never_more_is_held_than_twice_what_is_taken_ahead(
    open_valkey: Buses, make: Callable[[], Any]
):
    bus = await open_valkey(make())
    most = 0
    for spent in range(1, 500):
        await admitted(bus)
        if spent % 7 == 0:
            state = await values(bus, "calls")
            taken = int(state["used"]) + int(state.get("held", 0))
            assert spent <= taken <= spent + 200
            most = max(most, taken - spent)
    assert most > 90


@pytest.mark.parametrize("make", [budget, lambda: ahead(cost="tokens")])
async def test_what_costs_nothing_is_admitted(open_valkey: Buses, make: Callable[[], Any]):
    bus = await open_valkey(make())
    await admitted(bus, tokens=0)
    await admitted(bus, tokens=7)
    await admitted(bus, tokens=0)


async def test_a_cost_above_what_is_taken_ahead_is_had_whole(open_valkey: Buses):
    bus = await open_valkey(budget())
    await admitted(bus, tokens=20)
    await admitted(bus, tokens=700)
    assert (await vetoed(bus, tokens=281)).reason == "quota_exhausted"
    assert (await vetoed(bus, tokens=1001)).reason == "cost_above_limit"
    await admitted(bus, tokens=280)
    assert sum(await charged(bus)) == 1000


async def test_a_decision_tells_what_any_other_does(open_valkey: Buses):
    bus = await open_valkey(ahead(), budget())
    decision = await bus.check(Call(tokens=10))
    limits = [(v.policy, v.allowed, v.reason, v.limit) for v in decision.verdicts]
    assert limits == [("calls", True, "ok", 1000), ("tokens", True, "ok", 1000)]
    assert decision.verdicts[1].remaining == 990
    assert decision.permit is not None
    assert Permit.parse(str(decision.permit)) == decision.permit
    assert decision.permit.expires_at is None


async def test_several_policies_are_spent_of_together_or_not_at_all(open_valkey: Buses):
    bus = await open_valkey(fixed(limit=500), budget(limit=30), cache_denials=True)
    decisions = [await bus.check(Call(tokens=10)) for _ in range(20)]
    assert [bool(decision) for decision in decisions] == [True] * 3 + [False] * 17
    assert decisions[-1].policy == "tokens"
    # Those that came to nothing are no reason to keep the others waiting for what is at hand.
    stop = time.monotonic() + 1.3
    while time.monotonic() < stop:
        assert not await bus.check(Call(tokens=10))
        await asyncio.sleep(0.05)
    assert await used(bus) == 3
    await bus.close()


async def test_two_limits_of_one_subject_do_not_keep_each_other_from_an_answer(open_valkey: Buses):
    bus = await open_valkey(
        fixed(limit={"m1": 1000, "*": 2000}, limit_by="model", prefetch=10),
    )
    calls = [Call(model=f"m{number % 2}") for number in range(60)]
    async with asyncio.timeout(3):
        assert all(await asyncio.gather(*map(bus.check, calls)))


@pytest.mark.parametrize("beside", [lambda: rate("other"), Custom])
async def test_beside_what_is_asked_every_time_nothing_is_taken_ahead(
    open_valkey: Buses, valkey: RealServer, beside: Callable[[], Any]
):
    bus = await open_valkey(fixed(), beside())
    await admitted(bus)
    with valkey.counting() as counted:
        await admitted(bus)
        await admitted(bus)
    assert calls_of_scripts(counted) == 2
    assert await used(bus) == 3


async def test_in_shadow_mode_nothing_is_taken_ahead(open_valkey: Buses):
    bus = await open_valkey(fixed(mode="shadow"))
    await admitted(bus)
    assert await used(bus) == 1


async def test_what_was_taken_a_while_ago_makes_a_burst_no_larger(open_valkey: Buses):
    # 400 a second fill the burst in one, so that units die after 250 ms.
    bus = await open_valkey(ahead(limit=400, per="1s", burst=400, prefetch=400))
    await admitted(bus)
    await asyncio.sleep(0.2)
    began, count = time.monotonic(), 0
    while await bus.check(Call()):
        count += 1
    span = time.monotonic() - began
    assert 300 <= count <= 400 + 400 * span


async def test_units_die_a_lapse_after_they_were_asked_for_however_late_they_came(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(ahead(limit=400, per="1s", burst=400, prefetch=100))
    await bus.peek(Call())
    valkey.pause()
    asked = time.monotonic()
    asking = asyncio.create_task(bus.check(Call()))
    await asyncio.sleep(0.2)
    valkey.resume()
    assert await asking
    await asyncio.sleep(asked + 0.27 - time.monotonic())
    with valkey.counting() as counted:
        await admitted(bus)
    assert calls_of_scripts(counted) > 0


# ---- giving back


def pools() -> int:
    """Count the pools of this process; other tests' decisions may still know theirs."""
    gc.collect()
    return sum(isinstance(one, Pool) for one in gc.get_objects())


@pytest.mark.parametrize("make", [fixed, lambda: budget(name="calls", cost=1)])
async def test_what_is_left_is_given_back_when_nothing_was_spent_for_a_second(
    open_valkey: Buses, make: Callable[[], Any]
):
    before = pools()
    bus = await open_valkey(make())
    for _ in range(7):
        await admitted(bus)
    assert sum((await used(bus), int((await values(bus, "calls")).get("held", 0)))) == 100
    began = time.monotonic()

    async def given_back() -> bool:
        state = await values(bus, "calls")
        return (state["used"], state.get("held", "0")) == ("7", "0")

    await eventually(given_back, 2.0)
    assert 0.8 < time.monotonic() - began < 1.5
    # And nothing of the pool stays.
    assert pools() == before


async def test_who_waits_gets_what_is_given_back(open_valkey: Buses):
    bus, other = await open_valkey(fixed(limit=100)), await open_valkey(fixed(limit=100))
    await admitted(bus)
    began = time.monotonic()
    await other.admit(Call(), wait=3)
    assert 0.8 < time.monotonic() - began < 1.6


async def test_a_bucket_is_given_back_what_is_left_after_the_lapse_and_no_mark_stays(
    open_valkey: Buses, valkey: RealServer
):
    # 100 a second; units die after 250 ms.
    bus = await open_valkey(ahead(limit=100, per="1s", prefetch=60))
    watcher = await open_valkey(ahead(limit=100, per="1s", prefetch=60))
    await admitted(bus)
    before = (await watcher.peek(Call())).verdicts[0].remaining
    assert before is not None
    assert before <= 75 - 60 + 10
    await asyncio.sleep(0.3)
    after = (await watcher.peek(Call())).verdicts[0].remaining
    assert after == 74  # 75 are the burst that is left, and this one would be taken of it
    assert not [key for key, _ in valkey.keys("*settled*")]


@pytest.mark.parametrize("make", [fixed, lambda: budget(name="calls", cost=1)])
async def test_closing_gives_everything_back(open_valkey: Buses, make: Callable[[], Any]):
    bus, watcher = await open_valkey(make()), await open_valkey()
    for _ in range(7):
        await admitted(bus)
    await bus.close()
    state = await values(watcher, "calls")
    assert (state["used"], state.get("held", "0")) == ("7", "0")


async def test_closing_waits_for_what_is_being_taken(open_valkey: Buses, valkey: RealServer):
    bus, watcher = await open_valkey(fixed()), await open_valkey()
    await admitted(bus)
    await bus.close()
    bus = await open_valkey(fixed())
    await bus.peek(Call())
    valkey.pause()
    asking = asyncio.create_task(bus.check(Call()))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0.05)
    valkey.resume()
    await closing
    decision = await asking
    assert await used(watcher) == 1 + decision.allowed


async def test_callers_that_are_cancelled_take_nothing_with_them(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(fixed(), deadline=2.0)
    await bus.peek(Call())
    valkey.pause()
    asking = [asyncio.create_task(bus.check(Call())) for _ in range(20)]
    await asyncio.sleep(0.05)
    for task in asking[:19]:
        task.cancel()
    await asyncio.sleep(0.02)
    valkey.resume()
    assert await asking[19]
    with valkey.counting() as counted:
        for _ in range(30):
            await admitted(bus)
    assert calls_of_scripts(counted) == 0
    await bus.close()
    watcher = await open_valkey()
    assert await used(watcher) == 31


def test_a_refill_that_nobody_waits_for_any_more_is_given_back_whole():
    op = Operation("quota", "{}", "k", "a", 1, most=100)
    rows = [(b"ok", 1000, 900, 0, 5, 9, 77)]
    reply = Reply(rows, admitted=True, now_us=1, granted=100)
    assert parts_of(Request("p", (op,)), reply) == (Part("quota", "k", "a", 100, (77,)),)


async def test_many_subjects_leave_nothing_behind(open_valkey: Buses):
    before = pools()
    bus = await open_valkey(ahead(by="tenant", prefetch=5))
    for first in range(0, 2000, 200):
        subjects = range(first, first + 200)
        calls = [bus.check(Call(tenant=f"t{number}")) for number in subjects]
        assert all(await asyncio.gather(*calls))

    assert pools() > before + 100
    await eventually(lambda: pools() == before, 4.0, interval=0.1)


async def test_above_so_many_subjects_the_store_is_asked_every_time(
    open_valkey: Buses, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stanchion.prefetching._SUBJECTS", 3)
    bus = await open_valkey(fixed(by="tenant"))
    for number in range(6):
        await admitted(bus, tenant=f"t{number}")
    taken = {
        number: int(await command(bus, "HGET", key, "used"))
        for number in range(6)
        if (key := f"stanchion:{{default}}:rate:calls:t{number}")
    }
    assert list(taken.values()) == [100] * 3 + [1] * 3


# ---- real costs


async def test_a_real_cost_below_the_estimate_comes_back(open_valkey: Buses):
    bus = await open_valkey(budget(limit=100))
    for _ in range(20):
        async with bus.guard(Call(tokens=50)) as permit:
            permit.charge(tokens=2)
    await bus.close()
    watcher = await open_valkey()
    assert await charged(watcher) == (40, 0)


async def test_settling_twice_gives_back_once(open_valkey: Buses):
    bus = await open_valkey(budget(limit=100))
    one, other = await admitted(bus, tokens=40), await admitted(bus, tokens=10)
    assert (await bus.settle(one, tokens=30)).statuses == {"tokens": "settled"}
    for _ in range(5):
        assert (await bus.settle(one, tokens=0)).statuses == {"tokens": "stale"}
    assert (await vetoed(bus, tokens=61)).reason == "quota_exhausted"
    assert await bus.settle(other)
    assert not await bus.settle(other, tokens=0)
    await bus.close()
    assert await charged(await open_valkey()) == (40, 0)


async def test_a_fixed_cost_can_be_settled_to_another_once(open_valkey: Buses):
    bus = await open_valkey(budget(limit=100, cost=5))
    permit = await admitted(bus)
    assert await bus.settle(permit, tokens=1)
    assert not await bus.settle(permit, tokens=0)
    await bus.close()
    assert await charged(await open_valkey()) == (1, 0)


async def test_a_real_cost_above_the_estimate_is_charged_also_where_nothing_is_left(
    open_valkey: Buses,
):
    bus = await open_valkey(budget(limit=100, prefetch=20))
    permits = [await admitted(bus, tokens=10) for _ in range(10)]
    for permit in permits:
        # The second finds the quota in debt already.
        assert await bus.settle(permit, tokens=50)
    await vetoed(bus, tokens=1)
    await bus.close()
    assert await charged(await open_valkey()) == (500, 0)


async def test_a_real_cost_above_the_estimate_is_taken_of_what_is_at_hand(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(budget())
    permit = await admitted(bus, tokens=10)
    with valkey.counting() as counted:
        assert await bus.settle(permit, tokens=40)
    assert calls_of_scripts(counted) == 0
    await bus.close()
    assert await charged(await open_valkey()) == (40, 0)


async def test_permits_as_text_are_settled_here_and_are_stale_elsewhere(open_valkey: Buses):
    bus, other = await open_valkey(budget()), await open_valkey(budget())
    texts = [str(await admitted(bus, tokens=10)) for _ in range(3)]
    permits = [Permit.parse(text) for text in texts]
    assert (await other.settle(permits[0], tokens=10)).statuses == {"tokens": "settled"}
    assert (await other.settle(permits[1], tokens=4)).statuses == {"tokens": "stale"}
    assert (await bus.settle(permits[2], tokens=4)).statuses == {"tokens": "settled"}
    await bus.close()
    assert await charged(other) == (24, 0)


async def test_a_permit_that_nobody_settles_keeps_the_others_refunds_until_its_lease_ends_only(
    open_valkey: Buses,
):
    bus = await open_valkey(budget(limit=100, lease="1.5s"))
    await admitted(bus, tokens=10)
    for _ in range(5):
        assert await bus.settle(await admitted(bus, tokens=10), tokens=1)

    async def given_back() -> bool:
        return await charged(bus) == (15, 0)

    await eventually(given_back, 3.0)


async def test_rates_are_trued_up_by_any_process(open_valkey: Buses):
    bus, other = await open_valkey(fixed(cost="tokens")), await open_valkey(fixed(cost="tokens"))
    one, two = await admitted(bus, tokens=10), await admitted(bus, tokens=10)
    assert await other.settle(Permit.parse(str(one)), tokens=3)
    assert not await bus.settle(one, tokens=0)
    assert await bus.settle(two, tokens=15)
    await bus.close()
    assert await used(other) == 18


async def test_what_of_one_taking_is_given_back_bit_by_bit_is_never_more_than_was_left_of_it():
    policy = rate(limit=10, per="10s", burst=20, cost="tokens", prefetch=10)
    async with memory_bus(policy) as bus:
        store = cast("Any", bus)._store
        key, aux = Keyspace("test").keys(Kind.GCRA, "calls", "-")
        op = Operation("gcra", Binding.declared(policy), key, aux, 10)

        async def left() -> int:
            answer = await store.peek(Request("look", (op._replace(cost=0),)))
            return answer.operations[0].remaining

        taken = await store.admit(Request("p", (op._replace(cost=1, most=10),)))
        assert taken.granted == 10
        hold = taken.operations[0].hold
        assert await left() == 19 - 10
        await bus.clock.advance(6)
        part = Part("gcra", key, aux, 5, hold, actual=0, unknown=False)
        await store.settle("a", Outcome.SUCCESS, (part,))
        # Of ten units, time has given back six and the refund the other four.
        assert await left() == 19
        await store.admit(Request("q", (op,)))
        await store.settle("b", Outcome.SUCCESS, (part,))
        assert await left() == 9


# ---- limits that change, and outages


async def test_a_reset_makes_what_was_taken_stale(open_valkey: Buses):
    bus = await open_valkey(fixed(limit=200))
    await admitted(bus)
    assert await bus.reset("calls") == 1
    for _ in range(5):
        await admitted(bus)
    await bus.close()
    watcher = await open_valkey(fixed(limit=200))
    states = [state async for state in watcher.inspect("calls")]
    # Nothing is counted but what was taken since, and what is left of it is given back.
    assert not states or int(states[0].values["used"]) == 0
    assert (await watcher.peek(Call())).verdicts[0].remaining == 199


async def test_an_override_is_in_force_once_what_is_at_hand_is_spent(open_valkey: Buses):
    bus = await open_valkey(fixed(limit=1000, prefetch=10))
    await admitted(bus)
    await bus.override("calls", 15)
    decisions = [await bus.check(Call()) for _ in range(40)]
    assert sum(map(bool, decisions)) == 14
    await bus.override("calls", 30)
    decisions = [await bus.check(Call()) for _ in range(40)]
    assert sum(map(bool, decisions)) == 15


@pytest.mark.parametrize(
    ("limit", "least", "most"), [(1, 1, 1), (2, 1, 2), (2000, 30, 40), (100_000, 30, 40)]
)
async def test_a_limit_of_its_own_leaves_a_bucket_what_its_burst_allows(
    open_valkey: Buses, limit: int, least: int, most: int
):
    # What a second earns of the larger ones is most of the burst, or more than that.
    policy = ahead(limit=600, burst=40, per="1m", prefetch=5)
    bus = await open_valkey(policy if limit > 2 else ahead(limit=600, per="1m", prefetch=5))
    await bus.override("calls", limit)
    began = time.monotonic()
    decisions = await asyncio.gather(*(bus.check(Call()) for _ in range(60)))
    span = time.monotonic() - began
    count = sum(map(bool, decisions))
    assert least <= count <= most + limit * span / 60


async def test_in_an_outage_what_is_at_hand_is_spent_and_then_the_policy_says(
    open_valkey: Buses, valkey: RealServer
):
    bus = await open_valkey(fixed(prefetch=10), deadline=0.3)
    for _ in range(2):
        await admitted(bus)
    valkey.kill()
    decisions = [await bus.check(Call()) for _ in range(12)]
    assert [bool(decision) for decision in decisions] == [True] * 8 + [False] * 4
    assert {decision.reason for decision in decisions[8:]} == {"store_unavailable"}
    await bus.close()
    valkey.start()


async def test_a_local_share_is_whole(open_valkey: Buses, valkey: RealServer):
    policy = ahead(limit=4, prefetch=2, on_outage="local")
    bus = await open_valkey(policy, deadline=0.3, processes=4)
    await bus.peek(Call())
    valkey.kill()
    decisions = [await bus.check(Call()) for _ in range(3)]
    assert [bool(decision) for decision in decisions] == [True, False, False]
    await bus.close()
    valkey.start()


async def test_calendar_windows_are_taken_of_ahead_as_well(open_valkey: Buses, valkey: RealServer):
    bus = await open_valkey(budget(per="hour", timezone="Europe/Berlin", cost=1, limit=150))
    decisions = [await bus.check(Call()) for _ in range(200)]
    assert sum(map(bool, decisions)) == 150


# ---- declarations


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ahead(algorithm="sliding_window"), "gcra"),
        (lambda: ahead(algorithm="sliding_log"), "gcra"),
        (lambda: ahead(limit=1000, per=0.01), "40 ms"),
        (lambda: ahead(limit=1, cost="tokens", prefetch=1), "burst of 2"),
        (lambda: ahead(burst=1), "prefetch"),
        (lambda: ahead(prefetch=-1), "prefetch"),
        (lambda: ahead(prefetch=True), "prefetch"),
        (lambda: budget(rolling=True), "rolling"),
        (lambda: budget(unsettled="refund"), "unsettled"),
        (lambda: budget(prefetch="5"), "prefetch"),
    ],
)
def test_a_declaration_that_cannot_work_says_so(make: Callable[[], Any], text: str):
    with pytest.raises(ConfigError, match="prefetch") as caught:
        make()
    assert text in str(caught.value)
