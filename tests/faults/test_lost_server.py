"""No server: killed, not yet started, at a port that refuses, under a name that nobody has."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, StanchionError
from stanchion.observers import Recorder
from tests.faults.calls import (
    DEADLINE,
    Call,
    ask,
    breaker,
    bus_on,
    charged,
    denied,
    in_use,
    quota,
    rate,
    recovered,
    shut,
    slots,
    within,
)
from tests.servers import free_port
from tests.waiting import eventually

if TYPE_CHECKING:
    from stanchion import EventBus
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer

SECRET = "n0b0dy-is-to-see-this"


async def test_a_killed_server_denies_and_its_successor_is_found(
    server: RealServer, fault_record: FaultRecords
):
    """SIGKILL, and another one on the same port, which knows nothing."""
    record = fault_record(2, "SIGKILL, another one on the same port", server, deadline=DEADLINE)
    async with bus_on(server.url) as bus:
        permit = (await ask(bus, record, tokens=5)).permit
        assert permit is not None
        lost = charged(server) - 4  # as one call
        server.kill()
        async with within(DEADLINE):
            await denied(bus, 50, record=record)
        async with within(0.1):
            await denied(bus, 50, record=record)
        server.start()
        assert await recovered(bus, record=record)
        assert charged(server) == 1
        record.charge(lost + charged(server))
        # What the permit held went with the server that knew of it: nothing is given back twice.
        settlement = await bus.settle(permit)
        assert not settlement
        assert set(settlement.stale) >= {"tokens", "slots", "provider"}
        assert charged(server) == 1
        assert in_use(server) == 1


async def test_a_server_that_starts_later_is_found_and_listened_to(valkey: RealServer):
    """Opening a bus needs no server; once there is one, changes are heard of too."""
    recorder = Recorder()
    valkey.kill()
    async with bus_on(valkey.url, [breaker()], observers=[recorder]) as bus:
        async with within(DEADLINE):
            await denied(bus)
        valkey.start()
        assert await recovered(bus)
        async with bus_on(valkey.url, [breaker()]) as other:
            await other.force("provider", CircuitState.OPEN, who="acme")
        await recorder.wait_for(lambda event: event.event_type == "circuit:opened", 5)


@pytest.mark.parametrize("place", ["refused", "unknown", "no socket"])
async def test_a_place_where_nobody_answers_denies_at_once(place: str, fault_record: FaultRecords):
    """A port that refuses, a host that is not known, a socket that is not there."""
    url = {
        "refused": f"redis://127.0.0.1:{free_port()}/0",
        "unknown": "redis://no-such-host.invalid:6379/0",
        "no socket": "unix:///tmp/no-such-directory/redis.sock",
    }[place]
    how = {"refused": "a port that refuses", "unknown": "a name that is not known"}
    record = fault_record(3, how.get(place, "a socket that is not there"), deadline=DEADLINE)
    async with bus_on(url) as bus:
        async with within(DEADLINE):
            await denied(bus, 50, record=record)
        await shut(bus)
        # From now on without trying.
        async with within(0.1):
            await denied(bus, 50, record=record)
        with pytest.raises(StanchionError):
            await bus.reset("calls")


async def test_policies_that_say_so_admit_while_the_server_is_away(valkey: RealServer):
    """What `on_outage` asks for holds during an outage, and only then."""
    recorder = Recorder()
    policies = [
        rate(on_outage="local", limit=4, burst=4),
        quota(on_outage="admit"),
        slots(on_outage="admit"),
    ]
    async with bus_on(valkey.url, policies, observers=[recorder], processes=2) as bus:
        assert (await bus.check(Call())).verdicts[0].remaining == 3
        valkey.kill()
        decisions = [await bus.check(Call()) for _ in range(4)]
        assert [decision.allowed for decision in decisions] == [True, True, False, False]
        assert {decision.reason for decision in decisions[2:]} == {"limit_reached"}
        failed = [event for event in recorder.events if event.event_type == "policy:failed"]
        assert failed
        valkey.start()
        # The fleet's own limit again, all of it.
        await eventually(lambda: _left(bus, 3), what="the shared limit is in force again")


async def _left(bus: EventBus, expected: int) -> bool:
    calls, tokens, _ = (await bus.check(Call())).verdicts
    return calls.remaining == expected and tokens.reason == "ok"


@pytest.mark.parametrize("where", ["away", "there"])
async def test_no_secret_is_told(valkey: RealServer, where: str, caplog: pytest.LogCaptureFixture):
    """Passwords and URLs stay out of logs, errors and events, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    recorder = Recorder()
    port = valkey.port if where == "there" else free_port()
    url = f"redis://somebody:{SECRET}@127.0.0.1:{port}/0"
    texts: list[str] = []
    async with bus_on(url, observers=[recorder]) as bus:
        decision = await bus.check(Call())
        assert not decision
        texts.append(repr(decision))
        for verb in (bus.reset("calls"), anext(aiter(bus.inspect())), bus.admit(Call(), wait=1)):
            with pytest.raises(StanchionError) as caught:
                await verb
            error: BaseException | None = caught.value
            while error is not None:
                texts += [str(error), repr(error)]
                error = error.__cause__
    texts += [record.getMessage() for record in caplog.records]
    texts += [event.model_dump_json() for event in recorder.events]
    assert any("policy:failed" in text or "store" in text for text in texts)
    assert not [text for text in texts if SECRET in text]
