"""`KillSwitch`: one command, and no worker admits any more; also when it could not hear of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stanchion import ConfigError, EventBus, Reason
from stanchion.events import PolicyChanged, PolicyFailed
from stanchion.observers import Recorder
from stanchion.policies.kill_switch import KillSwitch
from stanchion.store.keys import Keyspace
from tests.busses import Call, Custom, Other, SpecialCall, slots
from tests.faults.proxy import Proxy
from tests.waiting import eventually

CALL = Call(tenant="acme")
KEY = "stanchion:{default}:halts"
CHANNEL = "stanchion:{default}:halting"
WORKERS = 4
WHO = {"who": "alice", "why": "runaway costs"}


def switch(**fields: Any) -> KillSwitch:
    return KillSwitch(**{"name": "switch", **fields})


async def reason(bus: EventBus, event: Any = CALL) -> str | None:
    return (await bus.check(event)).reason


# ---- one process


async def test_what_is_halted_is_vetoed_with_who_and_why_and_the_rest_is_not(open_bus):
    stop = switch(on_veto="skip")
    bus = await open_bus(stop)
    assert await bus.check(CALL)
    assert await stop.halt("busses:*", **WHO)
    decision = await bus.check(CALL)
    assert (decision.policy, decision.reason, decision.signal) == ("switch", "halted", "skip")
    assert decision.retry_after is None
    assert decision.verdicts[0].detail == "busses:*, by alice: runaway costs"
    assert await bus.check(Other())
    assert not await stop.halt("busses:*", **WHO), "it was already"
    assert await stop.resume("busses:*") == 1
    assert await bus.check(CALL)
    assert await stop.resume("busses:*") == 0


async def test_fields_narrow_what_is_halted(open_bus):
    stop = switch()
    bus = await open_bus(stop)
    await stop.halt("*", tenant="acme", model="m1", **WHO)
    assert await reason(bus) == "halted"
    assert await bus.check(Call(tenant="acme", model="m2"))
    assert await bus.check(Call(tenant=None))
    assert await bus.check(Other()), "it has no model"
    await stop.halt("*", **{"metadata.plan": "free"}, **WHO)
    assert await reason(bus, Other(metadata={"plan": "free"})) == "halted"
    assert await bus.check(Other(metadata={"plan": "pro"}))
    assert [halt.name for halt in await stop.halted()] == [
        "* model=m1 tenant=acme",
        "* metadata.plan=free",
    ]
    assert await stop.resume() == 2
    assert await stop.halted() == ()


async def test_a_switch_is_about_what_it_was_declared_for(open_bus):
    stop = switch(on=SpecialCall)
    bus = await open_bus(stop)
    await stop.halt("*", **WHO)
    assert await bus.check(CALL)
    assert await reason(bus, SpecialCall()) == "halted"


async def test_it_is_asked_before_the_others_and_costs_them_nothing(open_bus):
    stop = switch()
    bus = await open_bus(slots(limit=1), stop)
    await stop.halt("*", **WHO)
    assert [verdict.policy for verdict in (await bus.check(CALL)).verdicts] == ["switch"]


async def test_one_that_was_given_a_duration_ends_by_itself_and_says_when(open_valkey, valkey):
    stop = switch()
    bus = await open_valkey(stop)
    await stop.halt("*", last="400ms", **WHO)
    decision = await bus.check(CALL)
    assert decision.retry_after is not None
    assert 0 < decision.retry_after <= 0.4
    assert 0 < valkey.control.pttl(KEY) <= 401
    began = time.monotonic()
    await eventually(lambda: bus.check(CALL), what="the end of it")
    assert time.monotonic() - began < 1.5
    assert await stop.halted() == ()


async def test_one_that_has_ended_is_forgotten_while_another_lasts(open_valkey, valkey):
    stop = switch()
    bus = await open_valkey(stop)
    await stop.halt("busses_other:*", **WHO)
    await stop.halt("busses:*", last="300ms", **WHO)
    assert await reason(bus) == "halted"
    await eventually(lambda: bus.check(CALL), interval=0)

    async def names():
        return [halt.name for halt in await stop.halted()]

    assert await names() == ["busses_other:*"], "none ends here before it does there"
    assert valkey.control.hlen(KEY) == 2, "reading writes nothing"
    await stop.halt("c:*", **WHO)
    assert valkey.control.hkeys(KEY) == ["busses_other:*", "c:*"]


async def test_it_works_on_a_cluster(cluster):
    here, there = switch(), switch()
    async with (
        EventBus.from_url(cluster.url, policies=[here], deadline=5.0) as bus,
        EventBus.from_url(cluster.url, policies=[there], deadline=5.0) as other,
    ):
        assert await bus.check(CALL)
        assert await other.check(CALL)
        await here.halt("busses:*", **WHO)
        await eventually(lambda: _is(other, CALL, "halted"), 1.0)
        assert await there.resume() == 1
        await eventually(lambda: bus.check(CALL), 1.0)


async def test_the_key_lives_as_long_as_what_is_halted(open_shared, server):
    stop = switch()
    await open_shared(stop)
    await stop.halt("a:*", last="1h", **WHO)
    await stop.halt("b:*", last="10m", **WHO)
    assert 3590_000 < server.control.pttl(KEY) <= 3600_001
    await stop.halt("c:*", **WHO)
    assert server.control.pttl(KEY) == -1
    await stop.resume("c:*")
    assert 3590_000 < server.control.pttl(KEY) <= 3600_001
    await stop.resume("a:*")
    assert 590_000 < server.control.pttl(KEY) <= 600_001
    await stop.resume()
    assert server.control.exists(KEY) == 0


async def test_a_person_can_read_it_and_write_it_with_redis_cli(open_shared, server):
    stop = switch()
    bus = await open_shared(stop)
    await stop.halt("busses:call", tenant="acme", **WHO)
    stored = server.control.hgetall(KEY)
    assert list(stored) == ["busses:call tenant=acme"]
    document = json.loads(stored["busses:call tenant=acme"])
    assert {"on": "busses:call", "by": {"tenant": "acme"}, **WHO}.items() <= document.items()
    server.control.hset(KEY, "busses_other:*", "the provider is on fire")
    server.control.publish(CHANNEL, "")
    other = Other()
    await eventually(lambda: _is(bus, other, "halted"), what="what was written by hand")
    detail = (await bus.check(other)).verdicts[0].detail
    assert detail == "busses_other:*, by somebody: the provider is on fire"


async def _is(bus: EventBus, event: Any, expected: str | None) -> bool:
    return await reason(bus, event) == expected


async def test_namespaces_do_not_hear_each_other(open_valkey):
    here, there = switch(), switch()
    bus = await open_valkey(here)
    other = await open_valkey(there, namespace="elsewhere")
    await here.halt("*", **WHO)
    assert await reason(bus) == "halted"
    assert await other.check(CALL)
    assert await there.halted() == ()


async def test_observers_of_every_worker_learn_who_and_why(open_valkey):
    recorder, stop = Recorder(on=PolicyChanged), switch()
    bus = await open_valkey(switch(), observers=[recorder])
    await open_valkey(stop)
    assert await bus.check(CALL)
    await stop.halt("*", tenant="acme", **WHO)
    told = await recorder.wait_for(PolicyChanged)
    assert (told.policy, told.change) == ("switch", "halted")
    assert told.metadata == {"on": "*", "by": {"tenant": "acme"}, **WHO}
    await stop.resume()

    def changes():
        return [event.change for event in recorder.events if isinstance(event, PolicyChanged)]

    await eventually(lambda: changes() == ["halted", "resumed"])


# ---- when something is in the way


async def test_a_lost_message_delays_it_by_no_more_than_max_age(open_shared, server):
    stop = switch(max_age="200ms")
    bus = await open_shared(stop)
    assert await bus.check(CALL)
    halted_at = time.monotonic()
    server.control.hset(KEY, "*", "nobody was told")
    while await bus.check(CALL):
        asked = time.monotonic()
        assert asked - halted_at < 0.25
    assert await reason(bus) == "halted"


async def test_a_blocked_loop_admits_nothing_afterwards(open_valkey, valkey):
    stop = switch(max_age="200ms")
    bus = await open_valkey(stop)
    assert await bus.check(CALL)
    valkey.control.hset(KEY, "*", "while nobody looked")
    time.sleep(0.25)  # noqa: ASYNC251 - a program that blocks its loop
    assert await reason(bus) == "halted"


async def test_it_hears_again_after_its_connection_was_lost(open_shared, server):
    stop = switch(max_age="30s")
    bus = await open_shared(stop)
    assert await bus.check(CALL)

    def listening():
        return server.control.pubsub_numsub(CHANNEL)[0][1] == 1

    await eventually(listening)
    server.execute("CLIENT", "KILL", "TYPE", "PUBSUB")
    server.control.hset(KEY, "*", "while it was away")
    await eventually(lambda: _is(bus, CALL, "halted"), what="what was missed")
    await eventually(listening)
    server.execute("DEL", KEY)
    server.control.publish(CHANNEL, "")
    await eventually(lambda: _is(bus, CALL, None), what="what comes later")


@pytest.mark.parametrize("outage", ["veto", "admit"])
async def test_when_it_cannot_be_read_it_vetoes_unless_told_otherwise(open_valkey, valkey, outage):
    stop, recorder = switch(on_outage=outage, max_age="100ms"), Recorder(on=PolicyFailed)
    bus = await open_valkey(stop, deadline=0.3, observers=[recorder])
    assert await bus.check(CALL)
    valkey.pause()

    async def unread() -> Any:
        began = time.monotonic()
        decision = await bus.check(CALL)
        assert time.monotonic() - began < 0.6, "the deadline holds"
        return decision.verdicts if decision.verdicts[0].reason != "ok" else ()

    verdict = (await eventually(unread))[0]
    assert verdict.allowed is (outage == "admit")
    assert verdict.reason == Reason.STORE_UNAVAILABLE
    failed = await recorder.wait_for(PolicyFailed)
    assert (failed.policy, failed.error_type) == ("switch", "StoreUnavailable")
    valkey.resume()
    await eventually(lambda: bus.check(CALL), what="recovery")
    await stop.halt("*", **WHO)
    assert await reason(bus) == "halted"


async def test_an_answer_that_is_too_old_when_it_comes_is_none(valkey):
    stop = switch(max_age="100ms")
    async with (
        Proxy(valkey.port) as proxy,
        EventBus.from_url(proxy.url, policies=[stop], deadline=3.0) as bus,
    ):
        assert await bus.check(CALL)
        proxy.delay = 0.075  # each way

        async def unknown() -> Any:
            decision = await bus.check(CALL)
            return decision.verdicts if not decision else ()

        verdict = (await eventually(unknown))[0]
        assert verdict.reason == Reason.STORE_UNAVAILABLE
        assert verdict.detail == "Redis took longer than 0.1 s"
        proxy.delay = 0.0
        await eventually(lambda: bus.check(CALL))


async def test_the_deadline_is_for_all_policies_together(open_valkey, valkey):
    async def slow(event):
        await asyncio.sleep(0.25)
        return True

    first = Custom("slow", priority=-1, answer=slow)
    bus = await open_valkey(first, switch(max_age="50ms"), deadline=0.3)
    assert await bus.check(CALL)
    valkey.pause()
    began = time.monotonic()
    decision = await bus.check(CALL)
    assert time.monotonic() - began < 0.5
    assert (decision.policy, decision.reason) == ("switch", Reason.STORE_UNAVAILABLE)
    valkey.resume()


async def test_state_that_is_no_hash_is_a_veto(open_shared, server):
    bus = await open_shared(switch())
    server.control.set(KEY, "nonsense", ex=60)
    decision = await bus.check(CALL)
    assert (decision.allowed, decision.reason) == (False, Reason.STORE_UNAVAILABLE)
    server.control.delete(KEY)
    await eventually(lambda: bus.check(CALL))


async def test_a_halt_while_the_server_is_away_says_that_it_is_not_known(open_valkey, valkey):
    from stanchion import StoreUnavailable

    stop = switch()
    await open_valkey(stop, deadline=0.2)
    valkey.pause()
    with pytest.raises(StoreUnavailable):
        await stop.halt("*", **WHO)
    valkey.resume()


# ---- several processes


@asynccontextmanager
async def workers(url: str):
    program = Path(__file__).with_name("switch_worker.py")
    started = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, program, url),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"},
        )
        for _ in range(WORKERS)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        await asyncio.gather(*(process.communicate() for process in started))


async def told(process: Any, expected: str) -> tuple[float, float]:
    async with asyncio.timeout(20):
        answer, first, last = (await process.stdout.readline()).decode().split()
    assert answer == expected
    return float(first), float(last)


async def test_every_worker_vetoes_within_a_second_of_one_command(open_valkey, valkey):
    stop = switch()
    await open_valkey(stop)
    async with workers(valkey.url) as started:
        await asyncio.gather(*(told(process, "allowed") for process in started))
        for number in range(3):
            began = time.monotonic()
            await stop.halt("busses:*", **WHO)
            seen = await asyncio.gather(*(told(process, "halted") for process in started))
            slowest = max(first for first, _ in seen) - began
            admitted = max(last for _, last in seen) - began
            print(f"halt {number}: last worker vetoed after {slowest * 1000:.1f} ms,")
            print(f"  last admission was asked for at {admitted * 1000:.1f} ms")
            assert slowest < 1.0
            await stop.resume()
            await asyncio.gather(*(told(process, "allowed") for process in started))


# ---- declared, and by hand


async def test_one_switch_belongs_to_one_bus_at_a_time(valkey):
    stop = switch()
    with pytest.raises(ConfigError, match="is on no"):
        await stop.halt("*", **WHO)
    async with EventBus.from_url("memory://", policies=[stop]) as bus:
        assert await bus.check(CALL)
        with pytest.raises(ConfigError, match="make one for each bus"):
            EventBus.from_url("memory://", policies=[stop])
    async with EventBus.from_url(valkey.url, policies=[stop]) as bus:
        await stop.halt("*", **WHO)
        assert await reason(bus) == "halted"
        await stop.resume()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"on": "nonsense"}, "on='nonsense'"),
        ({"on": "*", "who": ""}, "who=''"),
        ({"on": "*", "why": "a\nb"}, "why="),
        ({"on": "*", "why": "x" * 501}, "why="),
        ({"on": "*", "last": "soon"}, "last='soon'"),
        ({"on": "*", "tenant": ""}, "by tenant=''"),
    ],
)
async def test_a_halt_that_cannot_work_is_refused_by_name(open_bus, arguments, named):
    stop = switch()
    await open_bus(stop)
    with pytest.raises(ConfigError) as caught:
        await stop.halt(**{**WHO, **arguments})
    assert named in str(caught.value)
    assert await stop.halted() == ()


def test_its_key_and_channel_share_the_slot_of_the_namespace():
    keyspace = Keyspace("a")
    assert (keyspace.halts, keyspace.halting) == ("stanchion:{a}:halts", "stanchion:{a}:halting")
