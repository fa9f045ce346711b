"""Servers that are enough of them to lose one, as good as new for each test.

`trio`        a Valkey primary with two replicas, and three sentinels
`replicated`  a Valkey cluster of six: three primaries, and a replica of each
`followers`   a Valkey primary with two replicas, and nobody who watches them
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.followers import Followers
from tests.replicated import ReplicatedCluster
from tests.topologies import SentinelGroup

if TYPE_CHECKING:
    from tests.conftest import Pool


@pytest.fixture
def trio(pool: Pool) -> SentinelGroup:
    """A Valkey primary with two replicas, and three sentinels that watch them."""
    # With one second sentinels now and then give up a new primary before they have reached it.
    group = pool.lend(
        "trio", lambda: SentinelGroup("valkey9", pool.reaper, replicas=2, down_after=2000)
    )
    pool.lent.extend(group.data)
    return group


@pytest.fixture
def replicated(pool: Pool) -> ReplicatedCluster:
    """A Valkey cluster of six."""
    cluster = pool.lend("replicated", lambda: ReplicatedCluster("valkey9", pool.reaper))
    pool.lent.extend(cluster.nodes)
    return cluster


@pytest.fixture
def followers(pool: Pool) -> Followers:
    """A Valkey primary with two replicas, and nobody who watches them."""
    group = pool.lend("followers", lambda: Followers("valkey9", pool.reaper))
    pool.lent.extend(group.servers)
    return group
