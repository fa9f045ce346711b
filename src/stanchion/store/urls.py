"""Where shared state lives, read from a URL; every mistake is found here, before connecting."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from stanchion.errors import ConfigError


class Scheme(StrEnum):
    """The kinds of place that a URL can name."""

    MEMORY = "memory"
    EMBEDDED = "embedded"
    REDIS = "redis"
    REDISS = "rediss"
    UNIX = "unix"
    CLUSTER = "redis+cluster"
    SENTINEL = "redis+sentinel"


_FORMS = (
    "memory://, embedded://, embedded:///dir, redis://host:port/db, rediss://host:port/db, "
    "unix:///path, redis+cluster://h:p,h:p or redis+sentinel://h:p,h:p/service/db"
)
_DEFAULT_PORT = {Scheme.SENTINEL: 26379}
_REDIS_PORT = 6379
_TOP_PORT = 65535


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. `url` is kept for the client's own parser and never shown."""

    scheme: Scheme
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    service: str = ""
    database: int = 0
    directory: Path | None = None
    options: tuple[tuple[str, str], ...] = ()


def parse_url(url: str) -> Target:
    """Get what a URL names.

    Raises:
        ConfigError: unknown scheme, missing host or service, or a port or database that is no
            number in range. Passwords never appear in the text.
    """
    if not isinstance(url, str) or "://" not in url:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"url: expected {_FORMS}")
    name = url.partition("://")[0]
    try:
        scheme = Scheme(name)
    except ValueError:
        raise ConfigError.of("url scheme", name, f"expected {_FORMS}") from None
    if scheme is Scheme.MEMORY:
        if url != "memory://":
            raise ConfigError("url: memory:// takes no host, path or options")
        return Target(scheme, url)
    if scheme is Scheme.EMBEDDED:
        rest = url.removeprefix("embedded://")
        if rest and not rest.startswith("/"):
            raise ConfigError("url: expected embedded:// or embedded:///absolute/dir")
        return Target(scheme, url, directory=Path(unquote(rest)) if rest.strip("/") else None)
    return _networked(scheme, url)


def _networked(scheme: Scheme, url: str) -> Target:
    parts = urlsplit(url)
    userinfo, _, places = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    path = [unquote(part) for part in parts.path.split("/") if part]
    if scheme is Scheme.UNIX:
        if not path:
            raise ConfigError("url: unix:// needs the socket's path, as in unix:///run/redis.sock")
        return Target(scheme, url)
    hosts = tuple(_host(place, scheme) for place in places.split(",") if place)
    if not hosts:
        raise ConfigError(f"url: {scheme}:// names no host; expected {_FORMS}")
    service = ""
    if scheme is Scheme.SENTINEL:
        if not path:
            raise ConfigError("url: redis+sentinel:// needs a service, as in .../mymaster/0")
        service = path.pop(0)
    elif scheme is not Scheme.CLUSTER and len(hosts) > 1:
        raise ConfigError(f"url: {scheme}:// takes one host; several need redis+cluster://")
    return Target(
        scheme,
        url,
        hosts,
        unquote(username) or None,
        unquote(password) or None,
        service,
        _database(path, scheme),
        options=tuple(parse_qsl(parts.query)),
    )


def _host(place: str, scheme: Scheme) -> tuple[str, int]:
    default = _DEFAULT_PORT.get(scheme, _REDIS_PORT)
    if place.startswith("["):
        host, _, rest = place[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    if not host:
        raise ConfigError.of("url host", place, "expected host or host:port")
    if not port:
        return host, default
    if not port.isdecimal() or not 0 < int(port) <= _TOP_PORT:
        raise ConfigError.of("url port", port, "expected a number from 1 to 65535")
    return host, int(port)


def _database(path: list[str], scheme: Scheme) -> int:
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdecimal():
        raise ConfigError.of("url database", "/".join(path), "expected a number")
    if scheme is Scheme.CLUSTER and path[0] != "0":
        raise ConfigError.of("url database", path[0], "a cluster has only database 0")
    return int(path[0])
