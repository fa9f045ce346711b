"""A primary with two replicas and nobody who watches them: who leads is the test's to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tests.servers import RealServer, Reaper
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Mapping

READY = 20.0
# A replica is sent what there is at once, and not after five seconds in which others might come.
_AT_ONCE = ("--repl-diskless-sync-delay", "0")


class Followers:
    """One primary and its replicas, each of which may be stopped, killed, or made to lead."""

    def __init__(self, program: str, reaper: Reaper, replicas: int = 2) -> None:
        self.primary, *self.replicas = [
            RealServer(program, reaper, options=_AT_ONCE, name=f"{program} followed {number}")
            for number in range(1 + replicas)
        ]

    @property
    def url(self) -> str:
        return self.primary.url

    @property
    def servers(self) -> list[RealServer]:
        return [self.primary, *self.replicas]

    def start(self) -> None:
        self.primary.start()
        where = self.primary.host, str(self.primary.port)
        for replica in self.replicas:
            # So that one that is started again follows by itself.
            replica.options = (*_AT_ONCE, "--replicaof", *where)
            replica.start()
        self.linked()

    def linked(self) -> None:
        """Wait until every replica has all that the primary has."""
        eventually_sync(self._linked, READY, what="the replicas follow")

    def _linked(self) -> bool:
        told = _replication(self.primary)
        states = [
            cast("Mapping[str, Any]", told[f"slave{number}"])["state"]
            for number in range(int(told["connected_slaves"]))
        ]
        up = all(
            _replication(replica).get("master_link_status") == "up" for replica in self.replicas
        )
        return up and states == ["online"] * len(self.replicas)

    def refresh(self) -> None:
        for server in self.servers:
            if not server.alive:
                server.start()
            if server.paused:
                server.resume()
        if _replication(self.primary)["role"] != "master":
            self.primary.execute("REPLICAOF", "NO", "ONE")
        for replica in self.replicas:
            if _replication(replica).get("master_port") != self.primary.port:
                replica.execute("REPLICAOF", self.primary.host, self.primary.port)
        self.linked()
        self.primary.execute("FLUSHALL")
        self.primary.execute("SCRIPT", "FLUSH")
        strangers = [user for user in self.primary.execute("ACL", "USERS") if user != "default"]
        if strangers:
            self.primary.execute("ACL", "DELUSER", *strangers)

    def promote(self, replica: RealServer) -> None:
        """Have a replica lead, whatever the primary does."""
        replica.execute("REPLICAOF", "NO", "ONE")

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def _replication(server: RealServer) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", server.control.info("replication"))
