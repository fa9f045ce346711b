"""Key and channel names: readable, on one hash slot a shard, safe with any user's text.

stanchion:{<namespace>}:<family>:<policy>:<subject>        state, a hash
stanchion:{<namespace>}:<family>.<aux>:<policy>:<subject>  leases, holds or a log, a sorted set
stanchion:{<namespace>}:<family>.order:<policy>:<subject>  who waits, by ticket; .alive beside it
stanchion:{<namespace>}:circuits                           circuits that changed within a day
stanchion:{<namespace>}:subjects:<policy>                  who has state, until when
stanchion:{<namespace>}:overrides                          limits set for single subjects
stanchion:{<namespace>}:denied                             of which a process keeps a denial
stanchion:{<namespace>}:epoch                              since when state has not been lost
stanchion:{<namespace>}:halts                              what is halted, until it is let go on
stanchion:{<namespace>}:halting                            channel: that this has changed
stanchion:{<namespace>}:control                            channel: state changes, by the scripts
stanchion:{<namespace>}:wake                               channel: keys to try again for
stanchion:{<namespace>}:events                             channel: events, by observers
stanchion:{<namespace>}:stream                             a Redis Stream of events, by observers
stanchion:{<namespace>}:stream.dead                        those of it that one would not take

Where a namespace is spread over shards, state and the indexes beside it have a tag of their own in
each, {<namespace>/<number>}; channels, halts and streams are the namespace's.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_to_bytes

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.store.sharding import Sharding

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PLAIN = re.compile(r"[A-Za-z0-9._@+=-]{1,100}")
_SAFE = "._@+=-"
_STATE_KEY = re.compile(r"(stanchion:\{[^{}]+\}:)([^:]*):(.*)", re.DOTALL)
_CUT_ESCAPE = re.compile(r"%.?$")
_LONGEST = 100
_LONGEST_REMEMBERED = 256
_SHOWN = 40
NO_SUBJECT = "-"
NO_VALUE = "~"
EMPTY = "%"
_DASH = "%2D"


class Kind(Enum):
    """The kinds of limit that the scripts know; each names its family and what its aux set is."""

    GCRA = ("gcra", "rate", "settled")
    SLIDING_WINDOW = ("sliding_window", "rate", "settled")
    SLIDING_LOG = ("sliding_log", "rate", "log")
    FIXED_WINDOW = ("fixed_window", "rate", "settled")
    QUOTA = ("quota", "quota", "holds")
    ROLLING = ("rolling", "quota", "holds")
    CIRCUIT = ("circuit", "circuit", "calls")
    SLOTS = ("slots", "slots", "leases")

    def __init__(self, script_name: str, family: str, aux: str) -> None:
        self.script_name = script_name
        self.family = family
        self.aux = aux

    @classmethod
    def named(cls, script_name: str) -> Kind:
        """Get the kind that scripts and permits call by this name, or raise ConfigError."""
        for kind in cls:
            if kind.script_name == script_name:
                return kind
        raise ConfigError.of("kind", script_name, f"expected one of {[k.script_name for k in cls]}")


def check_name(field: str, value: str) -> str:
    """Get `value` back if it can be part of a key as it is, or raise ConfigError."""
    if not _NAME.fullmatch(value):
        raise ConfigError.of(field, value, "expected 1 to 64 of letters, digits, '.', '_' and '-'")
    return value


def escape(value: str) -> str:
    """Get one value of a subject as key text: normalised (NFC), escaped, and capped in length.

    A value longer than 100 characters keeps its first ones, and a digest stands for the rest.
    """
    # What is remembered must not grow with what users send.
    return _remembered(value) if len(value) <= _LONGEST_REMEMBERED else _escaped(value)


def _escaped(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if not value:
        return EMPTY
    normal = unicodedata.normalize("NFC", value)
    data = normal[:_LONGEST].encode("utf-8", "surrogatepass")
    escaped = quote(data, safe=_SAFE).replace("~", "%7E")
    if len(normal) <= _LONGEST and len(escaped) <= _LONGEST:
        return escaped
    digest = hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    shown = unquote_to_bytes(_CUT_ESCAPE.sub("", escaped[:_SHOWN])).decode("utf-8", "ignore")
    return f"{quote(shown, safe=_SAFE).replace('~', '%7E')}~{digest}"


_remembered = lru_cache(maxsize=4096)(_escaped)


def part_of(value: str | None) -> str:
    """Get one value of a subject, or its absence, as it stands between the colons."""
    return NO_VALUE if value is None else escape(value)


def subject_of(values: Sequence[str | None], *, private: bool = False) -> str:
    """Get the subject part of a key from the values of a policy's `by` fields, in their order."""
    if not values:
        return NO_SUBJECT
    subject = ":".join(map(part_of, values))
    if private:
        return hashlib.sha256(subject.encode()).hexdigest()[:32]
    # A value may look like the subject of a policy that tells no subjects apart.
    return _DASH if subject == NO_SUBJECT else subject


def values_of(subject: str) -> tuple[str | None, ...]:
    """Get the values that a subject was made of; shortened and private ones stay as they are."""
    if subject == NO_SUBJECT:
        return ()
    return tuple(
        None if part == NO_VALUE else "" if part == EMPTY else _unescaped(part)
        for part in subject.split(":")
    )


def _unescaped(part: str) -> str:
    try:
        return unquote(part, errors="surrogatepass")
    except UnicodeDecodeError:
        # Made by hand, or by somebody else.
        return unquote(part)


def aux_keys(key: str) -> tuple[str, ...]:
    """Get the aux keys that a state key may have beside it; none where it is no state key."""
    found = _STATE_KEY.fullmatch(key)
    if found is None:
        return ()
    prefix, family, tail = found.groups()
    kinds = dict.fromkeys(kind.aux for kind in Kind if kind.family == family)
    return tuple(f"{prefix}{family}.{aux}:{tail}" for aux in kinds)


def tag_of(key: str) -> str:
    """Get the hash tag of a key of ours, without its braces."""
    return key[key.index("{") + 1 : key.index("}")]


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The names that one namespace uses in Redis, under one of its hash tags.

    Without `sharding` there is one tag for all. With it, `shard` is 0 for what is counted for
    nobody in particular, and for all that is the namespace's; the others are from 1.
    """

    namespace: str
    sharding: Sharding | None = None
    shard: int = 0

    def __post_init__(self) -> None:
        check_name("namespace", self.namespace)

    @property
    def tag(self) -> str:
        """The hash tag, without its braces."""
        return f"{self.namespace}/{self.shard}" if self.shard else self.namespace

    @property
    def prefix(self) -> str:
        """What every name starts with; the braces are its hash tag."""
        return f"stanchion:{{{self.tag}}}:"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What names may start with under all tags of the namespace, as globs."""
        return (self.prefix,) if self.sharding is None else self.all_prefixes

    @property
    def all_prefixes(self) -> tuple[str, ...]:
        """What names may start with, however the namespace is spread, as globs."""
        return f"stanchion:{{{self.namespace}}}:", f"stanchion:{{{self.namespace}/*}}:"

    def at(self, shard: int) -> Keyspace:
        """Get the names under another tag of the namespace."""
        return Keyspace(self.namespace, self.sharding, shard)

    def under(self, tag: str) -> Keyspace:
        """Get the names under a hash tag of the namespace."""
        return self.at(int(tag.partition("/")[2] or 0))

    def of(self, fields: Sequence[str], values: Sequence[str | None]) -> Keyspace:
        """Get the names for a subject with these values of a policy's `by` fields."""
        field = None if self.sharding is None else self.sharding.field_among(fields)
        if self.sharding is None or field is None:
            return self
        return self.at(self.sharding.shard_of(part_of(values[fields.index(field)])))

    @property
    def everywhere(self) -> tuple[Keyspace, ...]:
        """The names under each tag of the namespace."""
        count = 0 if self.sharding is None else self.sharding.shards
        return tuple(self.at(shard) for shard in range(count + 1))

    @property
    def overrides(self) -> str:
        """The hash of limits set for single subjects."""
        return f"{self.prefix}overrides"

    @property
    def denied(self) -> str:
        """The sorted set of subjects of which some process keeps a denial, by when it ends."""
        return f"{self.prefix}denied"

    @property
    def epoch(self) -> str:
        """The hash that says since when the state under this tag has not been lost."""
        return f"{self.prefix}epoch"

    @property
    def circuits(self) -> str:
        """The sorted set of circuits that have changed within a day, by time."""
        return f"{self.prefix}circuits"

    @property
    def halts(self) -> str:
        """The hash of what is halted."""
        return f"{self.prefix}halts"

    @property
    def halting(self) -> str:
        """The channel on which it is published that something was halted, or let go on."""
        return f"{self.prefix}halting"

    @property
    def control(self) -> str:
        """The channel on which scripts publish changes of state."""
        return f"{self.prefix}control"

    @property
    def wake(self) -> str:
        """The channel on which scripts wake those who wait."""
        return f"{self.prefix}wake"

    @property
    def events(self) -> str:
        """The channel on which observers publish events."""
        return f"{self.prefix}events"

    @property
    def stream(self) -> str:
        """The Redis Stream to which observers append events."""
        return f"{self.prefix}stream"

    def keys(self, kind: Kind, policy: str, subject: str) -> tuple[str, str]:
        """Get the state key and the aux key of one policy's subject."""
        tail = f"{policy}:{subject}"
        return (
            f"{self.prefix}{kind.family}:{tail}",
            f"{self.prefix}{kind.family}.{kind.aux}:{tail}",
        )

    def line(self, kind: Kind, policy: str, subject: str) -> tuple[str, str]:
        """Get the order key and the alive key of the line for one policy's subject."""
        tail = f"{policy}:{subject}"
        return (
            f"{self.prefix}{kind.family}.order:{tail}",
            f"{self.prefix}{kind.family}.alive:{tail}",
        )

    def subjects(self, policy: str) -> str:
        """Get the sorted set of a policy's subjects that have state here, by when it ends."""
        return f"{self.prefix}subjects:{policy}"

    def patterns(self, family: str, policy: str) -> tuple[str, ...]:
        """Get the globs that match the state keys of one policy."""
        return tuple(f"{prefix}{family}:{policy}:*" for prefix in self.prefixes)
