"""Quotas that wait for replicas: what counts, who waits, and what is given back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import Event, Verdict
from tests.faults.calls import (
    DEADLINE,
    UNAVAILABLE,
    Call,
    bus_on,
    charged,
    denied,
    in_use,
    rate,
    recovered,
    slots,
    within,
)
from tests.faults.waits import acknowledged, given_back, hang, money
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.followers import Followers


#: So long that nothing which waits for a replica is over by itself while a test looks elsewhere.
LONG = 8.0


class Free(Event, type="fault:free"):
    """What costs no money."""


# ---- who has acknowledged


@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_is_admitted_is_on_so_many_replicas_by_then(followers: Followers, replicas: int):
    """Looked at as soon as each check has its answer, without waiting for anything."""
    async with bus_on(followers.url, [money(replicas)], deadline=2) as bus:
        for count in range(1, 31):
            assert await bus.check(Call())
            having = [charged(replica) == count for replica in followers.replicas]
            assert sum(having) >= replicas
        assert charged(followers.primary) == 30


async def test_a_replica_that_hangs_vetoes_by_the_deadline_and_nothing_stays_charged(
    followers: Followers,
):
    """SIGSTOP: its connection stays, and it acknowledges nothing."""
    async with bus_on(followers.url, [money(), slots()]) as bus:
        assert await bus.check(Call())
        hang(followers, 2)
        async with within(DEADLINE):
            decisions = await denied(bus, 20)
        for verdict in decisions[0].verdicts:
            assert verdict.reason == UNAVAILABLE
            assert acknowledged(verdict.detail) == (0, 1)
        await given_back(followers.primary, 1)
        for replica in followers.replicas:
            replica.resume()
        assert await recovered(bus)
        assert charged(followers.primary) == 2


async def test_one_of_two_is_not_enough_where_two_are_wanted(followers: Followers):
    async with bus_on(followers.url, [money(2)]) as bus:
        assert await bus.check(Call())
        hang(followers, 1)
        (decision,) = await denied(bus)
        assert acknowledged(decision.verdicts[0].detail) == (1, 2)
        await given_back(followers.primary, 1)


async def test_a_replica_that_is_killed_is_missed_until_it_is_back(followers: Followers):
    async with bus_on(followers.url, [money(2)]) as bus:
        assert await bus.check(Call())
        followers.replicas[0].kill()
        (decision,) = await denied(bus)
        assert acknowledged(decision.verdicts[0].detail) == (1, 2)
        async with bus_on(followers.url, [money(1)]) as content:
            assert await content.check(Call())
        await given_back(followers.primary, 2)
        await asyncio.to_thread(followers.replicas[0].start)
        assert await recovered(bus, 10)


async def test_replicas_that_keep_hanging_are_asked_by_one_check_at_a_time(followers: Followers):
    """All others are vetoed at once, and charge nothing meanwhile."""
    async with bus_on(followers.url, [money()]) as bus:
        hang(followers, 2)
        for _ in range(3):
            await denied(bus)
        await given_back(followers.primary)
        async with within(DEADLINE / 2):
            decisions = await denied(bus, 50)
        for decision in decisions:
            said, _, detail = (decision.verdicts[0].detail or "").partition(": ")
            assert said == "replicas have not been acknowledging"
            assert acknowledged(detail) == (0, 1)
        for replica in followers.replicas:
            replica.resume()
        assert await recovered(bus)


# ---- who waits, and for what


async def test_nobody_else_is_held_up_by_what_waits_for_a_replica(followers: Followers):
    """Other events, settlements, looks ahead and denials have nothing to wait for."""
    free = rate(name="free", on=Free, by=())
    async with bus_on(followers.url, [money(limit=100), free], deadline=LONG) as bus:
        permit = await bus.admit(Call())
        hang(followers, 2)
        waiting = asyncio.create_task(bus.check(Call()))
        await eventually(lambda: charged(followers.primary) == 2, what="it is charged")
        for _ in range(30):
            assert await bus.check(Free())
        assert await bus.settle(permit)
        assert await bus.peek(Call())
        mixed = [bus.check(Call(tokens=tokens)) for tokens in (101, 1, 101)]
        tasks = [asyncio.create_task(one) for one in mixed]
        for task in (tasks[0], tasks[2]):
            assert (await task).reason == "cost_above_limit"
        assert not waiting.done()
        assert not tasks[1].done()
        followers.replicas[1].resume()
        assert await waiting
        assert await tasks[1]
        assert charged(followers.replicas[1]) == 3


async def test_of_what_is_taken_ahead_only_taking_waits(followers: Followers):
    ahead = money(prefetch=50, cost=1)
    async with bus_on(followers.url, [ahead], deadline=2) as bus:
        assert await bus.check(Call())
        assert charged(followers.primary) == 50
        assert any(charged(replica) == 50 for replica in followers.replicas)
        hang(followers, 2)
        assert all(await asyncio.gather(*(bus.check(Call()) for _ in range(20))))
        for replica in followers.replicas:
            replica.resume()
    async with bus_on(followers.url, [ahead]) as bus:
        hang(followers, 2)
        (decision,) = await denied(bus)
        assert acknowledged(decision.verdicts[0].detail) == (0, 1)
        await given_back(followers.primary, 21)
        for replica in followers.replicas:
            replica.resume()


async def test_a_quota_that_is_only_watched_waits_for_nobody(followers: Followers):
    async with bus_on(followers.url, [money(2, mode="shadow"), rate()], deadline=LONG) as bus:
        hang(followers, 2)
        async with within(LONG / 2):
            assert await bus.check(Call())


@pytest.mark.parametrize(
    ("on_outage", "reason"), [("admit", UNAVAILABLE), ("local", "local_share")]
)
async def test_what_is_not_acknowledged_is_as_what_could_not_be_asked(
    followers: Followers, on_outage: str, reason: str
):
    policy = money(on_outage=on_outage)
    async with bus_on(followers.url, [policy], processes=2) as bus:
        told: list[str] = []
        bus.observers.register(lambda event: told.append(event.error), on="policy:failed")
        hang(followers, 2)
        decision = await bus.check(Call())
        assert decision.allowed
        assert decision.verdicts[0].reason == reason
        await given_back(followers.primary)
        await eventually(lambda: [acknowledged(one) for one in told] == [(0, 1)])
        assert decision.permit is not None
        await bus.settle(decision.permit)
        assert charged(followers.primary) == 0


async def test_a_run_of_policies_waits_as_a_whole_and_an_earlier_run_is_given_back(
    followers: Followers,
):
    """The rate beside the quota is in its call; a slot was taken in a call before."""

    taken: list[int] = []

    class Between:
        name, on, priority = "between", Call, 50

        async def evaluate(self, event: Event) -> Verdict:
            del event
            taken.append(in_use(followers.primary))
            return Verdict("between", allowed=True)

    policies = [slots(priority=1), Between(), rate(), money()]
    async with bus_on(followers.url, policies) as bus:
        hang(followers, 2)
        decision = await bus.check(Call())
        assert [v.reason for v in decision.verdicts] == ["ok", "ok", UNAVAILABLE, UNAVAILABLE]
        assert taken == [1]
        await given_back(followers.primary)
        await eventually(lambda: in_use(followers.primary) == 0)


# ---- callers that do not stay


async def test_whoever_is_cancelled_while_waiting_leaves_nothing_charged(followers: Followers):
    """At moments before, while and after the script runs."""
    async with bus_on(followers.url, [money(), slots()], deadline=2) as bus:
        assert await bus.check(Call(who="first"))
        hang(followers, 2)
        for pause in (0, 0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05):
            asking = [asyncio.create_task(bus.check(Call())) for _ in range(3)]
            await asyncio.sleep(pause)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            assert all(task.cancelled() for task in asking)
        for replica in followers.replicas:
            replica.resume()
        await given_back(followers.primary)
        assert await bus.check(Call())
        assert charged(followers.primary) == 1


async def test_whoever_waits_in_line_is_admitted_once_replicas_are_back(followers: Followers):
    """Tries that were not acknowledged are given back; the one that counts is counted once."""
    policies = [money(limit=2, on_outage="local"), rate(cost="tokens", on_outage="admit")]
    async with bus_on(followers.url, policies, processes=2) as bus:
        hang(followers, 2)
        # All of this process's share.
        assert [one.reason for one in (await bus.check(Call())).verdicts] == [
            UNAVAILABLE,
            "local_share",
        ]
        await given_back(followers.primary)
        waiting = asyncio.create_task(bus.admit(Call(), wait=20))
        await eventually(lambda: charged(followers.primary) == 1, what="it tries")
        await given_back(followers.primary)
        assert not waiting.done()
        for replica in followers.replicas:
            replica.resume()
        permit = await waiting
        assert charged(followers.primary) == 1
        assert await bus.settle(permit, tokens=2)
        assert charged(followers.primary) == 2


async def test_closing_while_a_replica_hangs_ends_by_the_deadline_and_gives_back(
    followers: Followers,
):
    bus = bus_on(followers.url, [money()])
    await bus.open()
    hang(followers, 2)
    checks = [asyncio.create_task(bus.check(Call())) for _ in range(200)]
    await eventually(lambda: charged(followers.primary) > 0)
    async with within(2 * DEADLINE):
        await bus.close()
    assert not any(await asyncio.gather(*checks))
    assert charged(followers.primary) == 0


async def test_a_primary_that_hangs_while_it_waits_vetoes_by_the_deadline(followers: Followers):
    """Who has acknowledged is not known then, and nothing counts."""
    async with bus_on(followers.url, [money(unsettled="charge", lease="60s")]) as bus:
        hang(followers, 2)
        checks = [asyncio.create_task(bus.check(Call())) for _ in range(5)]
        await eventually(lambda: charged(followers.primary) == 5)
        followers.primary.pause()
        async with within(DEADLINE):
            assert not any(await asyncio.gather(*checks))
        followers.primary.resume()
        for replica in followers.replicas:
            replica.resume()
        assert await recovered(bus)


async def test_a_server_that_says_too_late_that_nobody_acknowledged_is_not_waited_for(
    followers: Followers,
):
    """With hz 1 it looks at its clock once a second; what it was sent is given back before."""
    with followers.primary.configured(hz=1):
        async with bus_on(followers.url, [money()]) as bus:
            assert await bus.check(Call())
            hang(followers, 2)
            async with within(DEADLINE):
                await denied(bus, 5)
            await given_back(followers.primary, 1)
            for replica in followers.replicas:
                replica.resume()
            assert await recovered(bus)
