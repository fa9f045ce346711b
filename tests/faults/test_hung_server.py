"""The server is there, takes bytes, and does not answer: stopped, paused, or busy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from stanchion import CircuitState, StoreUnavailable
from tests.faults.calls import (
    DEADLINE,
    Call,
    ask,
    bus_on,
    charged,
    denied,
    in_use,
    quota,
    recovered,
    shut,
    slots,
    within,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.faults.report import FaultRecord, FaultRecords
    from tests.servers import RealServer


async def test_a_hung_server_denies_by_the_deadline_and_then_at_once(
    server: RealServer, fault_record: FaultRecords
):
    """SIGSTOP, SIGCONT."""
    record = fault_record(1, "SIGSTOP, SIGCONT", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        assert await ask(bus, record)
        server.pause()
        async with within(DEADLINE):
            await denied(bus, record=record)
        waited = 1 + await shut(bus, record)
        async with within(0.1):
            await denied(bus, 50, record=record)
        server.resume()
        assert await recovered(bus, record=record)
        # What was sent to it while it stood still may have been executed when it went on, once
        # each; a check that was denied at once had not been sent.
        assert 2 <= charged(server) <= 2 + waited
        record.charge(charged(server))


async def test_what_a_hung_server_was_sent_is_counted_once_when_it_goes_on(valkey: RealServer):
    """The request lies in the server's socket when its caller gives up."""
    async with bus_on(valkey.url, [quota(), slots(limit=2, lease="1s")]) as bus:
        permit = (await bus.check(Call())).permit
        assert permit is not None
        valkey.pause()
        await denied(bus)
        valkey.resume()
        await eventually(lambda: charged(valkey) == 2, what="the request in doubt is executed")
        assert in_use(valkey) == 2
        # It has a slot that nobody holds a permit for; that comes back with its lease.
        assert await bus.settle(permit)
        await eventually(lambda: _admits_twice(bus), what="the lease of what was in doubt ends")
        assert charged(valkey) >= 3


async def _admits_twice(bus: EventBus) -> bool:
    decisions = [await bus.check(Call()), await bus.check(Call())]
    for decision in decisions:
        if decision.permit is not None:
            await bus.settle(decision.permit)
    return all(decisions)


async def test_every_verb_ends_by_the_deadline_while_the_server_hangs(valkey: RealServer):
    """What has no decision to say it in raises StoreUnavailable."""
    async with bus_on(valkey.url) as bus:
        permit = (await bus.check(Call())).permit
        assert permit is not None
        valkey.pause()
        async with within(DEADLINE):
            answers = await asyncio.gather(
                bus.settle(permit),
                bus.reset("calls"),
                bus.reset("calls", who="acme"),
                bus.force("provider", CircuitState.OPEN, who="acme"),
                bus.renew(permit),
                bus.override("calls", 5, who="acme"),
                bus.sync("calls", remaining=0, who="acme"),
                anext(aiter(bus.inspect())),
                bus.admit(Call(), wait=10),
                bus.peek(Call()),
                return_exceptions=True,
            )
        *raised, vetoed, foreseen = answers
        assert [type(error) for error in raised] == [StoreUnavailable] * 8
        assert "store_unavailable" in str(vetoed)
        assert getattr(foreseen, "reason", None) == "store_unavailable"


async def test_closing_while_the_server_hangs_takes_two_deadlines_at_most(valkey: RealServer):
    """With checks, settlements and leases under way."""
    bus = bus_on(valkey.url, [quota(), slots(lease="150ms")])
    entered, leave = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with bus.guard(Call()):
            entered.set()
            await leave.wait()

    await bus.open()
    permit = await bus.admit(Call())
    working = asyncio.create_task(work())
    await entered.wait()
    valkey.pause()
    checks = [asyncio.create_task(bus.check(Call())) for _ in range(100)]
    settling = asyncio.create_task(bus.settle(permit))
    await asyncio.sleep(0)
    async with within(2 * DEADLINE):
        await bus.close()
    assert not any(await asyncio.gather(*checks))
    with pytest.raises(StoreUnavailable):
        await settling
    leave.set()
    await working


@pytest.mark.parametrize("mode", ["WRITE", "ALL"])
async def test_a_paused_server_denies_by_the_deadline(
    server: RealServer, mode: str, fault_record: FaultRecords
):
    """CLIENT PAUSE; a script that may write waits as well, whether it does or not."""
    record = fault_record(6, f"`CLIENT PAUSE {mode}`", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        server.execute("CLIENT", "PAUSE", int(2500 * DEADLINE), mode)
        async with within(DEADLINE):
            await denied(bus, record=record)
        async with within(DEADLINE):
            _, settled, foreseen = await asyncio.gather(
                denied(bus, record=record),
                record.ask(bus.settle(permit)),
                bus.peek(Call()),
                return_exceptions=True,
            )
        assert isinstance(settled, StoreUnavailable)
        assert getattr(foreseen, "reason", None) == "store_unavailable"
        assert await recovered(bus, record=record)
        # What a client has sent before it hung up is forgotten with the client.
        assert (charged(server), in_use(server)) == (2, 2)
        assert await bus.settle(permit)
        assert in_use(server) == 1
        record.charge(charged(server))


async def test_a_server_that_sleeps_denies_by_the_deadline(
    server: RealServer, fault_record: FaultRecords
):
    """DEBUG SLEEP."""
    record = fault_record(7, "`DEBUG SLEEP`", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus, server.client() as other:
        assert await ask(bus, record)
        asleep = asyncio.create_task(other.execute_command("DEBUG", "SLEEP", 3 * DEADLINE))
        await eventually(lambda: _refusal(bus, record), what="it sleeps", interval=0)
        async with within(DEADLINE):
            await denied(bus, record=record)
        await asleep
        assert await recovered(bus, record=record)
        # Those that were denied may lie in its socket, and are executed once each, or not at all.
        assert record.admitted <= charged(server) <= record.asked
        record.charge(charged(server))


async def test_a_server_busy_with_a_script_denies_and_goes_on_when_it_is_killed(
    server: RealServer, fault_record: FaultRecords
):
    """BUSY, while somebody's script runs on and on."""
    record = fault_record(7, "`BUSY`: a script that loops, killed", server, deadline=5)
    async with bus_on(server.url, deadline=5) as bus, server.client() as other:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        with server.configured(busy_reply_threshold=20):
            endless = asyncio.create_task(other.execute_command("EVAL", "while true do end", 0))
            reason = await eventually(
                lambda: _refusal(bus, record), what="the endless script is in the way"
            )
            assert reason == "store_unavailable"
            # An answer it is, and so nobody waits for the deadline.
            async with within(1):
                await denied(bus, 20, record=record)
            with pytest.raises(StoreUnavailable, match="BUSY"):
                await bus.settle(permit)
            server.execute("SCRIPT", "KILL")
            with pytest.raises(ResponseError):
                await endless
            # The gate stayed open: the very next check is admitted.
            with record.recovering():
                assert await ask(bus, record)
        assert charged(server) == record.admitted
        assert await bus.settle(permit)
        assert in_use(server) == record.admitted - 1
        record.charge(charged(server))


async def _refusal(bus: EventBus, record: FaultRecord) -> str | None:
    return (await ask(bus, record)).reason


async def test_a_script_that_has_written_and_loops_denies_until_the_server_is_restarted(
    valkey: RealServer, fault_record: FaultRecords
):
    """UNKILLABLE: it cannot be killed any more, and the server with it only by force."""
    record = fault_record(7, "`BUSY`: a script that loops and cannot be killed", valkey, deadline=5)
    forever = "redis.call('SET', KEYS[1], 1, 'EX', 60) while true do end"
    async with bus_on(valkey.url, deadline=5) as bus, valkey.client() as other:
        assert await ask(bus, record)
        valkey.execute("CONFIG", "SET", "busy-reply-threshold", 20)
        endless = asyncio.create_task(other.execute_command("EVAL", forever, 1, "in-the-way"))
        await eventually(lambda: _refusal(bus, record), what="the endless script is in the way")
        with pytest.raises(ResponseError, match="UNKILLABLE"):
            valkey.execute("SCRIPT", "KILL")
        async with within(1):
            await denied(bus, 20, record=record)
        valkey.restart()
        with pytest.raises(RedisConnectionError):
            await endless
        before = record.admitted
        assert await recovered(bus, record=record)
        assert charged(valkey) == record.admitted - before == 1
        # Of those before, the server has forgotten the one that it had admitted.
        record.charge(charged(valkey) + before)
