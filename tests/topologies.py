"""Servers that are more than one process, or that are reached in another way: built for tests."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import redis
import redis.asyncio.cluster
import redis.cluster

from tests.certificates import Certificates, with_options
from tests.servers import RealServer, Reaper, free_port
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SLOTS = 16384
READY = 20.0


class UnixServer(RealServer):
    """A server that listens on a unix socket only."""

    def __init__(self, program: str, reaper: Reaper) -> None:
        super().__init__(program, reaper, tcp=False, name=f"{program} on a unix socket")


class TLSServer(RealServer):
    """A server that speaks TLS only, its certificate signed by an authority made for the test."""

    def __init__(
        self,
        program: str,
        reaper: Reaper,
        *,
        mutual: bool = False,
        certificates: Certificates | None = None,
        name: str = "",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(program, reaper, name=name or f"{program} with TLS", options=options)
        self.certificates = certificates or Certificates(self.directory, self.host, mutual=mutual)

    @property
    def ca_file(self) -> Path:
        return self.certificates.ca_file

    @property
    def other_ca_file(self) -> Path:
        return self.certificates.other_ca_file

    @property
    def url(self) -> str:
        """The URL with the authority in it, as redis-py reads it."""
        return with_options(self.bare_url, self.certificates.options)

    @property
    def bare_url(self) -> str:
        return f"rediss://{self.host}:{self.port}/0"

    def _listen(self) -> list[str]:
        return _listening(self.port, self.certificates)


def _listening(port: int, certificates: Certificates) -> list[str]:
    told = {"port": "0", "tls-port": str(port), "tls-replication": "yes", **certificates.settings}
    return [word for name, value in told.items() for word in (f"--{name}", value)]


class ClusterNode(RealServer):
    """One node of a cluster, with TLS only once it has been given certificates."""

    certificates: Certificates | None = None

    def __init__(self, program: str, reaper: Reaper, name: str) -> None:
        super().__init__(program, reaper, name=name)
        self.bus_port = 0
        self._bus_of = 0

    @property
    def url(self) -> str:
        if self.certificates is None:
            return super().url
        return with_options(f"rediss://{self.host}:{self.port}/0", self.certificates.options)

    def _listen(self) -> list[str]:
        # A restarted node keeps the port under which the others know it.
        if self._bus_of != self.port:
            self._bus_of, self.bus_port = self.port, free_port()
        listening = super()._listen()
        if self.certificates is not None:
            listening = [*_listening(self.port, self.certificates), "--tls-cluster", "yes"]
        return [
            *listening,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)),
            *("--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"),
        ]

    def _lead(self) -> None:
        """Nothing: a cluster decides itself who leads."""

    @property
    def slots(self) -> set[int]:
        """The slots that it takes for its own, those that come or go included."""
        # As the server wrote it: the client's own parser leaves out half of it.
        lines = str(self.execute("CLUSTER", "NODES")).splitlines()
        mine = next(line for line in lines if "myself" in line).split()
        if "master" not in mine[2]:
            return set()
        owned: set[int] = set()
        for word in mine[8:]:
            if not word.startswith("["):
                first, _, last = word.partition("-")
                owned.update(range(int(first), int(last or first) + 1))
        return owned


class Cluster:
    """Primaries that share the slots evenly, by default three."""

    def __init__(self, program: str, reaper: Reaper, size: int = 3, *, tls: bool = False) -> None:
        self.nodes = [
            ClusterNode(program, reaper, f"{program} cluster node {number}")
            for number in range(size)
        ]
        self.certificates: Certificates | None = None
        if tls:
            first = self.nodes[0]
            self.certificates = Certificates(first.directory, first.host, mutual=True)
            for node in self.nodes:
                node.certificates = self.certificates

    @property
    def url(self) -> str:
        if self.certificates is not None:
            return with_options(self.bare_url, self.certificates.options)
        return self.bare_url

    @property
    def bare_url(self) -> str:
        where = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"{'rediss' if self.certificates else 'redis'}+cluster://{where}"

    def start(self) -> None:
        first, *others = self.nodes
        for node in self.nodes:
            node.start()
        for node in others:
            first.execute("CLUSTER", "MEET", node.host, node.port, node.bus_port)
        share = -(-SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            last = min((number + 1) * share, SLOTS) - 1
            node.execute("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        # The servers themselves wait two seconds before they call a new cluster sound.
        eventually_sync(self.ready, READY, what="cluster_state:ok on every node")

    def ready(self) -> bool:
        return all(
            (told := _cluster_info(node)).get("cluster_state") == "ok"
            and told.get("cluster_known_nodes") == str(len(self.nodes))
            for node in self.nodes
        )

    def refresh(self) -> None:
        for node in self.nodes:
            node.refresh()
        eventually_sync(self.ready, READY, what="cluster_state:ok on every node")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def node_of(self, key: str) -> ClusterNode:
        """Get the node that owns the slot of a key."""
        share = -(-SLOTS // len(self.nodes))
        return self.nodes[cast("int", self.nodes[0].execute("CLUSTER", "KEYSLOT", key)) // share]

    def client(self, **options: Any) -> redis.asyncio.cluster.RedisCluster:
        """Make a client that the test must close."""
        first = self.nodes[0]
        return redis.asyncio.cluster.RedisCluster(host=first.host, port=first.port, **options)


def _cluster_info(node: RealServer) -> Mapping[str, str]:
    told = node.execute("CLUSTER", "INFO")
    if isinstance(told, dict):
        return cast("Mapping[str, str]", told)
    return dict(line.split(":", 1) for line in str(told).split())


class Sentinel(RealServer):
    """One sentinel, told from the start about the replica and the other sentinels."""

    def __init__(self, program: str, reaper: Reaper, name: str) -> None:
        super().__init__(program, reaper, name=name)
        self.id = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.knows: list[str] = []
        self.certificates: Certificates | None = None

    @property
    def url(self) -> str:
        if self.certificates is None:
            return super().url
        return with_options(f"rediss://{self.host}:{self.port}/0", self.certificates.options)

    def command(self) -> list[str]:
        listening = {"port": str(self.port)}
        if self.certificates is not None:
            listening = {"tls-port": str(self.port), "port": "0", "tls-replication": "yes"}
            listening |= self.certificates.settings
        settings = [
            *(f"{name} {value}" for name, value in listening.items()),
            *(f"bind {self.host}", f"sentinel myid {self.id}"),
            *self.knows,
        ]
        file = self.directory / "sentinel.conf"
        # It writes what it learns into its file: a restarted one goes on from there.
        if not file.exists() or settings[0] not in file.read_text().splitlines():
            file.write_text("\n".join(settings) + "\n")
        return [str(self.program), str(file), "--sentinel"]

    def _current_settings(self) -> Mapping[str, str]:
        return {}

    def refresh(self) -> None:
        if not self.alive:
            self.start()
        if self.paused:
            self.resume()


class SentinelGroup:
    """One primary, its replicas, three sentinels. Which server leads changes with a failover."""

    service = "service"
    quorum = 2

    def __init__(
        self,
        program: str,
        reaper: Reaper,
        *,
        replicas: int = 1,
        tls: bool = False,
        down_after: int = 1000,
    ) -> None:
        self._down_after = down_after
        self.sentinels = [Sentinel(program, reaper, f"sentinel {number}") for number in (1, 2, 3)]
        self.certificates: Certificates | None = None
        if tls:
            first = self.sentinels[0]
            self.certificates = Certificates(first.directory, first.host, mutual=True)
            for sentinel in self.sentinels:
                sentinel.certificates = self.certificates
        self.data = [
            self._server(program, reaper, f"{program} behind sentinels {number}")
            for number in range(1, 2 + replicas)
        ]

    def _server(self, program: str, reaper: Reaper, name: str) -> RealServer:
        options = ["--repl-diskless-sync-delay", "0"]
        if self.certificates is None:
            return RealServer(program, reaper, options=options, name=name)
        return TLSServer(
            program, reaper, certificates=self.certificates, options=options, name=name
        )

    @property
    def url(self) -> str:
        if self.certificates is not None:
            return with_options(self.bare_url, self.certificates.options)
        return self.bare_url

    @property
    def bare_url(self) -> str:
        where = ",".join(f"{each.host}:{each.port}" for each in self.sentinels)
        scheme = "rediss+sentinel" if self.certificates else "redis+sentinel"
        return f"{scheme}://{where}/{self.service}/0"

    @property
    def primary(self) -> RealServer:
        """The data server that the sentinels agree on."""
        ports = {self._led_by(sentinel) for sentinel in self.sentinels}
        assert len(ports) == 1, f"the sentinels do not agree: {ports}"
        (port,) = ports
        return next(server for server in self.data if server.port == port)

    @property
    def replica(self) -> RealServer:
        return self.replicas[0]

    @property
    def replicas(self) -> list[RealServer]:
        primary = self.primary
        return [server for server in self.data if server is not primary]

    def _led_by(self, sentinel: Sentinel) -> int:
        told = sentinel.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return int(cast("tuple[str, str]", told)[1])

    def start(self) -> None:
        primary, *replicas = self.data
        primary.start()
        for replica in replicas:
            replica.start()
            replica.execute("REPLICAOF", primary.host, primary.port)
        for sentinel in self.sentinels:
            sentinel.port = free_port()
        for sentinel in self.sentinels:
            sentinel.knows = self._known_to(sentinel)
            sentinel.start()
        eventually_sync(self.ready, READY, what="the sentinels see one primary and its replicas")

    def _known_to(self, sentinel: Sentinel) -> list[str]:
        primary, *replicas = self.data
        return [
            f"sentinel monitor {self.service} {primary.host} {primary.port} {self.quorum}",
            f"sentinel down-after-milliseconds {self.service} {self._down_after}",
            f"sentinel failover-timeout {self.service} 3000",
            *(
                f"sentinel known-replica {self.service} {replica.host} {replica.port}"
                for replica in replicas
            ),
            *(
                f"sentinel known-sentinel {self.service} {other.host} {other.port} {other.id}"
                for other in self.sentinels
                if other is not sentinel
            ),
        ]

    def ready(self) -> bool:
        with suppress(redis.ConnectionError, redis.ResponseError, AssertionError):
            primary = self.primary
            return all(self._follows(replica, primary) for replica in self.replicas) and all(
                self._content(sentinel) for sentinel in self.sentinels
            )
        return False

    @staticmethod
    def _follows(replica: RealServer, primary: RealServer) -> bool:
        linked = cast("Mapping[str, object]", replica.control.info("replication"))
        up = linked.get("master_link_status") == "up"
        return up and linked.get("master_port") == primary.port

    def _content(self, sentinel: Sentinel) -> bool:
        told = str(sentinel.execute("SENTINEL", "CKQUORUM", self.service))
        listed = cast("list[Any]", sentinel.execute("SENTINEL", "REPLICAS", self.service))
        flags = [_fields(entry)["flags"] for entry in listed]
        return told.startswith("OK 3 usable") and flags == ["slave"] * (len(self.data) - 1)

    def refresh(self) -> None:
        for server in [*self.data, *self.sentinels]:
            if not server.alive:
                server.start()
            if server.paused:
                server.resume()
        eventually_sync(lambda: self.primary.alive, READY, what="the sentinels agree who leads")
        primary = self.primary
        for replica in self.replicas:
            if replica.control.info("replication").get("master_port") != primary.port:
                # After a failover the sentinels would see to it too, but take fifteen seconds.
                replica.execute("REPLICAOF", primary.host, primary.port)
        eventually_sync(self.ready, READY, what="the sentinels see one primary and its replicas")
        primary.execute("FLUSHALL")
        primary.execute("SCRIPT", "FLUSH")

    def failover(self) -> None:
        """Have the replica lead, and wait until every sentinel says so."""
        before = self.primary
        eventually_sync(self._ask_for_failover, READY, what="a sentinel takes up the failover")
        eventually_sync(lambda: self.primary is not before, READY, what="the other one leads")

    def _ask_for_failover(self) -> bool:
        # It refuses until it has heard from the replica.
        with suppress(redis.ResponseError):
            self.sentinels[0].execute("SENTINEL", "FAILOVER", self.service)
            return True
        return False

    def stop(self) -> None:
        for server in [*self.sentinels, *self.data]:
            server.stop()


def _fields(entry: Any) -> Mapping[str, str]:
    """Get a reply of name, value, name, value... as a mapping, however the protocol gave it."""
    if isinstance(entry, dict):
        return cast("Mapping[str, str]", entry)
    return dict(zip(entry[::2], entry[1::2], strict=True))
