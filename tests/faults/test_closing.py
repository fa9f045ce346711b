"""Ends: of an item's patience, of a bus."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from stanchion import CircuitState, StanchionError, StoreUnavailable
from stanchion.store.batch import Batcher
from tests.faults.calls import SLACK, Call, breaker, bus_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


async def test_closing_at_any_moment_ends(store_url: str):
    """Cancellation reaches what runs in the background, whatever it is doing just then."""
    for turns in range(25):
        bus = bus_on(store_url, [breaker(consecutive_failures=1)])
        await bus.open()
        if turns % 2:
            await bus.check(Call())
            await bus.force("provider", CircuitState.OPEN, who=f"w{turns}")
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await bus.close()


async def test_what_is_asked_of_a_closed_bus_is_an_error_that_says_so(store_url: str):
    """And closing twice, or what was never opened, is none."""
    bus = bus_on(store_url)
    await bus.close()
    for _ in range(2):
        with pytest.raises(StanchionError, match="not open"):
            await bus.check(Call())
        with pytest.raises(StanchionError, match="not open"):
            await bus.reset("calls")
    bus = bus_on(store_url)
    async with bus:
        assert await bus.check(Call())
    await bus.close()
    with pytest.raises(StanchionError, match="not open"):
        await bus.check(Call())
    # Not opened by half, either.
    with pytest.raises(StanchionError, match="closed"):
        await bus.open()


async def test_items_of_one_batch_expire_each_in_its_own_time():
    """Those that waited together for a place on the wire did not begin together."""
    deadline = 0.6
    loop = asyncio.get_running_loop()

    given_up: list[float] = []

    def launch(items: Sequence[str], *_: object) -> Callable[[], None]:
        # A server that hangs: the call is given up when its last item expires.
        return lambda: given_up.append(loop.time())

    batcher = Batcher[str, str](launch, deadline=deadline, in_flight=1)
    took: dict[str, float] = {}

    async def item(name: str, after: float) -> None:
        await asyncio.sleep(after)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await batcher.submit(name)
        took[name] = time.monotonic() - began

    await asyncio.gather(item("a", 0), item("b", 0.1), item("c", 0.3), item("d", 0.55))
    assert set(took) == {*"abcd"}
    for name, seconds in took.items():
        assert seconds <= deadline + SLACK, name
    await batcher.close()
    assert given_up
