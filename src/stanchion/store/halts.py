"""What is halted in a namespace: read, written, and heard of, in one key that a person can read."""

from __future__ import annotations

import itertools
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from stanchion.errors import ConfigError, StoreUnavailable
from stanchion.events import check_selector
from stanchion.store.keys import escape
from stanchion.store.protocol import Channel
from stanchion.store.scripts import ScriptName, Scripts, load_scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Message

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST: Final = 500
_LONGEST_VALUE: Final = 65536
_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Halt:
    """What was stopped: events whose type `on` matches and whose fields are as `by` says.

    `who` and `why` are for people. `at` is when, by the server's clock, `until` when it ends by
    itself, and `ends_in` the same in seconds from when it was read; None where it does not.
    """

    on: str
    who: str
    why: str
    by: Mapping[str, str] = field(default_factory=dict[str, str])
    at: datetime | None = None
    until: datetime | None = None
    ends_in: float | None = None

    @property
    def name(self) -> str:
        """What it is stored under, values as in keys: another halt of the name takes its place."""
        return " ".join(
            [self.on, *(f"{key}={escape(value)}" for key, value in sorted(self.by.items()))]
        )


class Commands(Channel, Protocol):
    """The part of a store that halts need."""

    async def execute(self, *command: str) -> object:
        """Run one command, with a deadline; raises StoreUnavailable past it."""
        ...


@cache
def _scripts() -> Scripts:
    return load_scripts()


class Halts:
    """Reads and writes what is halted in one namespace."""

    def __init__(self, store: Commands, keyspace: Keyspace) -> None:
        self._store = store
        self._key, self._channel = keyspace.halts, keyspace.halting
        self._mark = secrets.token_hex(6)
        self._nonces = itertools.count()

    async def read(self) -> tuple[Halt, ...]:
        """Get what is halted now, the oldest first.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        now_us, rows = await self._call(ScriptName.HALTS)
        pairs = zip(rows[::2], rows[1::2], strict=True)
        found = [_halt(name.decode("utf-8", "replace"), text, now_us) for name, text in pairs]
        live = [halt for halt in found if halt.ends_in is None or halt.ends_in > 0]
        return tuple(sorted(live, key=lambda halt: (halt.at or _EPOCH, halt.name)))

    async def halt(self, halt: Halt, last: float | None) -> bool:
        """Stop what it says, for `last` seconds or until it is let go on; False if it was already.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        document = {"on": halt.on, "who": halt.who, "why": halt.why}
        text = json.dumps(document | ({"by": dict(halt.by)} if halt.by else {}))
        last_us = "0" if last is None else str(round(last * _MICROS))
        _, (before,) = await self._call(ScriptName.HALT, self._channel, halt.name, text, last_us)
        return before == 0

    async def resume(self, name: str = "") -> int:
        """Let go on what was halted under a name, or all of it; get how many there were.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        _, (before,) = await self._call(ScriptName.HALT, self._channel, name, "", "0")
        return cast("int", before)

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Get a message after every change, and after every (re)connection."""
        return self._store.subscribe(self._channel)

    async def _call(self, name: ScriptName, *args: str) -> tuple[int, list[Any]]:
        nonce = f"{self._mark}:{next(self._nonces)}"
        text = _scripts().get(name).text
        raw = await self._store.execute("EVAL", text, "1", self._key, nonce, *args)
        reply = cast("list[Any]", raw)
        if not isinstance(raw, list) or len(reply) != 4 or reply[0] != nonce.encode():
            raise StoreUnavailable("a reply about halts belonged to another call")
        return reply[1], reply[3]


def checked(on: str, who: str, why: str, by: Mapping[str, object]) -> Halt:
    """Get a halt to be written.

    Raises:
        ConfigError: `on` can match no event, a text is empty or too long, or what is for people
            has control characters in it.
    """
    check_selector(on, field="halt: on")
    fields = {f"field {key!r}": key for key in by}
    for name, text in {"on": on, "who": who, "why": why, **fields}.items():
        if not text.strip() or len(text) > _LONGEST or not text.isprintable():
            raise ConfigError.of(
                f"halt: {name}", text, f"expected text of 1 to {_LONGEST} printable characters"
            )
    return Halt(on, who, why, {key: _wanted(key, value) for key, value in by.items()})


def _wanted(key: str, value: object) -> str:
    """Get the value of a field as text; users choose these, so nearly any must be one to halt."""
    try:
        text = str(value)
        if 0 < len(text.encode()) <= _LONGEST_VALUE:
            return text
    except ValueError:
        # A lone surrogate, which Redis's JSON does not read, or a number of thousands of digits.
        pass
    raise ConfigError.of(f"halt: by {key}", value, f"expected text of 1 to {_LONGEST_VALUE} bytes")


def _halt(name: str, text: bytes, now_us: int) -> Halt:
    """Get a halt as it is stored; one that somebody wrote by hand stops what its name says."""
    try:
        document: object = json.loads(text)
    except ValueError:
        document = text.decode("utf-8", "replace")
    if not isinstance(document, dict):
        return Halt(name, "somebody", str(document))
    fields = cast("dict[str, Any]", document)
    by = cast("dict[str, Any]", fields.get("by") if isinstance(fields.get("by"), dict) else {})
    at_us, until_us = _micros(fields.get("at_us")), _micros(fields.get("until_us"))
    return Halt(
        str(fields.get("on") or name),
        str(fields.get("who") or "somebody"),
        str(fields.get("why") or ""),
        {key: str(value) for key, value in by.items()},
        _moment(at_us),
        _moment(until_us),
        None if until_us is None else (until_us - now_us) / _MICROS,
    )


def _micros(value: object) -> int | None:
    """Get a stored time; what cannot be read, and 0, is none, so that a halt stays in force."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if 0 < number < 2**53 else None


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)
