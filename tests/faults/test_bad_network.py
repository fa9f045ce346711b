"""What networks do to connections: replies lost, late, cut short, or somebody else's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, ConcurrencyLimited, StoreUnavailable
from stanchion.store.redis_store import RedisStore
from tests.faults.calls import (
    DEADLINE,
    PREFIX,
    Call,
    breaker,
    bus_on,
    charged,
    denied,
    in_use,
    quota,
    recovered,
    slots,
    state,
    within,
)
from tests.faults.proxy import Proxy
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion import EventBus
    from stanchion.permit import Permit
    from tests.faults.proxy import Link
    from tests.servers import RealServer

VERBS: dict[str, Callable[[EventBus, Permit, str], Awaitable[object]]] = {
    "check": lambda bus, permit, who: bus.check(Call(who=who)),
    "settle": lambda bus, permit, who: bus.settle(permit, tokens=5),
    "renew": lambda bus, permit, who: bus.renew(permit),
    "reset": lambda bus, permit, who: bus.reset("calls", who=who),
    "force": lambda bus, permit, who: bus.force("provider", CircuitState.OPEN, who=who),
    "override": lambda bus, permit, who: bus.override("calls", 5, who=who),
    "sync": lambda bus, permit, who: bus.sync("calls", remaining=9, who=who),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_lost_reply_is_never_asked_for_again(valkey: RealServer, verb: str):
    """The script ran, its answer is lost: it must not run twice."""

    def lose(link: Link, data: bytes) -> bytes:
        link.mute = link.mute or b"EVAL" in data
        return data

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url) as bus:
        permit = await bus.admit(Call())
        await VERBS[verb](bus, await bus.admit(Call(who="first")), "first")  # the script is known
        # Until then it reads the states of circuits, by script calls of its own.
        assert await bus._listener.synced(DEADLINE)
        proxy.on_request = lose
        with valkey.counting() as counted:
            async with within(DEADLINE):
                if verb == "check":
                    await denied(bus)
                else:
                    with pytest.raises(StoreUnavailable):
                        await VERBS[verb](bus, permit, "acme")
        assert counted["evalsha"] + counted["eval"] == 1
        assert charged(valkey) == {"check": 2, "settle": 5}.get(verb, 1)


async def test_settling_again_after_a_lost_reply_changes_nothing(valkey: RealServer):
    """The caller may well ask again; what was done is not done twice."""

    def lose(link: Link, data: bytes) -> bytes:
        link.mute = link.mute or b"EVAL" in data
        return data

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url) as bus:
        permit = await bus.admit(Call())
        await bus.settle(await bus.admit(Call(who="first")))  # the script is known
        proxy.on_request = lose
        with pytest.raises(StoreUnavailable):
            await bus.settle(permit, tokens=5)
        proxy.heal()
        assert charged(valkey) == 5
        assert set((await bus.settle(permit, tokens=5)).stale) >= {"tokens", "slots", "provider"}
        assert charged(valkey) == 5


def slow(proxy: Proxy) -> None:
    proxy.delay = 3 * DEADLINE


def refused(proxy: Proxy) -> None:
    proxy.refuse = True
    proxy.cut()


def reset(proxy: Proxy) -> None:
    def act(link: Link, data: bytes) -> bytes:
        link.cut(reset=True)
        return data

    proxy.on_request = act


def closed(proxy: Proxy) -> None:
    def act(link: Link, data: bytes) -> bytes:
        link.cut()
        return data

    proxy.on_reply = act


def half_closed(proxy: Proxy) -> None:
    def act(link: Link, data: bytes) -> bytes:
        link.half_close()
        return data

    proxy.on_request = act


def truncated(proxy: Proxy) -> None:
    def act(link: Link, data: bytes) -> bytes:
        link.client.write(data[: len(data) // 2])
        link.client.close()
        return b""

    proxy.on_reply = act


def unfinished(proxy: Proxy) -> None:
    def act(link: Link, data: bytes) -> bytes:
        link.mute = True
        return data[: len(data) // 2]

    proxy.on_reply = act


def garbled(proxy: Proxy) -> None:
    proxy.on_reply = lambda link, data: b"?" * len(data)


def not_ours(proxy: Proxy) -> None:
    proxy.on_reply = lambda link, data: b":1\r\n" if b"store" not in data else data


FAULTS = [slow, refused, reset, closed, half_closed, truncated, unfinished, garbled, not_ours]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_bad_connection_denies_by_the_deadline_and_is_replaced(
    valkey: RealServer, fault: Callable[[Proxy], None]
):
    """Late, refused, reset, closed, half-closed, cut short, unfinished, garbled."""
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota()]) as bus:
        assert await bus.check(Call())
        fault(proxy)
        async with within(DEADLINE):
            await denied(bus, 10)
        with pytest.raises(StoreUnavailable):
            await bus.reset("tokens", who="other")
        proxy.heal()
        assert await recovered(bus)
        # Counted once each or not at all: the batch of ten, and what looked for recovery.
        assert 2 <= charged(valkey) <= 2 + 10 + 2


async def test_replies_in_single_bytes_are_put_together(valkey: RealServer):
    """A sliced reply is slow, and no error."""
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, deadline=5) as bus:
        proxy.slice = 1
        assert all(await asyncio.gather(*(bus.check(Call()) for _ in range(50))))
        assert charged(valkey) == 50


async def test_a_reply_to_another_call_is_refused_and_its_connection_dropped(valkey: RealServer):
    """Every reply carries the nonce of its call; what does not is nobody's."""
    told: list[tuple[Link, bytes]] = []

    def one_behind(link: Link, data: bytes) -> bytes:
        # What a connection gives that lost count of its replies: those to scripts, not what the
        # bus looks up in the background.
        if not data.startswith(b"*4\r\n"):
            return data
        told.append((link, data))
        return told[-2][1] if len(told) > 1 else data

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota()]) as bus:
        assert await bus.check(Call())
        proxy.on_reply = one_behind
        assert await bus.check(Call())
        # The reply says "admitted", but to the call before.
        decision = (await denied(bus))[0]
        assert decision.permit is None
        proxy.on_reply = None
        assert await bus.check(Call())
        link = told[-1][0]
        await eventually(lambda: link not in proxy.links, what="its connection is dropped")
        assert charged(valkey) == 4
        assert await bus.reset("tokens", who="acme") == 1


async def test_cancelling_at_any_moment_mixes_nothing_up_and_leaks_nothing(valkey: RealServer):
    """Cancel after 0...N ms; whoever is answered gets an answer of his own."""
    policies = [quota(), slots()]
    kept: list[Permit] = []
    cancelled = 0

    async def call(bus: EventBus, number: int) -> None:
        # Each has a cost of its own, which its answer tells.
        decision = await bus.check(Call(who=f"w{number % 7}", tokens=number))
        assert decision.permit is not None
        kept.append(decision.permit)
        tokens, _ = decision.permit.holds
        assert (tokens.subject, tokens.reserved) == (f"w{number % 7}", number)

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies, deadline=5) as bus:
        assert await bus.check(Call(who="first"))
        proxy.delay = 0.002
        for step in range(24):
            tasks = [asyncio.create_task(call(bus, 100 * step + lane + 1)) for lane in range(20)]
            await asyncio.sleep(step * 0.0005)
            for task in tasks[::2]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [error for error in ended if error is not None]
            assert {type(error) for error in errors} <= {asyncio.CancelledError}
            cancelled += len(errors)
        assert 24 < cancelled < 240  # some in time, some too late
        proxy.delay = 0.0
        # Nobody holds what the cancelled had been given; nothing waits for a lease to end.
        await eventually(lambda: _held(valkey) == len(kept), what="the rest is given back")
        for permit in kept:
            assert await bus.settle(permit)
        assert _held(valkey) == 0
        assert sum(charged(valkey, f"w{lane}") for lane in range(7)) == sum(
            permit.holds[0].reserved for permit in kept
        )
        assert proxy.accepted <= 16 + 2


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
    valkey: RealServer, wait: float
):
    """On the way in, inside, and on the way out; and none of it is a failure."""
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
            # Sooner than any lease would end.
            await eventually(lambda: in_use(valkey) == 0, 1, what="every slot is given back")
            await eventually(lambda: _in_line(valkey) == 0, 1, what="nobody is left in line")
        assert entered
        assert state(valkey, "circuit", "provider")["state"] == "closed"
        proxy.delay = 0.0
        assert await bus.check(Call())


def _in_line(server: RealServer) -> int:
    return sum(server.control.zcard(key) for key, _ in server.keys(f"{PREFIX}*.order:*"))
