"""What a URL says about TLS, read and tried out before anything connects."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.store.urls import Target

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def client_options(target: Target) -> dict[str, Any]:
    """Get a URL's options as the client takes them, for what its own parser does not read.

    Raises:
        ConfigError: a value is not one that the client can read.
    """
    read: dict[str, Any] = {}
    for name, value in target.options:
        parse = URL_QUERY_ARGUMENT_PARSERS.get(name, str)
        try:
            read[name] = parse(value)
        except (TypeError, ValueError):
            raise ConfigError(f"url: option {name} has a value that is none of its own") from None
    return read


def sentinel_options(target: Target) -> dict[str, Any]:
    """Get how sentinels are connected to, beside where they are.

    They are asked without a login: whoever may talk to the servers need not be known to them.

    Raises:
        ConfigError: as `client_options`.
    """
    if not target.tls_sentinels:
        return {}
    options = client_options(target)
    return {"ssl": True} | {name: options[name] for name in options if name.startswith("ssl_")}


def try_files(target: Target) -> None:
    """See that the certificates and the key that a URL names can be used.

    Otherwise each connection would fail later, with less to say about why.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate or key, or the key is not that
            of the certificate, or is encrypted and `ssl_password` does not open it.
    """
    options = dict(parse_qsl(urlsplit(target.url).query))
    for name in _FILES:
        if name in options:
            _readable(name, options[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if path := options.get("ssl_ca_certs"):
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            text = "expected a file of certificates in PEM"
            raise ConfigError.of("url option ssl_ca_certs", path, text) from None
    _try_own(context, options)


def _readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - it may be no regular file
            pass
    except OSError as error:
        raise ConfigError.of(f"url option {name}", path, str(error.strerror)) from None


def _try_own(context: ssl.SSLContext, options: Mapping[str, str]) -> None:
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if certificate is None:
        if key is not None:
            raise ConfigError.of("url option ssl_keyfile", key, "expected ssl_certfile as well")
        return
    try:
        # Without a password to try, it would be asked for on the terminal.
        context.load_cert_chain(certificate, key, options.get("ssl_password", ""))
    except ssl.SSLError as error:
        raise ConfigError.of(
            "url option ssl_certfile",
            certificate,
            "expected a certificate in PEM, and in ssl_keyfile or with it its key, which "
            f"ssl_password opens if it is encrypted ({error.reason or 'not that'})",
        ) from None
