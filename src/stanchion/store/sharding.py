"""How a namespace is spread over hash tags, and so over the nodes of a cluster."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SHARDS = 64
_MOST = 1024
_TEXT = re.compile(r"(\d{1,4}) by (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sharding:
    """The event fields by which a namespace is spread, and over how many shards.

    A policy is spread by the first of `fields` that is among those that it counts `by`; one that
    counts by none of them stays under the namespace's own tag. So everything that is counted for
    one value of a field is in one shard, and decided there in one call.
    """

    fields: tuple[str, ...]
    shards: int = DEFAULT_SHARDS

    @classmethod
    def of(cls, shard_by: str | Sequence[str], shards: int | None) -> Sharding | None:
        """Get what arguments of a bus mean, None for no sharding.

        Raises:
            ConfigError: they cannot work.
        """
        fields = (shard_by,) if isinstance(shard_by, str) else tuple(shard_by)
        for field in fields:
            if not isinstance(field, str) or not field:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError.of("shard_by", field, 'expected event fields, such as "tenant"')
        if len(set(fields)) < len(fields):
            raise ConfigError.of("shard_by", fields, "expected each field once")
        if shards is not None and (type(shards) is not int or not 2 <= shards <= _MOST):
            raise ConfigError.of("shards", shards, f"expected a whole number from 2 to {_MOST}")
        if not fields:
            if shards is not None:
                raise ConfigError.of("shards", shards, "expected shard_by as well")
            return None
        return cls(fields, DEFAULT_SHARDS if shards is None else shards)

    @classmethod
    def parse(cls, text: str) -> Sharding | None:
        """Get the sharding that `str` wrote, None for any other text."""
        found = _TEXT.fullmatch(text)
        return cls(tuple(found[2].split(", ")), int(found[1])) if found else None

    def field_among(self, fields: Sequence[str]) -> str | None:
        """Get the field by which a policy with these `by` fields is spread, None for none."""
        return next((field for field in self.fields if field in fields), None)

    def shard_of(self, text: str) -> int:
        """Get the shard, from 1, of a value of that field as it stands in keys."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % self.shards + 1

    def __str__(self) -> str:
        return f"{self.shards} by {', '.join(self.fields)}"
