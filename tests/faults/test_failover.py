"""Several servers, of which one is lost, stands still, or hands its slots to another."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState
from stanchion.events import CircuitOpened
from stanchion.observers import Recorder
from tests.faults.calls import (
    DEADLINE,
    PREFIX,
    Call,
    breaker,
    bus_on,
    charged,
    denied,
    quota,
    rate,
    recovered,
    within,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from stanchion import EventBus
    from tests.servers import RealServer
    from tests.topologies import Cluster, SentinelGroup

#: Seconds in which the servers themselves may sort out who leads.
SORTED_OUT = 20.0


class Load:
    """Callers that check without a pause, and how that went."""

    def __init__(self, bus: EventBus, callers: int = 10) -> None:
        self.admitted = 0
        self.denied = 0
        self._bus = bus
        self._over = asyncio.Event()
        self._callers = [asyncio.create_task(self._call()) for _ in range(callers)]

    async def _call(self) -> None:
        while not self._over.is_set():
            decision = await self._bus.check(Call())
            assert decision.allowed or decision.reason == "store_unavailable"
            self.admitted += decision.allowed
            self.denied += not decision.allowed
            # A denial may come at once: leave the loop to others.
            await asyncio.sleep(0 if decision else 0.005)

    async def goes_on(self) -> None:
        """Wait until checks are admitted, from now on."""
        before = self.admitted
        await eventually(lambda: self.admitted > before + 20, SORTED_OUT, what="checks go through")

    async def stop(self) -> None:
        self._over.set()
        await asyncio.gather(*self._callers)


@asynccontextmanager
async def load_on(bus: EventBus) -> AsyncGenerator[Load]:
    load = Load(bus)
    try:
        await load.goes_on()
        yield load
    finally:
        await load.stop()


# ---- sentinels


async def test_a_failover_is_followed_to_the_new_primary(sentinel: SentinelGroup):
    """SENTINEL FAILOVER under load; what was not replicated is the most that is lost."""
    old, new = sentinel.primary, sentinel.replica
    async with bus_on(sentinel.url, [quota()]) as bus:
        async with load_on(bus) as load:
            await asyncio.to_thread(sentinel.failover)
            # The sentinels do so within ten seconds; till then the old one takes writes, in vain.
            old.execute("REPLICAOF", new.host, new.port)
            await load.goes_on()
        # Never more than once each, and from now on exactly once each, there and not elsewhere.
        counted = charged(new)
        assert counted <= load.admitted + load.denied
        for _ in range(20):
            assert await bus.check(Call())
        assert charged(new) == counted + 20


async def test_a_primary_that_has_lost_its_replicas_is_left_for_the_new_one(
    sentinel: SentinelGroup,
):
    """SENTINEL FAILOVER leaves two primaries for ten seconds; the old one is told to refuse."""
    old, new = sentinel.primary, sentinel.replica
    with old.configured(min_replicas_to_write=1):
        async with bus_on(sentinel.url, [quota()]) as bus:
            assert await bus.check(Call())
            await asyncio.to_thread(sentinel.failover)
            assert await recovered(bus, SORTED_OUT)
            assert charged(new) == 2
            assert old.execute("ROLE")[0] == "master"


async def test_a_primary_that_was_killed_is_replaced(sentinel: SentinelGroup):
    """SIGKILL, and the sentinels find another by themselves."""
    lost, new = sentinel.primary, sentinel.replica
    async with bus_on(sentinel.url, [quota()]) as bus:
        assert await bus.check(Call())
        await eventually(lambda: charged(new) == 1, what="it is replicated")
        lost.kill()
        async with within(DEADLINE):
            await denied(bus, 20)
        assert await recovered(bus, SORTED_OUT)
        assert charged(new) >= 2


@pytest.mark.parametrize("hung", [1, 2])
async def test_sentinels_that_hang_keep_nobody_from_asking_another(
    sentinel: SentinelGroup, hung: int
):
    """A check has one deadline; no single sentinel may use it up."""
    for one in sentinel.sentinels[:hung]:
        one.pause()
    try:
        async with bus_on(sentinel.url, deadline=2) as bus:
            # Several connections at once, each of which asks the sentinels.
            assert all(await asyncio.gather(*(bus.check(Call()) for _ in range(200))))
            store: Any = bus._store
            manager = store._calls.connections.client.connection_pool.sentinel_manager
            assert len({id(one) for one in manager.sentinels}) == 3
    finally:
        for one in sentinel.sentinels[:hung]:
            one.resume()


async def test_sentinels_that_are_all_away_are_told_of_without_what_they_were_asked_with():
    """The client's own text shows each connection with its settings."""
    url = "redis+sentinel://worker:hunter2@127.0.0.1:1,127.0.0.1:2/mymaster/0"
    told: list[str] = []
    async with bus_on(url, [rate()], deadline=0.5) as bus:
        bus.observers.register(lambda event: told.append(event.error), on="policy:failed")
        assert not await bus.check(Call())
    assert told
    assert all("no sentinel" in text for text in told)
    assert not [text for text in told if "hunter2" in text or "Connection" in text]


# ---- cluster


@contextmanager
def partial(cluster: Cluster) -> Generator[tuple[RealServer, list[RealServer]]]:
    """Let the nodes serve what is theirs while others are down; get ours, and the others."""
    with ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(node.configured(cluster_require_full_coverage="no"))
        ours = cluster.node_of(PREFIX)
        yield ours, [node for node in cluster.nodes if node is not ours]


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_other_nodes_may_be_lost_unnoticed(cluster: Cluster, how: str):
    """A primary that does not own our slot."""
    with partial(cluster) as (ours, others):
        async with bus_on(cluster.url, [quota(), breaker()]) as bus:
            assert await bus.check(Call())
            for node in others:
                node.kill() if how == "kill" else node.pause()
            for _ in range(50):
                async with within(DEADLINE):
                    assert await bus.check(Call())
            assert charged(ours) == 51
            assert await bus.force("provider", CircuitState.OPEN, who="acme") == "closed"
            assert {one.policy async for one in bus.inspect()} == {"tokens", "provider"}
            assert await bus.reset("tokens") == 1
            # Who comes only now finds the way as well, if a hung node may cost a check.
            async with bus_on(cluster.url, [quota()]) as late:
                assert await recovered(late, SORTED_OUT)
        for node in others:
            if node.paused:
                node.resume()


async def test_our_node_is_missed_and_found_again(cluster: Cluster):
    """SIGKILL of the primary that owns our slot, which comes back empty."""
    with partial(cluster) as (ours, _):
        async with bus_on(cluster.url, [quota()]) as bus:
            assert await bus.check(Call())
            ours.kill()
            for _ in range(5):
                async with within(DEADLINE):
                    await denied(bus, 20)
            ours.start()
            assert await recovered(bus, SORTED_OUT)
            assert charged(ours) == 1


async def test_a_hung_node_denies_by_the_deadline(cluster: Cluster):
    """SIGSTOP of the primary that owns our slot."""
    with partial(cluster) as (ours, _):
        async with bus_on(cluster.url, [quota()]) as bus:
            assert await bus.check(Call())
            ours.pause()
            for _ in range(5):
                async with within(DEADLINE):
                    await denied(bus, 20)
            ours.resume()
            assert await recovered(bus, SORTED_OUT)
            assert charged(ours) <= 2 + 5 * 20


async def test_listening_moves_to_another_node(cluster: Cluster):
    """News come through any node; one that is lost is left for another."""
    channel = f"{PREFIX}control"

    def listened_at(node: RealServer) -> bool:
        return node.alive and dict(node.control.pubsub_numsub(channel))[channel] > 0

    with partial(cluster) as (ours, others):
        # The node is drawn by lot: draw until it is one that we can do without.
        for _ in range(30):
            recorder = Recorder()
            async with bus_on(cluster.url, deadline=2, observers=[recorder]) as bus:
                await eventually(lambda: any(map(listened_at, cluster.nodes)))
                if listened_at(ours):
                    continue
                next(node for node in others if listened_at(node)).kill()
                await eventually(lambda: any(map(listened_at, cluster.nodes)), SORTED_OUT)
                await bus.force("provider", CircuitState.OPEN, who="acme")
                assert (await recorder.wait_for(CircuitOpened, 10)).subject == "acme"
                return
        pytest.fail("thirty draws, and always the same node")
