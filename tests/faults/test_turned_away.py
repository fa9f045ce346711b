"""The server answers, and its answer is no: a replica, no replicas, no memory, no permission."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome, StanchionError, StoreUnavailable, Vetoed
from tests.faults.calls import (
    DEADLINE,
    NAMESPACE,
    Call,
    bus_on,
    charged,
    denied,
    in_use,
    recovered,
    slots,
    state,
    within,
)
from tests.faults.verbs import every_verb
from tests.rights import commands, documented, url_of
from tests.servers import free_port

if TYPE_CHECKING:
    from tests.servers import RealServer


async def test_a_replica_is_left_for_a_primary(server: RealServer):
    """READONLY, when a node is demoted under us and promoted again."""
    async with bus_on(server.url) as bus:
        permit = await bus.admit(Call())
        server.execute("REPLICAOF", "127.0.0.1", free_port())
        async with within(DEADLINE):
            await denied(bus)
        with pytest.raises(StoreUnavailable):
            await bus.settle(permit)
        assert charged(server) == 1
        server.execute("REPLICAOF", "NO", "ONE")
        assert await recovered(bus)
        assert await bus.settle(permit)
        assert charged(server) == 2


async def test_too_few_replicas_deny_and_change_nothing(server: RealServer):
    """NOREPLICAS, where min-replicas-to-write asks for more than there are."""
    async with bus_on(server.url) as bus:
        permit = await bus.admit(Call())
        before = dict(server.keys()).keys()
        with server.configured(min_replicas_to_write=3):
            async with within(DEADLINE):
                await denied(bus, 20)
            with pytest.raises(StoreUnavailable, match="replicas to write"):
                await bus.settle(permit)
            assert (charged(server), in_use(server)) == (1, 1)
            assert dict(server.keys()).keys() == before
        # It answered all the time: there is no outage to recover from.
        assert await bus.check(Call())
        assert await bus.settle(permit)


async def test_full_memory_denies_and_still_takes_back(server: RealServer):
    """OOM: nothing is taken in parts, and what gives back does not need memory."""
    async with bus_on(server.url) as bus, bus_on(server.url, [slots()]) as other:
        permits = [await bus.admit(Call()) for _ in range(4)]
        alone = await other.admit(Call())
        fields, leases = state(server, "quota", "tokens"), in_use(server)
        with server.configured(maxmemory="1mb", maxmemory_policy="noeviction"):
            server.control.config_set("maxmemory", 1)
            async with within(DEADLINE):
                await denied(bus, 20)
                await denied(bus, 20, who="somebody new")
            with pytest.raises(Vetoed):
                await bus.admit(Call(), wait=0.1)
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
        assert await bus.check(Call())


async def test_rights_taken_away_deny_clearly_and_come_back(server: RealServer):
    """NOPERM inside the scripts, and on the call itself."""
    server.execute("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://worker:secret@")
    async with bus_on(url) as bus:
        assert await bus.check(Call())
        for right, text in (("hset", "hset|can't run"), ("hgetall", None), ("evalsha", "evalsha")):
            server.execute("ACL", "SETUSER", "worker", f"-{right}")
            fresh = "never heard of"
            async with within(DEADLINE):
                decision = await bus.check(Call(who=fresh))
            assert not decision
            if text is None:
                # Without the right to read it, a state is one that cannot be read.
                assert decision.reason == "state_corrupt"
            else:
                assert decision.reason == "store_unavailable"
                with pytest.raises(StoreUnavailable, match=text):
                    await bus.force("provider", CircuitState.CLOSED, who=fresh)
            server.execute("ACL", "SETUSER", "worker", f"+{right}")
            assert await bus.check(Call())


async def test_a_user_that_is_gone_is_denied_and_let_in_again(server: RealServer):
    """NOAUTH and WRONGPASS, when the user is removed under us."""
    rules = ("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
    server.execute(*rules)
    async with bus_on(server.url.replace("redis://", "redis://worker:secret@")) as bus:
        assert await bus.check(Call())
        server.execute("ACL", "DELUSER", "worker")
        async with within(DEADLINE):
            await denied(bus)
        with pytest.raises(StanchionError, match="password"):
            await bus.reset("calls")
        server.execute(*rules)
        assert await recovered(bus)


async def test_these_few_rights_are_enough_and_none_is_idle(server: RealServer):
    """The smallest set of rights under which every verb works, as the docs give it."""
    rules, *_ = documented("worker", NAMESPACE)
    server.execute("ACL", "SETUSER", "worker", *rules)
    with server.counting() as counted:
        await every_verb(url_of("worker", server.url))
    assert commands(rules) - counted.keys() == set()
