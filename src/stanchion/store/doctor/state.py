"""Since when state has not been lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.store.doctor.findings import Check, Finding, Status
from stanchion.store.doctor.server import text

if TYPE_CHECKING:
    from stanchion.store.doctor.server import Server
    from stanchion.store.keys import Keyspace

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def state(server: Server, keyspace: Keyspace) -> Finding:
    """See since when the namespace's state is there, and whether what was before had been lost."""
    found = cast("list[Any]", await server.ask("HMGET", keyspace.epoch, "born", "lost"))
    try:
        born_us, lost_us = (int(text(value)) for value in found)
    except ValueError:
        return Finding(Check.STATE, Status.OK, "no worker has been here yet")
    since = _moment(born_us)
    if lost_us <= 0:
        return Finding(
            Check.STATE, Status.OK, f"there since {since}; nothing lost that anybody noticed"
        )
    remedy = (
        "see why the server came back empty (persistence, a flush, a failover to an empty "
        "replica), and what the policies' cold_start made of it; if it did not, stanchion lost "
        "--restore"
    )
    what = f"all of it had been lost, as was noticed at {_moment(lost_us)}"
    return Finding(Check.STATE, Status.HINT, what, remedy)


def _moment(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec="seconds")
