"""What networks do to connections: replies lost, late, cut short, or somebody else's."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

import pytest

from stanchion import StoreUnavailable
from tests.faults.calls import (
    DEADLINE,
    UNAVAILABLE,
    Call,
    ask,
    bus_on,
    charged,
    denied,
    in_use,
    quota,
    recovered,
    slots,
    within,
)
from tests.faults.proxy import Proxy
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.proxy import Link
    from tests.faults.report import FaultRecords
    from tests.servers import RealServer


def slow(proxy: Proxy) -> None:
    """Answers that come too late."""
    proxy.delay = 3 * DEADLINE


def refused(proxy: Proxy) -> None:
    """Connections that are reset as they are made."""
    proxy.refuse = True
    proxy.cut()


def reset(proxy: Proxy) -> None:
    """A reset (RST) instead of an answer."""

    def act(link: Link, data: bytes) -> bytes:
        link.cut(reset=True)
        return data

    proxy.on_request = act


def closed(proxy: Proxy) -> None:
    """An end (FIN) instead of an answer."""

    def act(link: Link, data: bytes) -> bytes:
        link.cut()
        return data

    proxy.on_reply = act


def half_closed(proxy: Proxy) -> None:
    """An end (FIN) in one direction, and no answers any more."""

    def act(link: Link, data: bytes) -> bytes:
        link.half_close()
        return data

    proxy.on_request = act


def truncated(proxy: Proxy) -> None:
    """Half an answer, and the end."""

    def act(link: Link, data: bytes) -> bytes:
        link.client.write(data[: len(data) // 2])
        link.client.close()
        return b""

    proxy.on_reply = act


def unfinished(proxy: Proxy) -> None:
    """Half an answer, and silence."""

    def act(link: Link, data: bytes) -> bytes:
        link.mute = True
        return data[: len(data) // 2]

    proxy.on_reply = act


def garbled(proxy: Proxy) -> None:
    """An answer that is no reply at all."""
    proxy.on_reply = lambda link, data: b"?" * len(data)


def not_ours(proxy: Proxy) -> None:
    """Well-formed answers to something else."""
    proxy.on_reply = lambda link, data: b":1\r\n" if b"store" not in data else data


FAULTS = [slow, refused, reset, closed, half_closed, truncated, unfinished, garbled, not_ours]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_bad_connection_denies_by_the_deadline_and_is_replaced(
    valkey: RealServer, fault: Callable[[Proxy], None], fault_record: FaultRecords
):
    """Late, refused, reset, closed, half-closed, cut short, unfinished, garbled."""
    how = inspect.getdoc(fault)
    assert how is not None
    record = fault_record(11, how[0].lower() + how[1:-1], valkey, deadline=DEADLINE)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota(), slots()]) as bus:
        permit = (await ask(bus, record)).permit
        assert permit is not None
        fault(proxy)
        async with within(DEADLINE):
            await denied(bus, 10, record=record)
        for verb in (bus.reset("tokens", who="other"), bus.settle(permit)):
            async with within(DEADLINE):
                with pytest.raises(StoreUnavailable):
                    await record.ask(verb)
        assert (await bus.peek(Call())).reason == UNAVAILABLE
        proxy.heal()
        assert await recovered(bus, record=record)
        # Counted once each or not at all: the batch of ten, and what looked for recovery.
        assert record.admitted <= charged(valkey) <= 2 + 10 + 2
        # Settled once, before or now.
        await bus.settle(permit)
        assert in_use(valkey) == charged(valkey) - 1
        record.charge(charged(valkey))
        # What suffered is gone: one connection carries the calls, and one at most is idle.
        await eventually(lambda: len(proxy.links) <= 4, what="the bad connections are closed")


async def test_replies_in_single_bytes_are_put_together(
    valkey: RealServer, fault_record: FaultRecords
):
    """A sliced reply is slow, and no error."""
    record = fault_record(11, "replies in single bytes", valkey, deadline=5)
    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, deadline=5) as bus:
        proxy.slice = 1
        assert all(await asyncio.gather(*(ask(bus, record) for _ in range(50))))
        assert charged(valkey) == 50
        record.charge(charged(valkey))


async def test_a_reply_to_another_call_is_refused_and_its_connection_dropped(
    valkey: RealServer, fault_record: FaultRecords
):
    """Every reply carries the nonce of its call; what does not is nobody's."""
    record = fault_record(12, "a reply to another call", valkey, deadline=DEADLINE)
    told: list[tuple[Link, bytes]] = []

    def one_behind(link: Link, data: bytes) -> bytes:
        # What a connection gives that lost count of its replies: those to scripts, not what the
        # bus looks up in the background.
        if not data.startswith(b"*4\r\n"):
            return data
        told.append((link, data))
        return told[-2][1] if len(told) > 1 else data

    async with Proxy(valkey.port) as proxy, bus_on(proxy.url, [quota()]) as bus:
        assert await ask(bus, record)
        # What it looks up when it is opened would be mixed up with it.
        assert await bus._listener.synced(DEADLINE)
        await bus._parts.epochs.looked()
        proxy.on_reply = one_behind
        assert await ask(bus, record)
        # The reply says "admitted", but to the call before.
        decision = (await denied(bus, record=record))[0]
        assert decision.permit is None
        proxy.on_reply = None
        assert await ask(bus, record)
        link = told[-1][0]
        await eventually(lambda: link not in proxy.links, what="its connection is dropped")
        assert charged(valkey) == 4
        record.charge(charged(valkey))
        assert await bus.reset("tokens", who="acme") == 1
