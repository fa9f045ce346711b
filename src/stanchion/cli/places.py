"""Where state is, as a person and redis-cli name it, and a server of our own if none is named."""

from __future__ import annotations

import shlex
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from stanchion import ConfigError
from stanchion.store.embedded import start_embedded
from stanchion.store.scripts import lua_directory
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_START = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class Place:
    """A store that any process can reach under `url`; `shown` is how to name it to a person."""

    url: str
    shown: str

    def redis_cli(self) -> str | None:
        """Get the beginning of a redis-cli command line for it; None where there is none."""
        target, parts = parse_url(self.url), urlsplit(self.url)
        words = ["redis-cli"]
        if target.scheme is Scheme.UNIX:
            words += ["-s", parts.path]
        elif target.scheme in {Scheme.REDIS, Scheme.REDISS, Scheme.CLUSTER}:
            host, port = target.hosts[0]
            words += ["-h", host, "-p", str(port)]
        else:
            return None
        if target.tls:
            words.append("--tls")
        if target.scheme is Scheme.CLUSTER:
            words.append("-c")
        if target.database:
            words += ["-n", str(target.database)]
        return shlex.join(words)

    def hints(self, namespace: str, key: str) -> tuple[str, ...]:
        """Get command lines that show the state of a namespace, and of one key in it."""
        inspect = f"stanchion inspect --url {shlex.quote(self.shown)} --namespace {namespace}"
        cli = self.redis_cli()
        if cli is None:
            return (inspect,)
        path = lua_directory() / "inspect.lua"
        here = Path.cwd()
        script = shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
        return (
            inspect,
            f"{cli} --scan --pattern {shlex.quote(f'stanchion:{{{namespace}}}:*')}",
            f"{cli} --eval {script} {shlex.quote(key)}",
        )


def shown(url: str) -> str:
    """Get a URL without its password and options, as it may be printed."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}:***@{hosts}" if at else hosts
    # What urlunsplit makes of `unix:///path` depends on the scheme; these are put together plainly.
    return f"{parts.scheme}://{netloc}{parts.path}" if parts.scheme else urlunsplit(parts)


def check_shared(url: str) -> None:
    """Refuse a URL behind which no other process can have left anything.

    Raises:
        ConfigError: it names memory, a server that is yet to be started, or no directory.
    """
    target = parse_url(url)
    if target.scheme is Scheme.MEMORY:
        raise ConfigError("url: memory:// is inside one process: no other can look at it")
    if target.scheme is Scheme.EMBEDDED and target.directory is None:
        raise ConfigError(
            "url: embedded:// is a new server, with nothing in it: name its directory, as in "
            "embedded:///some/dir, or its socket, as in unix:///some/dir/server.sock"
        )
    if target.directory is not None and not target.directory.is_dir():
        raise ConfigError.of("url directory", str(target.directory), "there is no such directory")


@asynccontextmanager
async def place_of(url: str) -> AsyncGenerator[Place]:
    """Get a place for a URL, with an embedded server running where it names one.

    Raises:
        ConfigError: the URL cannot work, or is one that other processes cannot reach.
        StoreUnavailable: the embedded server did not start.
    """
    target = parse_url(url)
    if target.scheme is Scheme.MEMORY:
        raise ConfigError("memory:// is inside one process: no other can look at it")
    if target.scheme is not Scheme.EMBEDDED:
        yield Place(url, shown(url))
        return
    server = await start_embedded(target.directory, deadline=_START)
    try:
        address = f"unix://{server.socket_path}"
        yield Place(address, address)
    finally:
        await server.close()
