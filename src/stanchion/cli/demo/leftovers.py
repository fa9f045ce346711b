"""Plain questions to the store: does it answer, and what has a run left in it."""

from __future__ import annotations

from typing import cast

from stanchion.cli.places import shown
from stanchion.errors import StoreUnavailable
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

_DEADLINE = 5.0
_FOREVER = -1


async def reach(url: str) -> None:
    """Make sure that the store answers.

    Raises:
        StoreUnavailable: it does not.
    """
    store = RedisStore(url, Keyspace("demo"), deadline=_DEADLINE)
    try:
        await store.open()
        await store.execute("PING")
    except StoreUnavailable as error:
        raise StoreUnavailable(f"cannot reach {shown(url)}: {error}") from error
    finally:
        await store.close()


async def ttls(url: str, namespace: str) -> dict[str, float | None]:
    """Get every key of a namespace with the seconds it has left; None for one that never ends.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    keyspace = Keyspace(namespace)
    store = RedisStore(url, keyspace, deadline=_DEADLINE)
    await store.open()
    try:
        found: dict[str, float | None] = {}
        async for key in store.keys(f"{keyspace.prefix}*"):
            left = cast("int", await store.execute("PTTL", key))
            # A key that has ended meanwhile left nothing.
            if left >= _FOREVER:
                found[key] = None if left == _FOREVER else left / 1000
        return found
    finally:
        await store.close()
