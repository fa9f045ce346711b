"""Callers that are cancelled, at every await of every verb."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, ConcurrencyLimited
from stanchion.store.redis_store import RedisStore
from tests.faults.calls import (
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
from tests.faults.proxy import Proxy
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion import EventBus
    from stanchion.permit import Permit
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

#: What the pool of one bus has at most, and one for each of its subscriptions.
CONNECTIONS = 16 + 2


async def test_cancelling_at_any_moment_mixes_nothing_up_and_leaks_nothing(
    valkey: RealServer, fault_record: FaultRecords
):
    """Cancel after 0...N ms; whoever is answered gets an answer of his own."""
    record = fault_record(12, "`check` cancelled after 0 to 12 ms", valkey, deadline=5)
    policies = [quota(), slots()]
    kept: list[Permit] = []
    cancelled = 0

    async def call(bus: EventBus, number: int) -> None:
        # Each has a cost of its own, which its answer tells.
        decision = await ask(bus, record, who=f"w{number % 7}", tokens=number)
        assert decision.permit is not None
        kept.append(decision.permit)
        tokens, _ = decision.permit.holds
        assert (tokens.subject, tokens.reserved) == (f"w{number % 7}", number)

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies, deadline=5) as bus:
        assert await bus.check(Call(who="first"))
        proxy.delay = 0.002
        step = 0
        # Some in time and some too late, on a slow machine as well.
        while step < 24 or (cancelled == 10 * step and step < 200):
            tasks = [asyncio.create_task(call(bus, 100 * step + lane + 1)) for lane in range(20)]
            await asyncio.sleep(step * 0.0005)
            for task in tasks[::2]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [error for error in ended if error is not None]
            record.saw(*("cancelled" for _ in errors))
            assert {type(error) for error in errors} <= {asyncio.CancelledError}
            cancelled += len(errors)
            step += 1
        assert 24 < cancelled < 10 * step
        proxy.delay = 0.0
        # Nobody holds what the cancelled had been given; nothing waits for a lease to end.
        await eventually(lambda: _held(valkey) == len(kept), what="the rest is given back")
        for permit in kept:
            assert await bus.settle(permit)
        assert _held(valkey) == 0
        assert sum(charged(valkey, f"w{lane}") for lane in range(7)) == sum(
            permit.holds[0].reserved for permit in kept
        )
        assert proxy.accepted <= CONNECTIONS
        assert record.admitted == len(kept)
        # What the cancelled had been charged was given back.
        record.charge(len(kept))


def _held(server: RealServer) -> int:
    return sum(in_use(server, f"w{lane}") for lane in range(7))


async def test_cancelling_in_any_turn_of_the_loop_leaks_nothing():
    """Also in the turn in which the answer arrives."""
    async with bus_on("memory://", [quota(), slots()]) as bus:
        store = bus._store
        assert isinstance(store, RedisStore)

        async def left() -> object:
            return await store.execute("ZCARD", f"{PREFIX}slots.leases:slots:acme")

        turns, done = 0, False
        while not done:
            task = asyncio.create_task(bus.check(Call()))
            for _ in range(turns):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if done:
                assert await left() == 1
            else:
                assert task.cancelled()

                async def nothing() -> bool:
                    return await left() == 0

                await eventually(nothing, 2, what=f"it is given back, cancelled in turn {turns}")
            turns += 1
        assert turns > 5


@pytest.mark.parametrize("wait", [0.0, 5.0])
async def test_cancelling_a_guard_at_any_moment_gives_everything_back(
    valkey: RealServer, wait: float, fault_record: FaultRecords
):
    """On the way in, inside, and on the way out; and none of it is a failure."""
    record = fault_record(12, "a guard cancelled after 0 to 10 ms", valkey, deadline=5)
    policies = [quota(), slots(limit=3), breaker(failure_rate=0.01, minimum_calls=1)]
    entered = 0

    async def work(bus: EventBus) -> None:
        nonlocal entered
        try:
            async with bus.guard(Call(), wait=wait):
                entered += 1
                await asyncio.sleep(0.002)
        except ConcurrencyLimited:
            pass

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies, deadline=5) as bus:
        assert await bus.check(Call(who="first"))
        proxy.delay = 0.001
        for step in range(20):
            tasks = [asyncio.create_task(work(bus)) for _ in range(6)]
            await asyncio.sleep(step * 0.0005)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in ended} <= {asyncio.CancelledError, type(None)}
            record.saw(*("done" if error is None else "cancelled" for error in ended))
            # Sooner than any lease would end.
            await eventually(lambda: in_use(valkey) == 0, 1, what="every slot is given back")
            await eventually(lambda: _in_line(valkey) == 0, 1, what="nobody is left in line")
        assert entered
        record.admitted += entered
        assert state(valkey, "circuit", "provider")["state"] == "closed"
        proxy.delay = 0.0
        assert await bus.check(Call())


async def look(bus: EventBus) -> int:
    return len([one async for one in bus.inspect()])


#: Verbs that leave what the quota and the slots have counted as it is, and settling, which may be
#: done again.
VERBS: dict[str, Callable[[EventBus, Permit], Awaitable[object]]] = {
    "settle": lambda bus, permit: bus.settle(permit, tokens=3),
    "renew": lambda bus, permit: bus.renew(permit),
    "peek": lambda bus, permit: bus.peek(Call()),
    "reset": lambda bus, permit: bus.reset("calls", who="acme"),
    "reset of all": lambda bus, permit: bus.reset("calls"),
    "force": lambda bus, permit: bus.force("provider", CircuitState.CLOSED, who="acme"),
    "override": lambda bus, permit: bus.override("calls", 10**6, who="acme"),
    "sync": lambda bus, permit: bus.sync("calls", remaining=10**6, who="acme"),
    "inspect": lambda bus, permit: look(bus),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_cancelling_any_verb_at_any_moment_leaves_the_books_right(
    valkey: RealServer, verb: str, fault_record: FaultRecords
):
    """Half of them are cancelled after 0...N ms; those beside them get answers of their own."""
    record = fault_record(12, f"`{verb}` cancelled after 0 to 10 ms", valkey, deadline=5)
    policies = [rate(), quota(), slots(), breaker()]
    admitted = cancelled = 0
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies, deadline=5) as bus:
        await VERBS[verb](bus, await bus.admit(Call(who="first")))
        proxy.delay = 0.001
        for step in range(20):
            permits = [await bus.admit(Call()) for _ in range(2)]
            admitted += len(permits) + 1
            tasks = [asyncio.create_task(_do(VERBS[verb], bus, one)) for one in permits]
            beside = asyncio.create_task(ask(bus, record, tokens=1000 + step))
            await asyncio.sleep(step * 0.0005)
            tasks[0].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert not isinstance(ended[1], BaseException)
            if was := isinstance(ended[0], asyncio.CancelledError):
                record.saw("cancelled")
                cancelled += was
            permit = (await beside).permit
            assert permit is not None
            assert permit.holds[1].reserved == 1000 + step
            # Done already or not: it is done now, and once.
            for one in (*permits, permit):
                await bus.settle(one, tokens=3)
        assert cancelled, "all of them came too late"
        assert (charged(valkey), in_use(valkey)) == (3 * admitted, 0)
        # A connection on which somebody's reply is still to come is thrown away, and replaced.
        assert len(valkey.connections()) <= CONNECTIONS
        record.admitted += admitted - 20
        record.asked += admitted - 20
        record.charge(charged(valkey) // 3)


async def _do(
    verb: Callable[[EventBus, Permit], Awaitable[object]], bus: EventBus, permit: Permit
) -> object:
    return await verb(bus, permit)


async def test_cancelling_those_who_wait_leaves_nobody_in_line(
    valkey: RealServer, fault_record: FaultRecords
):
    """While they join it, stand in it, are woken, or are just being admitted."""
    record = fault_record(12, "`admit(wait)` cancelled after 0 to 25 ms", valkey, deadline=5)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [slots(limit=1)], deadline=5) as bus:
        assert await bus.settle(await bus.admit(Call(), wait=1))
        proxy.delay = 0.001
        for step in range(24):
            holder = await bus.admit(Call())
            waiting = [asyncio.create_task(bus.admit(Call(), wait=30)) for _ in range(3)]
            await asyncio.sleep(step * 0.0005)
            # One of them is woken by this, if it has come that far.
            settling = asyncio.create_task(bus.settle(holder))
            await asyncio.sleep((step % 8) * 0.002)
            for task in waiting:
                task.cancel()
            for given in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(given, BaseException):
                    assert isinstance(given, asyncio.CancelledError)
                    record.saw("cancelled")
                else:
                    record.saw("admitted")
                    record.admitted += 1
                    await bus.settle(given)
            await settling
            # Sooner than any lease would end, and than a sign of life would be missed.
            await eventually(lambda: in_use(valkey) == 0, 1, what="every slot is given back")
            await eventually(lambda: _in_line(valkey) == 0, 1, what="nobody is left in line")
            assert await bus.settle(await bus.admit(Call()))
        assert record.seen["cancelled"]
        assert len(valkey.connections()) <= CONNECTIONS


async def test_cancelling_while_it_connects_and_closing_at_once_leaks_nothing(
    valkey: RealServer, fault_record: FaultRecords
):
    """The very first call: nobody has a connection yet."""
    record = fault_record(12, "the first `check` cancelled, and the bus closed", valkey, deadline=5)
    async with Proxy(valkey.port) as proxy:
        proxy.delay = 0.001
        for step in range(16):
            async with bus_on(proxy.url, [quota(), slots()], deadline=5) as bus:
                task = asyncio.create_task(bus.check(Call()))
                await asyncio.sleep(step * 0.003)
                task.cancel()
                (given,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(given, BaseException):
                    assert isinstance(given, asyncio.CancelledError)
                    record.saw("cancelled")
                else:
                    record.saw(given)
                    assert given.permit is not None
                    assert await bus.settle(given.permit)
            assert in_use(valkey) == 0, f"cancelled after {3 * step} ms"
        assert record.seen["cancelled"]
        assert charged(valkey) == record.admitted
        record.charge(charged(valkey))
        await eventually(lambda: not proxy.links, what="every connection is closed")


async def test_cancelling_a_settlement_in_any_turn_of_the_loop_settles_once():
    """And so does whoever tries again."""
    async with bus_on("memory://", [quota(), slots()]) as bus:
        store: Any = bus._store
        turns, done = 0, False
        while not done:
            permit = await bus.admit(Call())
            task = asyncio.create_task(bus.settle(permit, tokens=3))
            for _ in range(turns):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await bus.settle(permit, tokens=3)
            turns += 1
            assert await store.execute("ZCARD", f"{PREFIX}slots.leases:slots:acme") == 0
            used = await store.execute("HGET", f"{PREFIX}quota:tokens:acme", "used")
            assert int(used) == 3 * turns, f"cancelled in turn {turns - 1}"
        assert turns > 3


def _in_line(server: RealServer) -> int:
    return sum(server.control.zcard(key) for key, _ in server.keys(f"{PREFIX}*.order:*"))
