"""Asking which life of the shared state this is: a plain read, mostly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from stanchion.errors import StoreUnavailable
from stanchion.store import codec
from stanchion.store.epoch import Act, Epoch

if TYPE_CHECKING:
    from stanchion.store.calls import Calls
    from stanchion.store.scripts import Script

_FIELDS = "id", "born", "lost", "was", "spread", "kept"
# After as long, the script writes it anew.
_FRESH_US = 12 * 3600 * 1_000_000


async def greet(
    calls: Calls,
    script: Script,
    key: str,
    tag: str,
    known: str,
    act: Act = Act.GREET,
    spread: str = "",
) -> Epoch:
    """Get the epoch under a tag; the script is run only where there is something to write.

    `spread` is how the caller spreads the namespace, empty where it does not say.

    Raises:
        StoreUnavailable: there was no answer.
    """
    if known and act is Act.GREET:
        epoch = await _read(calls, key, tag)
        if epoch is not None and epoch.id == known and (epoch.spread or not spread):
            return epoch
    return codec.decode_epoch(await calls.call(script, [key], [known, act.value, spread]), tag)


async def _read(calls: Calls, key: str, tag: str) -> Epoch | None:
    """Get what is stored, None where the script is to see to it."""
    try:
        found = await calls.single(calls.connections.run("HMGET", key, *_FIELDS))
        name, born, lost, was, spread, kept = cast("list[Any]", found)
        if int(kept) < time.time_ns() // 1000 - _FRESH_US:
            return None
        words = [(word or b"").decode() for word in (was, spread)]
        return Epoch(tag, name.decode(), int(born), max(0, int(lost)), *words)
    except (StoreUnavailable, ValueError, TypeError, AttributeError):
        # It is not there, or something else is; or the server is away, which the script will say.
        return None
