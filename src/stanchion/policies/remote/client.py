"""HTTP to one service: connections that are kept, answers that are bounded, no way elsewhere."""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from stanchion.errors import ConfigError, PolicyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientResponse, ClientSession

_HOPS: Final = 3
_SAME_METHOD: Final = frozenset({307, 308})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A service's answer: the status, the headers in letters of any size, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> object:
        """Get the body as JSON.

        Raises:
            PolicyFailed: it is something else.
        """
        try:
            return cast("object", json.loads(self.body))
        except (ValueError, RecursionError):
            raise PolicyFailed(f"answered {self.status} with no JSON") from None

    @property
    def retry_after(self) -> float | None:
        """The seconds that the service asks to be left alone, None where it names none."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def checked_url(field: str, url: str) -> str:
    """Get a URL that can be asked, without a slash at its end.

    Raises:
        ConfigError: it is no http or https URL, or carries a user or a fragment.
    """
    accepted = 'expected "https://host:port/path"'
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname)
        known = known and parts.port != 0
    except ValueError:
        known, parts = False, urlsplit("")
    # It may hold what is secret, in its path as well, and so it is not shown.
    if known and (parts.username is not None or parts.password is not None):
        raise ConfigError(f"{field}: not shown here; credentials belong into bearer or headers")
    if not known or parts.fragment or any(ord(letter) <= 32 for letter in url):
        raise ConfigError(f"{field}: not shown here; {accepted}")
    return url.rstrip("/")


def tls_context(
    ca: str | None, cert: str | None, key: str | None, key_password: str | None
) -> ssl.SSLContext:
    """Get what connections are made with: the system's roots, or `ca`; `cert` shows who asks.

    Raises:
        ConfigError: a file cannot be read, is not PEM, or the key is not the certificate's.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError.of("ca", ca, f"cannot be used: {error}") from None
    if cert is not None:
        try:
            # An empty password keeps OpenSSL from asking the terminal.
            context.load_cert_chain(cert, key, key_password or "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError.of("cert", cert, f"cannot be used with its key: {error}") from None
    return context


class HttpService:
    """Asks one service over connections that are kept; for one event loop.

    It never goes to another host, scheme or port than the service's own, keeps no cookies, and
    reads no proxy from the environment. The caller keeps the time.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        context: ssl.SSLContext | None,
        most_bytes: int,
        connections: int,
    ) -> None:
        self._url = url
        self._headers = dict(headers)
        self._context = context
        self._most_bytes = most_bytes
        self._connections = connections
        self._session: ClientSession | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Post a JSON text and get the answer.

        Raises:
            PolicyFailed: no connection, a broken one, a redirect elsewhere, or too long an answer.
        """
        from aiohttp import ClientError

        url = self._url
        try:
            for _ in range(_HOPS + 1):
                async with self._open().post(
                    url, data=body, headers=headers, allow_redirects=False
                ) as response:
                    if response.status not in _REDIRECTS:
                        return await self._read(response)
                    url = self._hop(response)
            raise PolicyFailed(f"redirected more than {_HOPS} times")
        except ClientError as error:
            raise PolicyFailed(_told(error)) from None
        except (OSError, ssl.SSLError, ValueError) as error:
            raise PolicyFailed(f"cannot be reached: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close every connection; the next question opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> ClientSession:
        if self._session is None:
            from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

            self._session = ClientSession(
                connector=TCPConnector(
                    limit=self._connections,
                    ssl=True if self._context is None else self._context,
                ),
                # Nothing is unpacked: a few bytes could become many.
                headers={"Accept-Encoding": "identity", **self._headers},
                auto_decompress=False,
                timeout=ClientTimeout(total=None),
                cookie_jar=DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    async def _read(self, response: ClientResponse) -> Reply:
        said = response.content_length
        if said is not None and said > self._most_bytes:
            # The rest is not worth reading, so neither is the connection worth keeping.
            response.close()
            raise PolicyFailed(f"answered with {said} bytes; at most {self._most_bytes} are read")
        if said is not None:
            # It cannot be longer than it said.
            return Reply(response.status, response.headers, await response.read())
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > self._most_bytes:
                response.close()
                raise PolicyFailed(f"answered with more than {self._most_bytes} bytes")
        return Reply(response.status, response.headers, bytes(body))

    def _hop(self, response: ClientResponse) -> str:
        """Get where a redirect leads, if that is the same service."""
        from yarl import URL

        here, there = response.url, response.headers.get("Location", "")
        response.close()
        try:
            target = here.join(URL(there))
        except ValueError:
            raise PolicyFailed("redirected to what is no URL") from None
        if not there or response.status not in _SAME_METHOD:
            raise PolicyFailed(f"answered {response.status}, which is no answer to a question")
        if target.origin() != here.origin():
            raise PolicyFailed(f"redirected to another place: {target.host}")
        return str(target)


def require_aiohttp(owner: str, extra: str) -> None:
    """Check that HTTP can be spoken; raises ConfigError naming the extra."""
    try:
        import aiohttp
    except ImportError:
        raise ConfigError(f"{owner} needs aiohttp: pip install 'stanchion[{extra}]'") from None
    del aiohttp


def _told(error: Exception) -> str:
    """Get what a client error says, without the URL, which may hold what is secret."""
    from aiohttp import (
        ClientConnectorCertificateError,
        ClientConnectorError,
        ClientPayloadError,
        ServerDisconnectedError,
    )

    if isinstance(error, ClientConnectorCertificateError):
        return "cannot be trusted: its certificate was refused"
    if isinstance(error, ClientConnectorError):
        code = error.os_error.errno or 0
        known = os.strerror(code) if code > 0 else error.os_error.strerror
        return f"cannot be reached: {known or type(error).__name__}"
    if isinstance(error, ServerDisconnectedError):
        return "closed the connection without an answer"
    if isinstance(error, ClientPayloadError):
        return "broke off in the middle of its answer"
    return f"cannot be understood: {type(error).__name__}"
