"""Signatures in the form of Standard Webhooks: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Final, cast

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PREFIX: Final = "whsec_"
_ACCEPTED: Final = "expected 24 to 64 bytes in base64, with or without whsec_ before them"


class Signer:
    """Signs with every secret that it has, so that a receiver can change from one to the next."""

    def __init__(self, secrets: str | Sequence[str] | None) -> None:
        """Take one secret, several, or none, in which case nothing is signed.

        Raises:
            ConfigError: a secret is malformed, too short or too long; the text does not show it.
        """
        given: object = (secrets,) if isinstance(secrets, str) else secrets or ()
        if not isinstance(given, tuple | list):
            raise ConfigError("secret: expected text, or a list of texts")
        self._keys = tuple(_key(one) for one in cast("Sequence[object]", given))

    def headers(self, message_id: str, at: int, body: bytes) -> dict[str, str]:
        """Get the headers for a body that is sent at `at`, in whole seconds since 1970."""
        named = {"webhook-id": message_id, "webhook-timestamp": str(at)}
        if not self._keys:
            return named
        signed = b"%s.%d.%s" % (message_id.encode(), at, body)
        signatures = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        written = " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures)
        return named | {"webhook-signature": written}


def _key(secret: object) -> bytes:
    if not isinstance(secret, str):
        raise ConfigError(f"secret: {_ACCEPTED}")
    text = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"secret: {_ACCEPTED}") from None
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"secret of {len(key)} bytes: {_ACCEPTED}")
    return key
