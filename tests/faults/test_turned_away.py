"""The server answers, and its answer is no: a replica, no replicas, no memory, no permission."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome, StanchionError, StoreUnavailable, Vetoed
from tests.faults.calls import (
    DEADLINE,
    NAMESPACE,
    Call,
    ask,
    bus_on,
    charged,
    denied,
    in_use,
    recovered,
    slots,
    state,
    within,
)
from tests.faults.proxy import Proxy
from tests.faults.verbs import every_verb
from tests.rights import commands, documented, url_of
from tests.servers import free_port
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.faults.proxy import Link
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer


async def test_a_replica_is_left_for_a_primary(server: RealServer, fault_record: FaultRecords):
    """READONLY, when a node is demoted under us and promoted again."""
    record = fault_record(14, "`REPLICAOF` at a live node", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        server.execute("REPLICAOF", "127.0.0.1", free_port())
        async with within(DEADLINE):
            await denied(bus, record=record)
        with pytest.raises(StoreUnavailable):
            await record.ask(bus.settle(permit))
        assert charged(server) == 1
        server.execute("REPLICAOF", "NO", "ONE")
        assert await recovered(bus, record=record)
        assert await bus.settle(permit)
        assert charged(server) == 2
        record.charge(charged(server))


#: How the same is told by a server that wraps what a script met.
WRAPPED = (
    b"-ERR Error running script (call to f_3f1c0de): @user_script:41: "
    b"@user_script: 41: -READONLY You can't write against a read only replica. \r\n"
)


async def test_a_replica_that_says_so_inside_another_error_is_left_as_well(
    valkey: RealServer, fault_record: FaultRecords
):
    """READONLY as Redis 6.2 has it: each refusal leads to a fresh connection, to wherever."""
    record = fault_record(14, "`READONLY` in the words of Redis 6.2", "proxy", deadline=DEADLINE)

    def refuse(link: Link, data: bytes) -> bytes:
        # The reply to a script: what it runs would have been refused, and so does not run.
        if b"EVAL" not in data:
            return data
        link.client.write(WRAPPED)
        return b""

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        assert await bus._listener.synced(DEADLINE)
        proxy.on_request = refuse
        for _ in range(2):
            before = proxy.accepted
            async with within(DEADLINE):
                await denied(bus, record=record)
            await eventually(lambda: not _at_work(proxy), what="its connections are dropped")
            assert proxy.accepted <= before + 1
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await record.ask(bus.settle(permit))
        assert (charged(valkey), in_use(valkey)) == (1, 1)
        proxy.on_request = None
        assert await recovered(bus, record=record)
        assert await bus.settle(permit)
        assert (charged(valkey), in_use(valkey)) == (2, 1)
        record.charge(charged(valkey))


def _at_work(proxy: Proxy) -> int:
    """Get how many connections there are beside the subscription."""
    return len(proxy.links) - 1


async def test_too_few_replicas_deny_and_change_nothing(
    server: RealServer, fault_record: FaultRecords
):
    """NOREPLICAS, where min-replicas-to-write asks for more than there are."""
    record = fault_record(18, "`min-replicas-to-write 3`", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        before = dict(server.keys()).keys()
        with server.configured(min_replicas_to_write=3):
            async with within(DEADLINE):
                await denied(bus, 20, record=record)
            with pytest.raises(StoreUnavailable, match="replicas to write"):
                await record.ask(bus.settle(permit))
            assert (charged(server), in_use(server)) == (1, 1)
            assert dict(server.keys()).keys() == before
        # It answered all the time: there is no outage to recover from.
        with record.recovering():
            assert await ask(bus, record)
        assert await bus.settle(permit)
        assert (charged(server), in_use(server)) == (2, 1)
        record.charge(charged(server))


async def test_full_memory_denies_and_still_takes_back(
    server: RealServer, fault_record: FaultRecords
):
    """OOM: nothing is taken in parts, and what gives back does not need memory."""
    record = fault_record(19, "`maxmemory` reached, `noeviction`", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus, bus_on(server.url, [slots()]) as other:
        permits = [await record.ask(bus.admit(Call())) for _ in range(4)]
        record.admitted += len(permits)
        alone = await other.admit(Call())
        fields, leases = state(server, "quota", "tokens"), in_use(server)
        with server.configured(maxmemory="1mb", maxmemory_policy="noeviction"):
            server.control.config_set("maxmemory", 1)
            async with within(DEADLINE):
                await denied(bus, 20, record=record)
                await denied(bus, 20, who="somebody new", record=record)
            with pytest.raises(Vetoed):
                await record.ask(bus.admit(Call(), wait=0.1))
            # No partial write: what was there is as it was, and nothing new is there.
            assert (state(server, "quota", "tokens"), in_use(server)) == (fields, leases)
            assert not [key for key in dict(server.keys()) if "new" in key]
            # Taking back, renewing and looking work all the same.
            assert await bus.renew(permits[0])
            assert await bus.settle(permits[0], tokens=4)
            assert await bus.settle(permits[1], Outcome.NEUTRAL, tokens=0)
            assert await other.settle(alone)
            assert (charged(server), in_use(server)) == (4 + 0 + 2, 2)
            assert not (await bus.settle(permits[0], tokens=4))
            assert await bus.force("provider", CircuitState.OPEN, who="acme") == "closed"
            assert (await bus.peek(Call())).reason == "circuit_open"
            assert await bus.reset("provider", who="acme") == 1
            assert {one.policy async for one in bus.inspect()} == {"calls", "tokens", "slots"}
        with record.recovering():
            assert await ask(bus, record)
        # Of the four two were settled for four tokens in all, and one call came after.
        assert charged(server) == 4 + 2 + 1
        record.charge(1 + 1 + 2 + 1)


async def test_rights_taken_away_deny_clearly_and_come_back(
    server: RealServer, fault_record: FaultRecords
):
    """NOPERM inside the scripts, and on the call itself."""
    record = fault_record(22, "`ACL SETUSER` takes a right away", server, deadline=DEADLINE)
    server.execute("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://worker:secret@")
    async with bus_on(url) as bus:
        assert await ask(bus, record)
        for right, text in (("hset", "hset|can't run"), ("hgetall", None), ("evalsha", "evalsha")):
            server.execute("ACL", "SETUSER", "worker", f"-{right}")
            fresh = "never heard of"
            async with within(DEADLINE):
                decision = await ask(bus, record, who=fresh)
            assert not decision
            assert charged(server, fresh) == in_use(server, fresh) == 0
            if text is None:
                # Without the right to read it, a state is one that cannot be read.
                assert decision.reason == "state_corrupt"
            else:
                assert decision.reason == "store_unavailable"
                with pytest.raises(StoreUnavailable, match=text):
                    await bus.force("provider", CircuitState.CLOSED, who=fresh)
            server.execute("ACL", "SETUSER", "worker", f"+{right}")
            with record.recovering():
                assert await ask(bus, record)
        assert charged(server) == record.admitted
        record.charge(charged(server))


async def test_a_user_that_is_gone_is_denied_and_let_in_again(
    server: RealServer, fault_record: FaultRecords
):
    """NOAUTH and WRONGPASS, when the user is removed under us."""
    record = fault_record(22, "`ACL DELUSER`", server, deadline=DEADLINE)
    rules = ("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
    server.execute(*rules)
    async with bus_on(server.url.replace("redis://", "redis://worker:secret@")) as bus:
        assert await ask(bus, record)
        server.execute("ACL", "DELUSER", "worker")
        async with within(DEADLINE):
            await denied(bus, record=record)
        with pytest.raises(StanchionError, match="password"):
            await bus.reset("calls")
        server.execute(*rules)
        assert await recovered(bus, record=record)
        assert charged(server) == record.admitted == 2
        record.charge(charged(server))


async def test_these_few_rights_are_enough_and_none_is_idle(server: RealServer):
    """The smallest set of rights under which every verb works, as the docs give it."""
    rules, *_ = documented("worker", NAMESPACE)
    server.execute("ACL", "SETUSER", "worker", *rules)
    with server.counting() as counted:
        await every_verb(url_of("worker", server.url))
    assert commands(rules) - counted.keys() == set()
