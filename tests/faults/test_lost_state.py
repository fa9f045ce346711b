"""All state is lost: a server that comes back empty, a flush, an empty replica that takes over."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from stanchion import Decision, Event, Quota, RateLimit, Verdict, epochs
from stanchion.cli import main
from stanchion.events import StateLost
from stanchion.observers import Recorder
from tests.busses import snapshot
from tests.contention.fleet import fleet, now_us
from tests.faults.calls import NAMESPACE, PREFIX, Call, bus_on, quota, rate, recovered, slots
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from stanchion import EventBus
    from tests.servers import RealServer
    from tests.topologies import SentinelGroup

LIMIT = 10**6
DECADE_US = 3650 * 86_400 * 1_000_000
#: So long that no test run sees an end of it.
DECADE = "3650d"
SORTED_OUT = 20.0

SPENT: list[Any] = [
    rate(name="bucket", limit=100, per="10d"),
    rate(name="slices", algorithm="sliding_window"),
    rate(name="log", algorithm="sliding_log", limit=5),
    rate(name="window", algorithm="fixed_window", per=DECADE),
    quota(name="budget"),
    quota(name="rolling", per="1d", rolling=True),
    slots(name="seats"),
]
SPENT = [policy.model_copy(update={"cold_start": "spent"}) for policy in SPENT]
PRORATED: list[Any] = [
    quota(name="part", limit=LIMIT, cold_start="prorated"),
    quota(name="even", limit=3000, per="1d", rolling=True, cold_start="prorated"),
]
FRESH: list[Any] = [rate(name="anew"), quota(name="anew-too"), slots(name="seats-anew")]
EACH = [*SPENT, *PRORATED, *FRESH]


@asynccontextmanager
async def watching(url: str, *policies: Any, **options: Any) -> AsyncGenerator[EventBus]:
    """Get a bus that knows what life its server's state is in."""
    async with bus_on(url, policies, deadline=options.pop("deadline", 2), **options) as bus:
        await bus._parts.epochs.looked()
        yield bus


def epoch(server: RealServer, tag: str = NAMESPACE) -> dict[str, str]:
    return cast("dict[str, str]", server.control.hgetall(f"stanchion:{{{tag}}}:epoch"))


async def first_answer(bus: EventBus, timeout: float = 10) -> Decision:
    """Get the first decision that the store makes, however long it is away."""

    async def answered() -> list[Decision]:
        decision = await bus.check(Call())
        # A list, since a denial is false.
        return [decision] if decision.decided_at is not None else []

    return (await eventually(answered, timeout, what="the store decides"))[0]


def begun_as_declared(decision: Decision, server: RealServer) -> None:
    said: dict[str, Verdict] = {verdict.policy: verdict for verdict in decision.verdicts}
    lost_us = int(epoch(server)["lost"])
    assert lost_us
    for policy in SPENT:
        assert not said[policy.name].allowed, said[policy.name]
        assert said[policy.name].remaining == 0
    for policy in FRESH:
        assert said[policy.name].allowed, said[policy.name]
        assert said[policy.name].remaining == said[policy.name].limit
    used = math.ceil(LIMIT * (lost_us % DECADE_US) / DECADE_US)
    assert said["part"].remaining == LIMIT - used
    assert said["even"].remaining == 0


# ---- the first decision


async def test_the_first_decision_of_an_empty_successor_is_as_declared(server: RealServer):
    """SIGKILL, and another one on the same port; not even one is decided as if all were new."""
    async with watching(server.url, *EACH) as bus:
        assert await bus.check(Call())
        server.restart()
        begun_as_declared(await first_answer(bus), server)


async def test_the_first_decision_after_a_flush_is_as_declared(server: RealServer):
    async with watching(server.url, *EACH) as bus:
        assert await bus.check(Call())
        server.execute("FLUSHALL")
        before = await snapshot(bus)
        begun_as_declared_by = await bus.peek(Call())
        assert epoch(server) == {}, "a peek has written something down"
        decision = await first_answer(bus)
        begun_as_declared(decision, server)
        assert [(v.policy, v.allowed) for v in begun_as_declared_by.verdicts] == [
            (v.policy, v.allowed) for v in decision.verdicts
        ]
        assert await snapshot(bus) == before


async def test_an_empty_replica_that_takes_over_is_noticed(sentinel: SentinelGroup):
    """The primary is killed while its replica has nothing yet, and the sentinels promote that."""
    lost, new = sentinel.primary, sentinel.replica
    recorder = Recorder()
    async with watching(sentinel.url, *EACH, observers=[recorder]) as bus:
        assert await bus.check(Call())
        lost.kill()
        new.restart()
        new.execute("REPLICAOF", lost.host, lost.port)
        begun_as_declared(await first_answer(bus, SORTED_OUT), new)
        await recorder.wait_for(StateLost, 10)


async def test_a_loss_under_load_gives_nothing_out_twice(server: RealServer):
    """SIGKILL and a restart while processes ask: nothing passes but what has filled up since."""
    limit, per = 40, 4
    policy = rate(limit=limit, per=f"{per}s", cold_start="spent")
    async with fleet(server.url, policy, workers=3, module="tests.faults.asker") as workers:
        await workers.ask("press")
        server.kill()
        back = time.time_ns() // 1000
        server.start()
        await workers.ask("served_since", moment=back)
        answers = await workers.ask("answer")
        until, lost = now_us(server), int(epoch(server)["lost"])
    after = sorted(at for answer in answers for at in answer["admitted"] if at >= back)
    assert lost >= back
    filled_up = limit * (until - lost) / (per * 1_000_000)
    assert len(after) <= filled_up + 1, f"{len(after)} were admitted where {filled_up} had come"
    # None before the first one can have filled up.
    assert after[0] >= lost + per * 1_000_000 / limit - 1
    losses = [answer["losses"] for answer in answers]
    assert len(losses[0]) == 1
    assert losses == [losses[0]] * len(workers)


async def test_what_has_state_goes_on_as_it_was(valkey: RealServer):
    """Only the epoch is lost, as by an eviction: nothing that is stored changes."""
    async with watching(valkey.url, *SPENT) as bus:
        permit = (await bus.check(Call())).permit
        assert permit is not None
        valkey.control.delete(f"{PREFIX}epoch")
        assert (await bus.check(Call())).allowed
        assert int(epoch(valkey)["lost"])
        assert not (await bus.check(Call(who="another"))).allowed
        assert await bus.settle(permit)


async def test_what_a_provider_says_does_not_loosen_what_was_lost(valkey: RealServer):
    """State that `sync` makes begins by the rule as well."""
    async with watching(valkey.url, *SPENT) as bus:
        valkey.execute("FLUSHALL")
        for name in ("bucket", "slices", "log", "window", "budget", "rolling"):
            await bus.sync(name, remaining=3, who="acme")
        decision = await bus.check(Call())
        assert {v.policy for v in decision.vetoes} == {policy.name for policy in SPENT}


async def test_waiting_in_line_keeps_what_the_rule_began_with(valkey: RealServer):
    """Whoever waits makes state before anything is admitted; slots come back after one lease."""
    policy = slots(limit=2, lease="1s", cold_start="spent")
    async with watching(valkey.url, policy) as bus:
        valkey.execute("FLUSHALL")
        permit = await bus.admit(Call(), wait=10)
        lost = int(epoch(valkey)["lost"])
        assert permit.admitted_us >= lost + 1_000_000
        # The slots that were lost are no leases that anybody holds.
        assert (await bus.peek(Call())).allowed


# ---- noticing


async def test_a_loss_is_told_once_and_alike_by_every_process(valkey: RealServer, caplog: Any):
    """Without a declared rule too; and it says since when."""
    recorders = Recorder(), Recorder()
    async with (
        watching(valkey.url, rate(), observers=[recorders[0]]) as one,
        watching(valkey.url, rate(), observers=[recorders[1]]) as other,
    ):
        before = epoch(valkey)["id"]
        valkey.execute("FLUSHALL")
        for bus in (one, other):
            bus._parts.epochs.look()
        told = [await _lost(recorder) for recorder in recorders]
        now = epoch(valkey)
        assert told[0] == told[1]
        (event,) = told[0]
        assert (event.namespace, event.tag) == (NAMESPACE, NAMESPACE)
        assert (event.previous, event.epoch) == (before, now["id"])
        assert round(event.lost_at.timestamp() * 1_000_000) == int(now["lost"])
        # It is over: nobody tells it again, and whoever comes now has lost nothing.
        for bus in (one, other):
            await bus._parts.epochs._greet(NAMESPACE)
        late = Recorder()
        async with watching(valkey.url, rate(), observers=[late]) as third:
            await third._parts.epochs._greet(NAMESPACE)
            assert not late.of(StateLost)
        assert [len(recorder.of(StateLost)) for recorder in recorders] == [1, 1]
    assert sum("has been lost" in record.message for record in caplog.records) == 2


async def _lost(recorder: Recorder) -> tuple[StateLost, ...]:
    await recorder.wait_for(StateLost, 10)
    return recorder.of(StateLost)


async def test_a_restart_is_noticed_by_itself_within_seconds(
    valkey: RealServer, monkeypatch: pytest.MonkeyPatch
):
    """Nobody asks anything; the subscription that comes back has it looked at."""
    monkeypatch.setattr(epochs, "EVERY", 60.0)
    recorder = Recorder()
    async with watching(valkey.url, rate(), observers=[recorder]):
        valkey.restart()
        await _lost(recorder)


async def test_whoever_comes_first_and_knows_nothing_hides_no_loss(valkey: RealServer):
    """A new process begins an epoch; the one that knew the last says that it began with a loss."""
    recorder = Recorder()
    async with watching(valkey.url, *SPENT, observers=[recorder]) as old:
        valkey.execute("FLUSHALL")
        async with watching(valkey.url, *SPENT):
            born = epoch(valkey)
            assert born["lost"] == "0"
            assert not (await old.check(Call())).allowed
            assert epoch(valkey)["lost"] == born["born"]
            old._parts.epochs.look()
            (event,) = await _lost(recorder)
            assert event.epoch == born["id"]


async def test_denials_and_units_taken_ahead_go_with_the_state(valkey: RealServer):
    class Cheap(Event, type="fault:cheap"):
        who: str = "acme"

    ahead = RateLimit(name="ahead", on=Cheap, limit=1000, per="100s", prefetch=100)
    full = rate(limit=1)
    recorder = Recorder()
    async with watching(valkey.url, ahead, full, cache_denials=True, observers=[recorder]) as bus:
        pools = bus._parts.prefetching._pools

        async def kept() -> bool:
            await bus.check(Call())
            return bool(bus._parts.denials and bus._parts.denials._known)

        await eventually(kept, what="a denial is kept")
        assert await bus.check(Cheap())
        assert next(iter(pools.values())).at_hand > 0
        valkey.execute("FLUSHALL")
        bus._parts.epochs.look()
        await _lost(recorder)
        # At once: in a second they would have gone back by themselves.
        assert not any(pool.at_hand > 0 for pool in pools.values())
        # A refusal of a state that is gone holds nobody up.
        assert await bus.check(Call())


async def test_each_shard_loses_its_own_state(valkey: RealServer):
    """Nodes of a cluster can lose theirs apart from each other."""
    recorder = Recorder()
    policies = [quota(by="who", cold_start="spent", limit=10)]
    async with watching(
        valkey.url, *policies, observers=[recorder], shard_by="who", shards=4
    ) as bus:
        whos = [f"w{number}" for number in range(20)]
        for who in whos:
            assert await bus.check(Call(who=who))
        for tag in bus._store.tags:
            await bus._parts.epochs._greet(tag)
        assert len(bus._store.tags) == 5
        one = f"{NAMESPACE}/1"
        gone = valkey.control.keys(f"stanchion:{{{one}}}:*")
        assert gone
        valkey.control.delete(*cast("list[str]", gone))
        allowed = {who: (await bus.check(Call(who=who))).allowed for who in whos}
        there = {who for who in whos if not allowed[who]}
        assert len(there) == sum(":quota:" in key for key in cast("list[str]", gone))
        bus._parts.epochs.look()
        (event,) = await _lost(recorder)
        assert (event.namespace, event.tag) == (NAMESPACE, one)


# ---- what nobody can notice


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stanchion", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert end.value.code == 0, captured.err
        return captured.out

    return run


async def test_an_operator_says_what_nobody_could_notice_and_takes_it_back(
    valkey: RealServer, run: Callable[..., str]
):
    """A fleet that starts together with its server knows of nothing before."""
    recorder = Recorder()
    here = valkey.url, "--namespace", NAMESPACE
    async with watching(valkey.url, *SPENT, observers=[recorder]) as bus:
        assert await bus.check(Call())
        told = await asyncio.to_thread(run, "lost", *here)
        assert f"stanchion:{{{NAMESPACE}}}: what was before " in told
        assert await bus.check(Call()), "what is stored stays"
        assert not await bus.check(Call(who="another"))
        bus._parts.epochs.look()
        assert len(await _lost(recorder)) == 1
        found = await asyncio.to_thread(run, "doctor", *here, "--json")
        assert "all of it had been lost" in found
        told = await asyncio.to_thread(run, "lost", "--restore", *here)
        assert told == f"stanchion:{{{NAMESPACE}}}: nothing counts as lost\n"
        assert await bus.check(Call(who="another"))
        found = await asyncio.to_thread(run, "doctor", *here, "--json")
        assert "nothing lost that anybody noticed" in found


async def test_local_shares_end_with_the_outage_and_the_rule_holds_after_it(valkey: RealServer):
    """What processes admitted alone is in nobody's books; a spent limit gives out nothing more."""
    policy = Quota(
        name="tokens",
        on=Call,
        by="who",
        limit=10,
        per=DECADE,
        on_outage="local",
        cold_start="spent",
    )
    async with watching(valkey.url, policy, processes=2, deadline=0.4) as bus:
        assert await bus.check(Call())
        valkey.kill()
        alone = [await bus.check(Call()) for _ in range(8)]
        assert sum(decision.allowed for decision in alone) == 5
        valkey.start()
        decision = await first_answer(bus)
        assert (decision.allowed, decision.reason) == (False, "quota_exhausted")
        with pytest.raises(AssertionError):
            await recovered(bus, 0.3)
