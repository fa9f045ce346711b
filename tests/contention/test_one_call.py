"""What a chain of policies costs: script calls, counted by the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion import CircuitBreaker, Concurrency, Quota, RateLimit
from tests.busses import calls_of_scripts
from tests.contention.calls import Call
from tests.contention.fleet import fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.servers import RealServer

WORKERS = 2
CHAIN = (
    RateLimit(name="calls", on=Call, limit=1000, per="1m"),
    Quota(name="tokens", on=Call, limit=1000, per="3650d", cost="tokens"),
    Concurrency(name="slots", on=Call, limit=1000),
    CircuitBreaker(name="provider", on=Call, failure_rate=0.5),
)


def script_calls(counted: Mapping[str, int]) -> int:
    """Get how many script calls there were, none of them with the script's text."""
    calls = calls_of_scripts(counted)
    assert calls == counted["evalsha"]
    return calls


async def test_a_chain_of_four_costs_one_script_call_a_check_and_less_when_many_ask_at_once(
    server: RealServer,
):
    async with fleet(server.url, *CHAIN, workers=WORKERS) as workers:
        await workers.ask("check", times=1)
        with server.counting() as counted:
            said = await workers.ask("check", times=10)
        assert said == [["ok"] * 10] * WORKERS
        assert script_calls(counted) == 10 * WORKERS

        with server.counting() as counted:
            said = await workers.ask("check_together", times=32)
        assert said == [["ok"] * 32] * WORKERS
        calls = script_calls(counted)
        print(f"{server.name}: 32 checks at once in {calls / WORKERS:g} script calls")
        assert calls < 32 * WORKERS / 4
        # All four were charged for each of them.
        admitted = WORKERS * (1 + 10 + 32)
        keys = [key for key, _ttl in server.keys("stanchion:*:*:*")]
        assert len(keys) == 4 + 3, "a state each, and three keep apart what is held"
        slots = next(key for key in keys if ":slots.leases:" in key)
        assert server.control.zcard(slots) == admitted
        held = next(key for key in keys if ":quota:" in key)
        assert server.control.hget(held, "held") == str(admitted)
