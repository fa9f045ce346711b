"""A cluster in which every primary has a replica, and any of them may lead."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import redis

from tests.topologies import READY, SLOTS, Cluster, ClusterNode
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.servers import Reaper

PRIMARIES = 3


class ReplicatedNode(ClusterNode):
    """A node that leads or follows, and serves what is its own whatever becomes of the others."""

    def _listen(self) -> list[str]:
        return [*super()._listen(), "--cluster-require-full-coverage", "no"]

    @property
    def id(self) -> str:
        return str(self.execute("CLUSTER", "MYID"))

    @property
    def replication(self) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", self.control.info("replication"))

    @property
    def leads(self) -> bool:
        return self.replication["role"] == "master"

    @property
    def following(self) -> int | None:
        """The port of the primary whose writes it gets, None where it leads or is cut off."""
        told = self.replication
        linked = told["role"] == "slave" and told["master_link_status"] == "up"
        return int(told["master_port"]) if linked else None

    def refresh(self) -> None:
        if not self.alive:
            self.start()
        if self.paused:
            self.resume()
        self.execute("CLIENT", "UNPAUSE")
        self.execute("CONFIG", "RESETSTAT")
        self.execute("SCRIPT", "FLUSH")

    def keys(self, pattern: str = "*") -> Iterator[tuple[str, int]]:
        # What a replica has is its primary's; it sends whoever asks to that.
        if self.leads:
            yield from super().keys(pattern)


class ReplicatedCluster(Cluster):
    """Three primaries that share the slots, and a replica of each."""

    nodes: list[ReplicatedNode]

    def __init__(self, program: str, reaper: Reaper) -> None:
        super().__init__(program, reaper, size=0)
        self.nodes = [
            ReplicatedNode(program, reaper, f"{program} replicated node {number}")
            for number in range(2 * PRIMARIES)
        ]

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        for node in others:
            first.execute("CLUSTER", "MEET", node.host, node.port, node.bus_port)
        share = -(-SLOTS // PRIMARIES)
        for number, node in enumerate(self.nodes[:PRIMARIES]):
            last = min((number + 1) * share, SLOTS) - 1
            node.execute("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for node, replica in zip(self.nodes, self.nodes[PRIMARIES:], strict=False):
            leader = node.id
            eventually_sync(lambda r=replica, i=leader: _replicate(r, i), READY, what="they met")
        eventually_sync(self.ready, READY, what="a sound cluster of six")

    def ready(self) -> bool:
        if not super().ready():
            return False
        leading = {node.port for node in self.nodes if node.slots}
        followed = {node.following for node in self.nodes if not node.slots}
        return len(leading) == PRIMARIES and followed == leading

    def refresh(self) -> None:
        for node in self.nodes:
            node.refresh()
        eventually_sync(self.ready, READY, what="a sound cluster of six")
        for node in self.nodes:
            if node.leads:
                node.execute("FLUSHALL")

    def node_of(self, key: str) -> ReplicatedNode:
        """Get the node that leads where the slot of a key is."""
        slot = int(self._any.execute("CLUSTER", "KEYSLOT", key))
        found = eventually_sync(lambda: self._claimant(slot), READY, what=f"one has slot {slot}")
        assert found is not None
        return found

    def replica_of(self, node: ReplicatedNode) -> ReplicatedNode:
        return next(one for one in self.nodes if one.following == node.port)

    @property
    def _any(self) -> ReplicatedNode:
        return next(node for node in self.nodes if node.alive and not node.paused)

    def _claimant(self, slot: int) -> ReplicatedNode | None:
        alive = [node for node in self.nodes if node.alive and not node.paused]
        claiming = [node for node in alive if slot in node.slots]
        return claiming[0] if len(claiming) == 1 else None


def _replicate(replica: ReplicatedNode, leader: str) -> bool:
    # It refuses until it has heard of the other.
    with suppress(redis.ResponseError):
        replica.execute("CLUSTER", "REPLICATE", leader)
        return True
    return False
