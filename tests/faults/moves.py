"""Handing a slot of a cluster over, step by step, as `redis-cli --cluster reshard` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.topologies import ClusterNode


class Move:
    """One slot on its way from one node to another."""

    def __init__(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        self.slot = slot
        self.source = source
        self.target = target

    def begin(self) -> None:
        source, target = (
            str(node.execute("CLUSTER", "MYID")) for node in (self.source, self.target)
        )
        self.target.execute("CLUSTER", "SETSLOT", self.slot, "IMPORTING", source)
        self.source.execute("CLUSTER", "SETSLOT", self.slot, "MIGRATING", target)

    def carry(self, count: int) -> int:
        """Carry over so many keys; get how many were there to carry."""
        keys = self.source.execute("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if keys:
            where = (self.target.host, self.target.port)
            self.source.execute("MIGRATE", *where, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end(self, nodes: Sequence[ClusterNode]) -> None:
        owner = str(self.target.execute("CLUSTER", "MYID"))
        for node in (self.target, self.source, *nodes):
            node.execute("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
        for node in (self.target, self.source):
            for client in node.connections():
                if client["cmd"] == "restore-asking":
                    # Kept by the servers themselves, for more keys to come.
                    node.execute("CLIENT", "KILL", "ID", client["id"])

    def whole(self, nodes: Sequence[ClusterNode]) -> None:
        self.begin()
        while self.carry(100):
            pass
        self.end(nodes)
