"""`private=True`: whose limits these are is not to be read from Redis, events, errors or logs."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from stanchion import CircuitState, ConfigError, EventBus, Outcome
from stanchion.events import CircuitOpened, PolicyVetoed, QuotaThresholdReached
from stanchion.observers import Recorder, RedisPublisher
from tests.busses import command, snapshot
from tests.security.hostile import NAMESPACE, Request, every_kind

if TYPE_CHECKING:
    from tests.servers import RealServer

NEEDLE = "s0mebody"
PERSON = f"{NEEDLE}@example.org"


async def watched(reader: asyncio.StreamReader, mark: bytes) -> bytes:
    """Get what MONITOR shows up to a mark."""
    seen = b""
    async with asyncio.timeout(20):
        while mark not in seen:
            seen += await reader.read(65536)
    return seen


@pytest.mark.parametrize(("by", "redact"), [("user", ()), ("tenant", ("tenant",))])
async def test_a_private_subject_leaves_no_trace(
    valkey: RealServer, by: str, redact: tuple[str, ...], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    recorder, other = Recorder(), Recorder()
    policies = every_kind(by, private=True)
    event = Request(**{by: PERSON, "tokens": 990})
    told: list[str] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", valkey.port)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    options: dict[str, Any] = {"namespace": NAMESPACE, "deadline": 10, "redact": redact}
    async with (
        EventBus.from_url(
            valkey.url, policies=policies, observers=[recorder, RedisPublisher()], **options
        ) as bus,
        EventBus.from_url(valkey.url, observers=[other], **options),
    ):
        decision = await bus.check(event)
        assert decision.permit is not None
        told += [repr(decision), str(decision.permit), repr(decision.permit)]
        assert await bus.settle(decision.permit, Outcome.FAILURE, tokens=1000)
        vetoed = await bus.check(event)
        assert vetoed.reason == "limit_reached"
        assert vetoed.verdicts[3].reason == "circuit_open"
        told.append(repr(vetoed))
        await bus.override("rate", 3, **{by: PERSON})
        await bus.override("rate", None, **{by: PERSON})
        for wrong in ([PERSON], {PERSON: 1}, PERSON.encode(), 10**5000):
            with pytest.raises(ConfigError) as caught:
                await bus.reset("rate", **{by: wrong})
            told.append("".join(traceback.format_exception(caught.value)))
        told += [repr(state) async for state in bus.inspect()]
        for name, (value, _) in (await snapshot(bus)).items():
            told += [name, repr(value)]
        opened = await other.wait_for(CircuitOpened)
        assert re.fullmatch("[0-9a-f]{32}", opened.subject)
        await recorder.wait_for(PolicyVetoed)
        await recorder.wait_for(QuotaThresholdReached)
        # What is private is still one subject, and can be looked after by name.
        assert await bus.force("breaker", CircuitState.CLOSED, **{by: PERSON}) == "open"
        assert await bus.reset("rate", **{by: PERSON}) == 1
        told += [seen.model_dump_json() for seen in (*recorder.events, *other.events)]
        await command(bus, "ECHO", "that-was-all")
        told.append(repr(await watched(reader, b"that-was-all")))
        assert "EVALSHA" in told[-1].upper()
    writer.close()
    await writer.wait_closed()
    # What this test itself has written down is not what the library did.
    told += [record.getMessage() for record in caplog.records]
    assert not [text for text in told if NEEDLE in text]


async def test_an_error_about_a_public_subject_shows_it(valkey: RealServer):
    async with EventBus.from_url(valkey.url, policies=every_kind()) as bus:
        with pytest.raises(ConfigError, match=NEEDLE):
            await bus.reset("rate", user=[PERSON])
