"""`stanchion lost`: what nobody can notice, the operator says: that state has been lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from stanchion.cli.output import Exit, complain, say
from stanchion.cli.places import check_shared, shown
from stanchion.errors import StoreUnavailable
from stanchion.store.epoch import Act
from stanchion.store.keys import Keyspace, tag_of
from stanchion.store.redis_store import RedisStore

if TYPE_CHECKING:
    from stanchion.store.epoch import Epoch

_DEADLINE = 2.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RULES = """\
Where nothing is stored for a subject, its limits begin by what their policy declares:
  cold_start="fresh"     as if nothing had been used, which is the default
  cold_start="spent"     as if the whole limit had been used at that moment
  cold_start="prorated"  a quota: as if it had been used evenly until then
What is stored stays as it is. Workers tell of it within a few seconds, as StateLost.
`stanchion lost --restore` takes it back."""


async def lost(url: str, namespace: str, shards: int, *, restore: bool) -> Exit:
    """Say that all state of a namespace has been lost now, or that nothing was after all.

    Shards of which something is stored are found; `shards` is for those of which nothing is left.

    Raises:
        ConfigError: the URL or the namespace cannot work.
    """
    check_shared(url)
    keyspace = Keyspace(namespace)
    store = RedisStore(url, keyspace, deadline=_DEADLINE)
    try:
        await store.open()
        tags = {keyspace.at(shard).tag for shard in range(shards + 1)}
        for prefix in keyspace.all_prefixes:
            tags |= {tag_of(key) async for key in store.keys(f"{prefix}epoch")}
        act = Act.RESTORE if restore else Act.LOSE
        epochs = [await store.epoch(tag, act) for tag in sorted(tags)]
    except StoreUnavailable as error:
        complain(f"cannot change {shown(url)}: {error}")
        return Exit.FAILED
    finally:
        await store.close()
    for epoch in epochs:
        say(_told(epoch, restored=restore))
    if not restore:
        for line in _RULES.splitlines():
            say(line)
    return Exit.OK


def _told(epoch: Epoch, *, restored: bool) -> str:
    name = f"stanchion:{{{epoch.tag}}}"
    if restored:
        return f"{name}: nothing counts as lost"
    moment = _EPOCH + timedelta(microseconds=epoch.lost_us)
    return f"{name}: what was before {moment.isoformat()} counts as lost"
