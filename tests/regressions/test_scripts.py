"""Defects of scripts, and of how clients call them, that users have met elsewhere.

Covered elsewhere in full:
- a write that fails after another one had been made (redis#10576: no roll-back):
  tests/faults/test_bad_state.py, and tests/faults/test_turned_away.py where memory is full
- replies that belong to another call (redis-py#2624): tests/faults/test_bad_network.py
- scripts that are flushed under load: tests/faults/test_flushed.py
- a cluster, with every verb (PyrateLimiter#126, CROSSSLOT): tests/integration/test_topologies.py
- names that user's text could leave by (`{`, `}`): tests/unit/test_keys.py

Cannot apply:
- Redis' own GCRA command, held back from a release (redis#15191): it is not used
- a function library shared by several versions: no functions are used
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, Outcome, StoreUnavailable, Vetoed
from stanchion.events import CircuitOpened, QuotaThresholdReached
from stanchion.testing import memory_bus
from tests.busses import Call, breaker, command, every_kind, quota, rate, slots
from tests.faults.proxy import Proxy
from tests.regressions.looking import PREFIX, fields, lifetimes, micros, only, scripts_sent

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.busses import Buses
    from tests.faults.proxy import Link
    from tests.servers import RealServer

#: A time that `%.14g` would shorten, and one that `%.17g` would write with an exponent.
MOMENTS = (1_795_419_831_911_237, 1_800_000_000_000_000, 4_102_444_800_000_001)


async def every_verb(bus: EventBus) -> None:
    """Have every script run."""
    permit = await bus.admit(Call(tokens=3))
    await bus.peek(Call())
    await bus.renew(permit)
    await bus.settle(permit, Outcome.FAILURE, tokens=2)
    await bus.override("gcra", 4)
    await bus.sync("gcra", remaining=1)
    await bus.sync("calendar-quota", remaining=100)
    await bus.admit(Call(), wait=1.0)
    with pytest.raises(Vetoed):
        await bus.admit(Call(tokens=900), wait=0.01)
    await bus.force("breaker", CircuitState.OPEN)
    assert not await bus.check(Call())
    assert [state async for state in bus.inspect("gcra")]
    await bus.override("gcra", None)
    for policy in bus.policies:
        await bus.reset(policy.name)


# ---- calling them


async def test_scripts_that_the_server_does_not_know_are_no_incident(
    open_shared: Buses, server: RealServer
):
    """PyrateLimiter#182, upstash#122, new-api#6412: NOSCRIPT after a failover got to the users."""
    bus = await open_shared(*every_kind())
    permit = await bus.admit(Call())
    for step in (
        lambda: bus.check(Call()),
        lambda: bus.renew(permit),
        lambda: bus.settle(permit),
        lambda: bus.peek(Call()),
        lambda: bus.sync("gcra", remaining=1),
        lambda: bus.override("gcra", 5),
        lambda: bus.force("breaker", CircuitState.CLOSED),
        lambda: bus.reset("breaker"),
    ):
        server.execute("SCRIPT", "FLUSH")
        assert await step() is not False
    assert (await fields_of(bus, "stanchion:{default}:quota:fixed-quota:-"))["used"] == "1"


async def fields_of(bus: EventBus, key: str) -> dict[str, str]:
    stored = await command(bus, "HGETALL", key)
    return {name.decode(): value.decode() for name, value in stored.items()}


@pytest.mark.parametrize("verb", ["check", "settle"])
async def test_a_lost_reply_runs_a_script_once_and_not_eleven_times(valkey: RealServer, verb: str):
    """rate-limit-redis#252, redis-py#4082: ten retries by default; one INCR was run 11 times."""
    sent = 0

    def lose(link: Link, data: bytes) -> bytes:
        nonlocal sent
        sent += scripts_sent(data)
        link.mute = link.mute or scripts_sent(data) > 0
        return data

    async with Proxy(valkey.port) as proxy, memory_bus(quota(), url=proxy.url) as bus:
        permit = await bus.admit(Call(tokens=10))
        await bus.settle(await bus.admit(Call(tokens=10)), tokens=10)
        proxy.on_request = lose
        with valkey.counting() as counted:
            if verb == "check":
                assert (await bus.check(Call(tokens=100))).reason == "store_unavailable"
            else:
                with pytest.raises(StoreUnavailable):
                    await bus.settle(permit, tokens=100)
        assert (counted["evalsha"], counted["eval"], sent) == (1, 0, 1)
        stored = valkey.control.hgetall(PREFIX + "quota:tokens:-")
        expected = ("10", "110") if verb == "check" else ("110", "0")
        assert (stored["used"], stored["held"]) == expected


async def test_an_error_other_than_noscript_is_not_answered_by_another_try(valkey: RealServer):
    """rate-limit-redis#251: only NOSCRIPT proves that nothing ran; nothing else is replayed."""
    sent = 0

    def count(link: Link, data: bytes) -> bytes:
        nonlocal sent
        sent += scripts_sent(data)
        return data

    async with Proxy(valkey.port) as proxy, memory_bus(rate(), url=proxy.url) as bus:
        assert await bus.check(Call())
        proxy.on_request = count
        with valkey.configured(min_replicas_to_write=3):
            assert (await bus.check(Call())).reason == "store_unavailable"
        assert sent == 1


async def test_a_count_and_its_expiry_travel_in_one_call(valkey: RealServer):
    """throttled-py: INCRBY, then EXPIRE in a call of its own: a crash between left it for ever."""
    seen = b""

    def listen(link: Link, data: bytes) -> bytes:
        nonlocal seen
        seen += data
        return data

    policies = [rate("fixed", algorithm="fixed_window"), quota(), slots(), breaker()]
    async with Proxy(valkey.port) as proxy, memory_bus(*policies, url=proxy.url) as bus:
        await bus.settle(await bus.admit(Call()))
        await bus.reset("fixed")
        proxy.on_request = listen
        assert await bus.check(Call())
        proxy.on_request = None
        assert seen.count(b"\r\nEVALSHA\r\n") == 1
        assert seen.startswith(b"*")
        words = int(seen[1 : seen.index(b"\r")])
        assert seen.count(b"\r\n$") == words  # that one command, and nothing after it
        assert all(ttl > 0 for ttl in (await lifetimes(bus)).values())


async def test_every_key_that_a_script_touches_was_passed_to_it(
    open_shared: Buses, server: RealServer
):
    """wurk#92, effect-smol#2328: keys made inside Lua; limits, upstash: KEYS and SCAN inside Lua.

    PyrateLimiter#126: nor is anything passed as a key that is none.
    """
    bus = await open_shared(*every_kind())
    await every_verb(bus)  # from now on scripts are called by name
    async with server.client(decode_responses=True) as client, client.monitor() as monitor:
        await every_verb(bus)
        await client.execute_command("ECHO", "that was all")
        passed: set[str] = set()
        seen: set[str] = set()
        while True:
            heard = await monitor.next_command()
            name, *words = str(heard["command"]).split(" ")
            name = name.upper()
            if name == "ECHO":
                break
            if name == "EVALSHA":
                passed = set(words[2 : 2 + int(words[1])])
                assert all(key.startswith("stanchion:{default}:") for key in passed)
            elif heard["client_type"] == "lua" and name not in {"TIME", "PUBLISH"}:
                seen.add(name)
                touched = words if name == "DEL" else words[:1]
                assert touched
                assert set(touched) <= passed, heard["command"]
    assert {"HGETALL", "HSET", "PEXPIRE", "ZADD", "DEL", "HMGET"} <= seen
    assert not seen & {"KEYS", "SCAN", "EVAL", "EVALSHA", "RANDOMKEY"}


# ---- numbers


@pytest.mark.parametrize("now_us", MOMENTS)
async def test_moments_keep_their_microseconds(store_url: str, now_us: int):
    """Lua's tostring keeps 14 digits, cjson likewise; redis#13113: 1e15 as an argument."""
    policies = [
        rate("gcra", limit=1, per="3s"),
        rate("log", limit=1, per="3s", algorithm="sliding_log"),
        slots(lease="3s"),
        quota(per="1h", lease="3s"),
    ]
    async with memory_bus(*policies, url=store_url) as bus:
        await bus.clock.set_us(now_us)
        permit = await bus.admit(Call())
        assert permit.admitted_us == now_us
        state = await fields(bus, "rate:gcra:-")
        assert (state["at"], state["tat"]) == (str(now_us), str(now_us + 3_000_000))
        for key, score in (
            ("rate.log:log:-", now_us),
            ("slots.leases:slots:-", now_us + 3_000_000),
            ("quota.holds:tokens:-", now_us + 3_000_000),
        ):
            (member,) = await command(bus, "ZRANGE", PREFIX + key, "0", "-1")
            stored = await command(bus, "ZSCORE", PREFIX + key, member.decode())
            assert int(float(stored)) == score, key
        # What was written is also found again by its time.
        await bus.clock.set_us(now_us + 2_999_999)
        waits = [verdict.retry_after for verdict in (await bus.check(Call())).verdicts[:2]]
        assert waits == [1e-6, 1e-6]
        await bus.clock.set_us(now_us + 3_000_000)
        assert await bus.check(Call())


async def test_counts_are_exact_up_to_the_largest(store_url: str):
    """Integer replies round above 2^53 and `%.14g` above 10^14; both are within a limit's reach."""
    largest = 2**52
    policies = [
        quota("fixed", limit=largest, per="1h"),
        quota("rolling", limit=2**32 + 1, per="1h", rolling=True, cost=1),
        rate("window", limit=largest, cost="tokens", per="1h", algorithm="fixed_window"),
        rate("log", limit=largest, cost="tokens", per="1h", algorithm="sliding_log"),
        slots(limit=largest, cost="tokens"),
    ]
    async with memory_bus(*policies, url=store_url) as bus:
        first = await bus.check(Call(tokens=largest - 3))
        left = [verdict.remaining for verdict in first.verdicts]
        assert left == [3, 2**32, 3, 3, 3]
        second = await bus.check(Call(tokens=2))
        assert [verdict.remaining for verdict in second.verdicts] == [1, 2**32 - 1, 1, 1, 1]
        assert not await bus.check(Call(tokens=2))
        assert await bus.check(Call(tokens=1))


async def test_fractions_arrive_as_they_are(store_url: str):
    """Integer replies cut fractions off, towards zero: 0.9999999 becomes 0, and so does -0.5."""
    async with memory_bus(rate(limit=3, per="1s", burst=1), url=store_url) as bus:
        assert await bus.check(Call())
        refused = only(await bus.check(Call()))
        assert (refused.retry_after, refused.reset_after) == (0.333334, 0.333334)
        await bus.clock.set_us(bus.clock.now_us + 333_333)
        refused = only(await bus.check(Call()))
        # A third of a microsecond is left: that is not nothing.
        assert (refused.allowed, micros(refused.retry_after), refused.remaining) == (False, 1, 0)


async def test_what_a_script_publishes_has_all_its_digits():
    """cjson writes 14 digits of a number."""
    policies = [quota(limit=2**52, per="1h", warn_at=(1.0,)), breaker(consecutive_failures=1)]
    async with memory_bus(*policies) as bus:
        now_us = MOMENTS[0]
        await bus.clock.set_us(now_us)
        await bus.settle(await bus.admit(Call(tokens=2**52)), Outcome.FAILURE)
        reached = await bus.recorder.wait_for(QuotaThresholdReached)
        assert (reached.used, reached.limit) == (2**52, 2**52)
        opened = await bus.recorder.wait_for(CircuitOpened)
        assert opened.open_until is not None
        assert opened.open_until.microsecond == now_us % 1_000_000
        assert opened.generation > 10**15


async def test_numbers_of_a_request_are_compared_as_numbers(store_url: str):
    """upstash: `r == ARGV[2]` compared a number with a string, and was never true."""
    policies = [
        rate("gcra", limit=9, cost="tokens"),
        rate("fixed", limit=9, cost="tokens", algorithm="fixed_window"),
    ]
    async with memory_bus(*policies, url=store_url) as bus:
        # As strings "10" sorts before "9".
        assert (await bus.check(Call(tokens=10))).reason == "cost_above_limit"
        assert [verdict.remaining for verdict in (await bus.check(Call(tokens=9))).verdicts] == [
            0,
            0,
        ]
        assert (await bus.check(Call(tokens=1))).reason == "limit_reached"


async def test_the_longest_lease_ends_and_its_key_after_it(store_url: str):
    """redis#13113: times of years, in milliseconds, were passed as 3.1e11."""
    years = 3650 * 86400
    policies = [slots(limit=1, lease="3650d"), quota(per="3650d", lease="3650d")]
    async with memory_bus(*policies, url=store_url) as bus:
        assert await bus.check(Call())
        ttls = await lifetimes(bus)
        assert len(ttls) == 4
        assert all(ttl > 0.99 * years * 1000 for key, ttl in ttls.items() if "holds" not in key)
        await bus.clock.advance(years)
        assert await bus.check(Call())
