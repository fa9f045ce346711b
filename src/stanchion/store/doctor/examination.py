"""The whole examination: every check once, in an order in which one can rely on the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from stanchion.errors import StoreUnavailable
from stanchion.store.clients import connect
from stanchion.store.doctor import conduct, settings, topology
from stanchion.store.doctor.findings import Check, Finding, Status, worst
from stanchion.store.doctor.rights import rights
from stanchion.store.doctor.server import NotPermitted, Server, Unasked, pairs
from stanchion.store.doctor.state import state
from stanchion.store.doctor.transport import transport
from stanchion.store.doctor.versions import version
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from stanchion.store.keys import Keyspace
    from stanchion.store.urls import Target


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, in the order in which it was looked at."""

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Status:
        """The worst of it."""
        return worst(self.findings)


async def examine(
    url: str, keyspace: Keyspace, *, deadline: float, replicas: int = 0
) -> Examination:
    """Look at the server that keeps a namespace, as a worker with this URL would see it.

    Nothing is written. `deadline` is in seconds, and for all of it; the server of an `embedded://`
    URL is started before that, and stopped after. `replicas` is how many of them quotas wait for.

    Raises:
        ConfigError: the URL cannot work.
        StoreUnavailable: there is no server, it does not let us in, or says nothing.
    """
    target = parse_url(url)
    connections = await connect(target, deadline=deadline)
    try:
        server = Server(connections, keyspace.circuits, deadline=deadline)
        try:
            await server.find()
            hello = pairs(await server.ask("HELLO"))
        except Unasked as error:
            raise StoreUnavailable(f"the server refuses: {error}") from error
        return Examination(tuple(await _look(server, target, keyspace, hello, replicas)))
    finally:
        await connections.close()


async def _look(
    server: Server, target: Target, keyspace: Keyspace, hello: Mapping[str, str], replicas: int
) -> list[Finding]:
    found = [version(hello)]
    digest = ""

    async def scripts() -> Finding:
        nonlocal digest
        finding, digest = await conduct.scripts(server)
        return finding

    async def persistence() -> Finding:
        return settings.persistence(await server.info(), await server.settings(*settings.SETTINGS))

    async def replication() -> Finding:
        if hello.get("role") in {"replica", "slave"}:
            return settings.replica()
        return settings.replication(
            await server.info(),
            await server.settings(*settings.SETTINGS),
            fails_over=target.scheme in {Scheme.CLUSTER, Scheme.SENTINEL},
            awaited=replicas,
        )

    async def eviction() -> Finding:
        return settings.eviction(await server.info())

    async def memory() -> Finding:
        return settings.memory(await server.info())

    async def latency() -> Finding:
        return await conduct.latency(server, digest)

    looks: dict[Check, Callable[[], Awaitable[Finding]]] = {
        Check.SCRIPTS: scripts,
        Check.RIGHTS: lambda: rights(server, keyspace, _user(server, target), waits=replicas > 0),
        Check.TLS: lambda: transport(server),
        Check.EVICTION: eviction,
        Check.MEMORY: memory,
        Check.PERSISTENCE: persistence,
        Check.REPLICATION: replication,
    }
    if server.node is not None:
        looks[Check.CLUSTER] = lambda: topology.cluster(server, keyspace.namespace)
    if target.scheme is Scheme.SENTINEL:
        looks[Check.SENTINEL] = lambda: topology.sentinels(server, target)
    looks |= {
        Check.STATE: lambda: state(server, keyspace),
        Check.CLOCK: lambda: conduct.clock(server),
        Check.LATENCY: latency,
    }
    found += [await _seen(check, look()) for check, look in looks.items()]
    return found


async def _seen(check: Check, look: Awaitable[Finding]) -> Finding:
    try:
        return await look
    except NotPermitted as error:
        return Finding(check, Status.HINT, f"not known: {error}", "ask as an operator")
    except Unasked as error:
        return Finding(check, Status.HINT, f"not known: {error}")
    except StoreUnavailable as error:
        remedy = "see whether the server is busy: SLOWLOG, and a longer --deadline"
        return Finding(check, Status.ERROR, str(error), remedy)


def _user(server: Server, target: Target) -> str | None:
    """Get who logs in; None where nobody does."""
    if server.node is not None or target.scheme is Scheme.SENTINEL:
        username, password = target.username, target.password
    else:
        arguments = cast("Any", server.connections.client).connection_pool.connection_kwargs
        username, password = arguments.get("username"), arguments.get("password")
    if not (username or password):
        return None
    return str(username or "default")
