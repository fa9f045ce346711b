"""Requests to one HTTP receiver: bounded in time, over checked TLS, to that receiver only."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from stanchion.errors import ConfigError, StanchionError
from stanchion.observers.sinks.refusal import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import ClientSession

_REDIRECTS: Final = 3
# These repeat the request as it is; after the others a client would ask with GET and tell nothing.
_REPEATED: Final = frozenset({307, 308})
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """A URL that may hold a secret: only its origin is ever shown."""

    url: str
    origin: str

    def __repr__(self) -> str:
        return f"{self.origin}/..."

    @classmethod
    def of(cls, url: object, *, field: str = "url", private: bool = False) -> Address:
        """Get the address for a URL; a `private` one is https, but on this machine.

        Raises:
            ConfigError: not such a URL, or one with a user and password; the text does not show it.
        """
        accepted = "expected an https:// URL" if private else "expected an http:// or https:// URL"
        if not isinstance(url, str) or not url.isprintable() or " " in url:
            raise ConfigError(f"{field}: {accepted}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(f"{field}: {accepted}") from None
        if parts.scheme not in {"http", "https"} or not host:
            raise ConfigError(f"{field}: {accepted}")
        if parts.scheme == "http" and private and not _is_here(host):
            raise ConfigError(f"{field}: {accepted}: it carries a secret")
        if "@" in parts.netloc:
            raise ConfigError(f"{field}: {accepted}, without a user and password")
        shown = f"[{host}]" if ":" in host else host
        return cls(url, f"{parts.scheme}://{shown}{f':{port}' if port else ''}")


def require(package: str, name: str = "", *, extra: str, owner: str) -> None:
    """Check that an optional package is there; `name` is what pip calls it.

    Raises:
        ConfigError: it is not; the text says what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{owner} needs {name or package}: pip install 'stanchion[{extra}]'")


def trusted(ca_file: str | Path | None) -> ssl.SSLContext | None:
    """Get what checks certificates against `ca_file`, None for the system's authorities.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, TypeError) as error:  # an SSLError is an OSError
        reason = "expected a file with PEM certificates"
        raise ConfigError.of("ca_file", ca_file, reason) from error


def checked_headers(headers: object, *, reserved: frozenset[str]) -> dict[str, str]:
    """Get headers to send with every request.

    Raises:
        ConfigError: malformed, or one that the sink sets itself; no value is shown.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise ConfigError("headers: expected a mapping of names to values")
    checked: dict[str, str] = {}
    for name, value in cast("Mapping[object, object]", headers).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError.of("headers", name, "expected the name of an HTTP header")
        if name.lower() in reserved:
            raise ConfigError.of("headers", name, "this header is set for each request")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigError(f"headers: {name}: expected text of one line")
        checked[name] = value
    return checked


class HttpReceiver:
    """POSTs to one address over a pool of connections; nothing but status and headers is read."""

    def __init__(self, address: Address, *, trust: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._trust = trust
        self._session: ClientSession | None = None

    async def start(self) -> None:
        """Make the pool; calling it twice is harmless."""
        # 100 ms, and only who sends anything needs it.
        from aiohttp import ClientSession, DummyCookieJar

        if self._session is None:
            self._session = ClientSession(
                cookie_jar=DummyCookieJar(), auto_decompress=False, trust_env=True
            )

    async def close(self) -> None:
        """Close every connection; calling it twice is harmless."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Send one body and get the status, which is of the 200s.

        Redirects that repeat the request are followed within the same scheme, host and port.

        Raises:
            Refused: another status, a redirect elsewhere, or no connection.
        """
        if self._session is None:
            raise StanchionError("the sink is not started")
        from aiohttp import ClientError
        from yarl import URL

        url = URL(self._address.url)
        try:
            for _ in range(_REDIRECTS + 1):
                async with self._session.post(
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    ssl=self._trust if self._trust is not None else True,
                ) as answer:
                    # The body is left unread, however long it is: a connection whose answer has
                    # not come in whole by now is not used again.
                    status, told = answer.status, answer.headers
                if status not in _REPEATED:
                    break
                target = url.join(URL(told.get("Location", "")))
                if target.origin() != url.origin():
                    raise Refused(f"{self._address.origin} redirects to {target.origin()}")
                url = target
            else:
                raise Refused(f"{self._address.origin} redirects more than {_REDIRECTS} times")
        # ValueError: what Location holds is no URL with a host.
        except (ClientError, OSError, ValueError) as error:
            # Without the error itself, whose text may have the URL.
            reason = f"{self._address.origin}: {type(error).__name__}"
            raise Refused(reason) from None
        if not 200 <= status < 300:
            raise Refused.by_status(self._address.origin, status, told.get("Retry-After"))
        return status


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
