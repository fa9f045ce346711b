"""What policies share whose service speaks HTTP: where it is, who asks, how much is read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, cast
from weakref import WeakKeyDictionary

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr

from stanchion.errors import ConfigError, PolicyFailed
from stanchion.policies.remote.base import RemotePolicy
from stanchion.policies.remote.client import (
    HttpService,
    Reply,
    checked_url,
    require_aiohttp,
    tls_context,
)

if TYPE_CHECKING:
    from stanchion.events import Event

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
Secret = SecretStr | str
Bearer = Secret | Callable[[], str]


def _hidden(value: object) -> object:
    if isinstance(value, str):
        return SecretStr(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {name: _hidden(item) for name, item in items}
    return value


class ServicePolicy(RemotePolicy):
    """A policy whose service speaks HTTP: where it is, who asks, and how much is read.

    `bearer` is a token, or a function that gets one for each question; `bearer_env` names the
    variable that holds it. `ca` replaces the system's roots; `cert` and `key` show who asks.
    `headers` are sent with every question, and shown to nobody.
    """

    secret: ClassVar[frozenset[str]] = frozenset({"bearer", "headers", "key_password", "url"})
    extra_name: ClassVar[str] = "http"

    url: str
    bearer: Annotated[Bearer | None, BeforeValidator(_hidden)] = None
    bearer_env: str | None = None
    headers: Annotated[Mapping[str, Secret], BeforeValidator(_hidden)] = Field(default={})
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: Annotated[Secret | None, BeforeValidator(_hidden)] = None
    max_answer: Annotated[int, Field(ge=64, le=64 * 1024 * 1024)] = 64 * 1024
    connections: Annotated[int, Field(ge=1, le=1000)] = 20

    _context: ssl.SSLContext | None = PrivateAttr(default=None)
    _services: WeakKeyDictionary[asyncio.AbstractEventLoop, HttpService] = PrivateAttr(
        default_factory=WeakKeyDictionary[asyncio.AbstractEventLoop, HttpService]
    )

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        url = checked_url(f"{self.owner}: url", self.url)
        if "?" in url and self.target() != url:
            raise ConfigError(f"{self.owner}: url: not shown here; a path cannot follow its query")
        secure = url.startswith("https:")
        for field in ("ca", "cert", "key"):
            if getattr(self, field) is not None and not secure:
                raise ConfigError.of(f"{self.owner}: {field}", getattr(self, field), "needs https")
        if self.key is not None and self.cert is None:
            raise ConfigError.of(f"{self.owner}: key", self.key, "needs a cert")
        if self.bearer is not None and self.bearer_env is not None:
            raise ConfigError.of(f"{self.owner}: bearer_env", self.bearer_env, "and bearer: choose")
        if self.bearer_env is not None and not os.environ.get(self.bearer_env):
            raise ConfigError.of(f"{self.owner}: bearer_env", self.bearer_env, "is not set")
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name) or not _is_header(_plain(value)):
                raise ConfigError.of(f"{self.owner}: headers", name, "no header can be so")
        if secure:
            password = None if self.key_password is None else _plain(self.key_password)
            self._context = tls_context(self.ca, self.cert, self.key, password)
        require_aiohttp(self.owner, self.extra_name)
        super().check()

    async def close(self) -> None:
        """Let what is being asked on this loop end, and close connections; it can be asked again.

        A bus does so with its policies when it is closed.
        """
        service = self._services.pop(asyncio.get_running_loop(), None)
        await super().close()
        if service is not None:
            await service.close()

    def target(self) -> str:
        """Get the URL that is asked."""
        return self.url.rstrip("/")

    async def post(self, document: object, event: Event) -> Reply:
        """Post a document about an event and get the answer, whatever its status.

        Raises:
            PolicyFailed: there is none.
        """
        headers = {"Content-Type": "application/json", "X-Request-ID": _printable(event.id)}
        if (token := self._token()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        return await self._service().post(body, headers)

    def _token(self) -> str | None:
        if self.bearer_env is not None:
            token = os.environ.get(self.bearer_env, "")
        elif self.bearer is None:
            return None
        elif isinstance(self.bearer, SecretStr | str):
            token = _plain(self.bearer)
        else:
            token = self.bearer()
        if not token or not _is_header(token):
            raise PolicyFailed("has no bearer token that can be sent")
        return token

    def _service(self) -> HttpService:
        loop = asyncio.get_running_loop()
        service = self._services.get(loop)
        if service is None:
            service = self._services[loop] = HttpService(
                self.target(),
                headers={
                    "Accept": "application/json",
                    "User-Agent": "stanchion",
                    **{name: _plain(value) for name, value in self.headers.items()},
                },
                context=self._context,
                most_bytes=self.max_answer,
                connections=self.connections,
            )
        return service

    def __repr_args__(self) -> Any:
        """Leave out what is told to nobody."""
        return [(name, value) for name, value in super().__repr_args__() if name not in self.secret]


def _plain(secret: Secret) -> str:
    return secret if isinstance(secret, str) else secret.get_secret_value()


def _is_header(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def _printable(text: str) -> str:
    return text if _is_header(text) else text.encode("unicode_escape").decode("ascii")
