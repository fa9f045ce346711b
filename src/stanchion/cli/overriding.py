"""`stanchion override`: one subject's own limit, in force for every worker at once."""

from __future__ import annotations

import re

from stanchion import ConfigError
from stanchion.cli.output import Exit, complain, say
from stanchion.cli.places import check_shared, shown
from stanchion.errors import StoreUnavailable
from stanchion.policies.limited import LARGEST
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore

_DEADLINE = 2.0
_KEY = re.compile(
    r"stanchion:\{([A-Za-z0-9._-]+)(?:/([0-9]{1,4}))?\}:(?:rate|quota|slots):[A-Za-z0-9._-]+:"
    r"[A-Za-z0-9._@+=%~:-]+"
)


async def override(url: str, key: str, limit: int | None, burst: int | None) -> Exit:
    """Give the subject of a state key a limit of its own, or with None take it away.

    Raises:
        ConfigError: the URL cannot work, or the key is not that of a rate limit, quota or slots.
    """
    check_shared(url)
    match = _KEY.fullmatch(key)
    if match is None:
        raise ConfigError.of(
            "key", key, "expected stanchion:{<namespace>}:rate|quota|slots:<policy>:<subject>"
        )
    for name, value in (("limit", limit), ("burst", burst)):
        if value is not None and not 1 <= value <= LARGEST:
            raise ConfigError.of(name, value, "expected from 1 to 2^52")
    fields: dict[str, int] | None = None
    if limit is not None:
        fields = {"limit": limit} | ({} if burst is None else {"burst": burst})
    keyspace = Keyspace(match[1], shard=int(match[2] or 0))
    store = RedisStore(url, keyspace, deadline=_DEADLINE)
    try:
        await store.open()
        await store.override(key, fields)
    except StoreUnavailable as error:
        complain(f"cannot change {shown(url)}: {error}")
        return Exit.FAILED
    finally:
        await store.close()
    what = "the limit that its policy declares" if limit is None else f"a limit of {limit}"
    say(f"{key} has {what}")
    return Exit.OK
