"""Looks into the store that the regression tests share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.busses import command

if TYPE_CHECKING:
    from stanchion import Decision, EventBus, Verdict

#: What every key of a bus of `memory_bus` starts with.
PREFIX = "stanchion:{test}:"
ALGORITHMS = ("gcra", "fixed_window", "sliding_window", "sliding_log")


async def lifetimes(bus: EventBus) -> dict[str, int]:
    """Get the milliseconds that each key has to live that asking made; -1: it never ends."""
    keys = sorted(key.decode() for key in await command(bus, "KEYS", f"{PREFIX}*"))
    # What a bus writes as it opens is nobody's state.
    return {key: await command(bus, "PTTL", key) for key in keys if key != f"{PREFIX}epoch"}


async def fields(bus: EventBus, key: str) -> dict[str, str]:
    """Get a state hash as it is stored."""
    stored = await command(bus, "HGETALL", PREFIX + key)
    if not isinstance(stored, dict):
        stored = dict(zip(stored[::2], stored[1::2], strict=True))
    return {name.decode(): value.decode() for name, value in stored.items()}


def only(decision: Decision) -> Verdict:
    """Get the verdict of the one policy that was asked."""
    (verdict,) = decision.verdicts
    return verdict


def micros(seconds: float | None) -> int:
    """Get a duration of a verdict in microseconds; it must be known."""
    assert seconds is not None
    return round(seconds * 1_000_000)


def scripts_sent(data: bytes) -> int:
    """Get how many script calls there are in what a client has sent."""
    return len(re.findall(rb"\r\n(?:EVALSHA|EVAL)\r\n", data))
