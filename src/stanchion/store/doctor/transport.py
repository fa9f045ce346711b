"""Whether what goes over the wire is encrypted, and who vouches for the server."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from redis.asyncio import SSLConnection

from stanchion.store.doctor.findings import Check, Finding, Status

if TYPE_CHECKING:
    from stanchion.store.doctor.server import Server

_DAY: Final = 86400.0
_SOON: Final = 14.0  # days
_PLAIN: Final = "a URL with rediss://, rediss+cluster:// or rediss+sentinel://"


async def transport(server: Server) -> Finding:
    """Judge the way to the server; to see its certificate, one handshake more is made."""
    connection, address = _connection(server)
    if address is None:
        return _finding(Status.OK, "a unix socket: nothing leaves this machine")
    host, port = address
    if not isinstance(connection, SSLConnection):
        if _is_near(host):
            return _finding(Status.OK, "not encrypted; nothing leaves this machine")
        found = f"not encrypted: passwords and state travel to {host} for all to read"
        return _finding(Status.WARNING, found, _PLAIN)
    return await _certified(connection, host, port, server.left)


async def _certified(connection: SSLConnection, host: str, port: int, patience: float) -> Finding:
    context = cast("ssl.SSLContext", cast("Any", connection.ssl_context).get())
    name, days = await _handshake(host, port, context, patience)
    if context.verify_mode is not ssl.CERT_REQUIRED:
        found = f"{name}, but the server's certificate is not verified: anybody can be the server"
        return _finding(Status.WARNING, found, "take ssl_cert_reqs out of the URL")
    if not context.check_hostname:
        found = f"{name}, verified, but for any host: every certificate of that authority will do"
        return _finding(Status.WARNING, found, "take ssl_check_hostname out of the URL")
    mine = ", with a certificate of our own" if connection.certfile else ""
    ends = "" if days is None else f"; the server's certificate ends in {days:,.0f} days"
    if days is not None and days < _SOON:
        return _finding(Status.WARNING, f"{name}, verified{mine}{ends}", "renew it")
    return _finding(Status.OK, f"{name}, verified{mine}{ends}")


async def _handshake(
    host: str, port: int, context: ssl.SSLContext, patience: float
) -> tuple[str, float | None]:
    """Get the protocol's name, and how many days the certificate is still good, if that is told."""
    writer: asyncio.StreamWriter | None = None
    # Everything else has been asked over such a connection; without this one, less is told.
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    if writer is None:
        return "TLS", None
    try:
        wrapped = cast("ssl.SSLObject", writer.get_extra_info("ssl_object"))
        ends = (wrapped.getpeercert() or {}).get("notAfter")
        left = None
        if isinstance(ends, str):
            left = (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY
        return wrapped.version() or "TLS", left
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await writer.wait_closed()


def _connection(server: Server) -> tuple[object, tuple[str, int] | None]:
    """Get a connection as it would be made, and where to; None for a unix socket."""
    if (node := server.node) is not None:
        made = cast("Any", node).connection_class(**node.connection_kwargs)
        return made, (node.host, int(node.port))
    pool = cast("Any", server.connections.client).connection_pool
    connection = pool.make_connection()
    # Behind sentinels it is known where only once somebody has been there.
    address = getattr(pool, "master_address", None)
    if address is None and getattr(connection, "host", None) is not None:
        address = connection.host, connection.port
    return connection, None if address is None else (str(address[0]), int(address[1]))


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _finding(status: Status, found: str, remedy: str = "") -> Finding:
    return Finding(Check.TLS, status, found, remedy)
