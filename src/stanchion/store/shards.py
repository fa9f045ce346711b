"""The shards of a namespace: which of them a key is asked of, and what goes to several."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from stanchion.store.keys import tag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Part
    from stanchion.store.shard import Shard

Status = TypeVar("Status")


class Shards:
    """The shards that were asked for, the namespace's own first; others are made when they are."""

    def __init__(self, keyspace: Keyspace, make: Callable[[Keyspace], Shard]) -> None:
        self._keyspace = keyspace
        self._make = make
        self._whole = keyspace.sharding is None
        self._home = make(keyspace)
        self._known = {keyspace.tag: self._home}

    @property
    def tags(self) -> tuple[str, ...]:
        """Their hash tags."""
        return tuple(self._known)

    def of(self, key: str) -> Shard:
        """Get the shard of a key."""
        if self._whole:
            return self._home
        tag = tag_of(key)
        shard = self._known.get(tag)
        if shard is None:
            shard = self._known[tag] = self._make(self._keyspace.under(tag))
        return shard

    def apart(self, keys: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """Get the places of keys by hash tag; one call must not have keys of two."""
        found: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            found.setdefault(tag_of(key), []).append(place)
        return found

    def submit(
        self,
        parts: Sequence[Part],
        submit: Callable[[Shard, Sequence[Part]], asyncio.Future[tuple[Status, ...]]],
    ) -> asyncio.Future[tuple[Status, ...]]:
        """Submit the parts of each shard to it, at once, and get the answers in their order."""
        if self._whole or not parts:
            return submit(self._home, parts)
        places = self.apart([part.key for part in parts])
        if len(places) == 1:
            return submit(self.of(parts[0].key), parts)
        each = [
            (some, submit(self.of(parts[some[0]].key), [parts[place] for place in some]))
            for some in places.values()
        ]
        return asyncio.ensure_future(_together(each, len(parts)))

    async def decided(self) -> None:
        """Fail what still waits to be decided, and let what is under way finish."""
        await asyncio.gather(*(shard.decided() for shard in self._known.values()))

    async def settled(self) -> None:
        """Let what is being settled and renewed finish."""
        await asyncio.gather(*(shard.settled() for shard in self._known.values()))


async def _together(
    each: Sequence[tuple[Sequence[int], asyncio.Future[tuple[Status, ...]]]], count: int
) -> tuple[Status, ...]:
    """Get answers to some places each, in the order of all of them."""
    answered = await asyncio.gather(*(answer for _, answer in each))
    found = {
        place: status
        for (places, _), statuses in zip(each, answered, strict=True)
        for place, status in zip(places, statuses, strict=True)
    }
    return tuple(found[place] for place in range(count))
