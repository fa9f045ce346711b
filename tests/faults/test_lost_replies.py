"""The script ran, its answer is lost: it must not run twice, whatever it was that was asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from stanchion import CircuitState, StoreUnavailable, Verdict, Vetoed
from tests.faults.calls import (
    DEADLINE,
    PREFIX,
    UNAVAILABLE,
    Call,
    ask,
    bus_on,
    chain,
    charged,
    in_use,
    quota,
    slots,
    within,
)
from tests.faults.proxy import Proxy
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stanchion import Event, EventBus
    from stanchion.permit import Permit
    from tests.faults.proxy import Link
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer


class Losing:
    """Has the reply to one script call, and all after it on that connection, thrown away.

    `spare` is how many replies to scripts come through before. With `cut` the connection ends in
    the reply's place.
    """

    def __init__(self, proxy: Proxy, spare: int = 0, *, cut: bool = False) -> None:
        self._spare = spare
        self._cut = cut
        self._ending: list[Link] = []
        proxy.on_request = self._look
        proxy.on_reply = self._end

    def _look(self, link: Link, data: bytes) -> bytes:
        if b"EVAL" in data:
            if self._spare == 0:
                self._ending.append(link)
            self._spare -= 1
        return data

    def _end(self, link: Link, data: bytes) -> bytes:
        if link not in self._ending:
            return data
        if self._cut:
            link.cut()
        return b""


class Refusing:
    """A policy asked last, which vetoes whom it is told to."""

    name = "refusing"
    on = Call
    priority = 200

    def __init__(self) -> None:
        self.whom: str | None = None

    async def evaluate(self, event: Event) -> Verdict:
        allowed = cast("Call", event).who != self.whom
        return Verdict(self.name, allowed, "ok" if allowed else "refused")


@dataclass
class Scene:
    """A bus behind a proxy, what it holds, and who writes it down."""

    proxy: Proxy
    bus: EventBus
    record: FaultRecord
    permit: Permit
    refusing: Refusing
    cut: bool = False

    def lose(self, spare: int = 0) -> None:
        """Lose the next reply but so many."""
        Losing(self.proxy, spare, cut=self.cut)

    async def unavailable(self, verb: Awaitable[object]) -> None:
        """See that a verb ends with the error that says that nobody knows."""
        self.lose()
        async with within(DEADLINE):
            with pytest.raises(StoreUnavailable):
                await self.record.ask(verb)


async def check(scene: Scene) -> None:
    scene.lose()
    async with within(DEADLINE):
        decision = await ask(scene.bus, scene.record)
    assert (decision.allowed, decision.reason) == (False, UNAVAILABLE)


async def peek(scene: Scene) -> None:
    scene.lose()
    async with within(DEADLINE):
        decision = await scene.record.ask(scene.bus.peek(Call()))
    assert decision.reason == UNAVAILABLE


async def wait(scene: Scene) -> None:
    """Whoever waits is told at once as well: nobody knows when there will be an answer."""
    scene.lose()
    async with within(DEADLINE):
        with pytest.raises(Vetoed) as caught:
            await scene.record.ask(scene.bus.admit(Call(), wait=30))
    assert caught.value.decision.reason == UNAVAILABLE


async def settle(scene: Scene) -> None:
    await scene.unavailable(scene.bus.settle(scene.permit, tokens=5))


async def guard(scene: Scene) -> None:
    """Leaving is no place for errors: its work was done."""
    record = scene.record
    async with scene.bus.guard(Call()) as permit:
        record.saw("entered")
        record.admitted += 1
        permit.charge(tokens=5)
        scene.lose()
        leaving = asyncio.get_running_loop().time()
    record.saw("left", took=asyncio.get_running_loop().time() - leaving)


async def give_back(scene: Scene) -> None:
    """A policy asked later vetoes: what is lost is that the charge was taken back."""
    scene.refusing.whom = "acme"
    scene.lose(spare=1)
    async with within(DEADLINE):
        decision = await ask(scene.bus, scene.record)
    assert decision.reason == "refused"


@dataclass(frozen=True)
class Case:
    """What is done, how often scripts run for it, and what the quota has counted after it."""

    do: Callable[[Scene], Awaitable[None]]
    runs: int = 1
    charged: int = 1
    in_use: int = 1


CASES = {
    "check": Case(check, charged=2, in_use=2),
    "admit(wait)": Case(wait, charged=2, in_use=2),
    "peek": Case(peek),
    "settle": Case(settle, charged=5, in_use=0),
    "leaving a guard": Case(guard, runs=2, charged=1 + 5),
    "giving back after a veto": Case(give_back, runs=2),
    "renew": Case(lambda one: one.unavailable(one.bus.renew(one.permit))),
    "reset": Case(lambda one: one.unavailable(one.bus.reset("calls", who="acme"))),
    "force": Case(
        lambda one: one.unavailable(one.bus.force("provider", CircuitState.OPEN, who="acme"))
    ),
    "override": Case(lambda one: one.unavailable(one.bus.override("calls", 5, who="acme"))),
    "sync": Case(lambda one: one.unavailable(one.bus.sync("calls", remaining=9, who="acme"))),
}


async def rehearse(bus: EventBus, refusing: Refusing) -> None:
    """Do all of it once for somebody else, so that the server knows every script."""
    permit = await bus.admit(Call(who="first"))
    assert await bus.renew(permit)
    assert await bus.settle(permit)
    refusing.whom = "first"
    assert not await bus.check(Call(who="first"))
    refusing.whom = None
    assert await bus.admit(Call(who="first"), wait=1)
    assert await bus.peek(Call(who="first"))
    await bus.reset("calls", who="first")
    await bus.force("provider", CircuitState.CLOSED, who="first")
    await bus.override("calls", 5, who="first")
    await bus.sync("calls", remaining=4, who="first")


@pytest.mark.parametrize("how", ["thrown away", "cut off"])
@pytest.mark.parametrize("verb", CASES)
async def test_a_lost_reply_is_never_asked_for_again(
    valkey: RealServer, verb: str, how: str, fault_record: FaultRecords
):
    """As many scripts run as were asked for, and no more."""
    case, refusing = CASES[verb], Refusing()
    record = fault_record(10, f"reply to `{verb}` {how}", valkey, deadline=DEADLINE)
    policies = [*chain(), refusing]
    async with bus_on(valkey.url, policies, deadline=5) as other:
        await rehearse(other, refusing)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        # Until then it looks at what is there, by script calls of its own.
        assert await bus._listener.synced(DEADLINE)
        await bus._parts.epochs.looked()
        with valkey.counting() as counted:
            await case.do(Scene(proxy, bus, record, permit, refusing, how == "cut off"))
        assert counted["evalsha"] + counted["eval"] == case.runs
        assert (charged(valkey), in_use(valkey)) == (case.charged, case.in_use)
        record.charge(charged(valkey))


async def test_a_lost_reply_to_a_chunk_taken_ahead_is_never_asked_for_again(
    valkey: RealServer, fault_record: FaultRecords
):
    """What is in doubt is a chunk then: charged once, and spent by nobody."""
    record = fault_record(10, "reply to a prefetch thrown away", valkey, deadline=DEADLINE)
    policies = [quota(prefetch=10, limit=100)]
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, policies) as bus:
        for _ in range(2):
            assert await bus.check(Call(who="first"))
        before = valkey.commandstats()
        Losing(proxy)
        async with within(DEADLINE):
            await asyncio.gather(*(ask(bus, record) for _ in range(5)))
        assert set(record.seen) == {f"denied, `{UNAVAILABLE}`"}
        ran = valkey.commandstats() - before
        assert ran["evalsha"] + ran["eval"] == 1
        assert 1 <= charged(valkey) <= 10
        record.charge(charged(valkey))


async def test_a_place_in_line_is_given_up_once_though_the_reply_is_lost(
    valkey: RealServer, fault_record: FaultRecords
):
    """A waiter is cancelled, and nobody hears that it has left."""
    record = fault_record(10, "reply to giving up a place in line thrown away", valkey)
    line = f"{PREFIX}slots.order:slots:acme"
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [slots(limit=1)], deadline=1) as bus:
        holder = (await ask(bus, record)).permit
        assert holder is not None
        for lost in (False, True):
            waiting = asyncio.create_task(bus.admit(Call(), wait=30))
            await eventually(lambda: valkey.control.zcard(line), what="it stands in line")
            assert await bus._listener.synced(1)
            await bus._parts.epochs.looked()
            # Nothing of its own is under way: it sleeps until it is woken.
            await eventually(lambda: _asleep(bus))
            if lost:
                Losing(proxy)
            with valkey.counting() as counted:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                # Sooner than its sign of life would be missed.
                await eventually(lambda: not valkey.control.zcard(line), 1, what="it has left")
            record.saw("cancelled, and out of the line")
        assert counted["evalsha"] + counted["eval"] == 1
        proxy.heal()
        assert await bus.settle(holder)
        assert await ask(bus, record)
        assert in_use(valkey) == 1


def _asleep(bus: EventBus) -> bool:
    waiters = bus._parts.waiting._waiters.values()
    return bool(waiters) and all(
        one.heard is None and one.listed for each in waiters for one in each
    )


async def test_settling_again_after_a_lost_reply_changes_nothing(valkey: RealServer):
    """The caller may well ask again; what was done is not done twice."""
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url) as bus:
        permit = await bus.admit(Call())
        await bus.settle(await bus.admit(Call(who="first")))  # the script is known
        Losing(proxy)
        with pytest.raises(StoreUnavailable):
            await bus.settle(permit, tokens=5)
        proxy.heal()
        assert charged(valkey) == 5
        assert set((await bus.settle(permit, tokens=5)).stale) >= {"tokens", "slots", "provider"}
        assert charged(valkey) == 5
