"""Where shared state lives, read from a URL; every mistake is found here, before connecting."""

from __future__ import annotations

import re
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
    "unix:///path, redis+cluster://h:p,h:p, redis+sentinel://h:p,h:p/service/db, or these two as "
    "rediss+cluster:// and rediss+sentinel://"
)
# Places that have one scheme with TLS and one without.
_WITH_TLS = {"rediss+cluster": Scheme.CLUSTER, "rediss+sentinel": Scheme.SENTINEL}
_YES, _NO = {"1", "true", "yes"}, {"0", "false", "no"}
_DEFAULT_PORT = {Scheme.SENTINEL: 26379}
_REDIS_PORT = 6379
_TOP_PORT = 65535
_NAME = re.compile(r"[A-Za-z0-9+.-]{1,20}")
_DIGITS = re.compile(r"[0-9]{1,5}")
_ESCAPES = "in a password / # ? [ ] @ and % are written %2F %23 %3F %5B %5D %40 %25"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. `url` is kept for the client's own parser and never shown.

    `tls` is about the servers that hold state, `tls_sentinels` about those that say where they are.
    """

    scheme: Scheme
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    service: str = ""
    database: int = 0
    directory: Path | None = None
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tls: bool = False
    tls_sentinels: bool = False


def parse_url(url: str) -> Target:
    """Get what a URL names.

    Raises:
        ConfigError: unknown scheme, missing host or service, a port or database that is no number
            in range, or certificates for a place without TLS. Passwords never appear in the text.
    """
    if not isinstance(url, str) or "://" not in url:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"url: expected {_FORMS}")
    name = url.partition("://")[0]
    try:
        scheme = _WITH_TLS.get(name) or Scheme(name)
    except ValueError:
        told = f"={name!r}" if _NAME.fullmatch(name) else ""
        raise ConfigError(f"url scheme{told}: expected {_FORMS}") from None
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
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its text shows the password; so may all that is cut in the wrong place.
        raise ConfigError(f"url: not one that can be read; {_ESCAPES}") from None
    first = parts.query.partition("=")[0]
    if parts.fragment or ("@" in parts.path + first and scheme is not Scheme.UNIX):
        raise ConfigError(f"url: what stands before the @ ends too early; {_ESCAPES}")
    userinfo, _, places = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    path = [unquote(part) for part in parts.path.split("/") if part]
    tls, options = _tls(scheme, parts.scheme, parse_qsl(parts.query))
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
        options=options,
        tls=tls,
        tls_sentinels=parts.scheme == "rediss+sentinel",
    )


def _tls(
    scheme: Scheme, name: str, given: list[tuple[str, str]]
) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Get whether servers are reached by TLS, and the options without the one that says so."""
    tls, options = name.startswith("rediss"), dict(given)
    if len(options) < len(given):
        # Which of them counts depends on who reads it.
        raise ConfigError("url: an option is given twice")
    if scheme in {Scheme.CLUSTER, Scheme.SENTINEL} and "ssl" in options:
        asked = options.pop("ssl").lower()
        if asked not in (_YES if tls else _YES | _NO):
            text = f"expected {'true' if tls else 'true or false'} with {name}://"
            raise ConfigError.of("url option ssl", asked, text)
        tls = asked in _YES
    if not tls and (unused := sorted(one for one in options if one.startswith("ssl_"))):
        wanted = name.replace("redis", "rediss", 1)
        raise ConfigError(f"url: option {unused[0]} is for TLS: expected {wanted}://")
    return tls, tuple(options.items())


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
    if not _DIGITS.fullmatch(port):
        raise ConfigError(f"url port: expected a number from 1 to 65535; {_ESCAPES}")
    if not 0 < int(port) <= _TOP_PORT:
        raise ConfigError.of("url port", port, "expected a number from 1 to 65535")
    return host, int(port)


def _database(path: list[str], scheme: Scheme) -> int:
    if not path:
        return 0
    if len(path) > 1 or not _DIGITS.fullmatch(path[0]):
        raise ConfigError(f"url database: expected a number; {_ESCAPES}")
    if scheme is Scheme.CLUSTER and path[0] != "0":
        raise ConfigError.of("url database", path[0], "a cluster has only database 0")
    return int(path[0])
