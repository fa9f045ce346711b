"""What the scripts publish when shared state changes, read into events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, cast

from stanchion.decisions import CircuitState
from stanchion.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    Event,
    PolicyChanged,
    QuotaThresholdReached,
)
from stanchion.observers.origin import same_id, told_to_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.events import CircuitChanged

_SCHEMA: Final = "1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CIRCUITS: Final[Mapping[CircuitState, type[CircuitChanged]]] = {
    CircuitState.OPEN: CircuitOpened,
    CircuitState.FORCED_OPEN: CircuitOpened,
    CircuitState.HALF_OPEN: CircuitHalfOpened,
    CircuitState.CLOSED: CircuitClosed,
    CircuitState.DISABLED: CircuitClosed,
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of one key's state; `seq` rises with every change of that key."""

    key: str
    seq: int
    kind: str
    state: CircuitState | None
    fields: Mapping[str, str]

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Transition:
        """Get the transition that a payload describes.

        Raises:
            ValueError: it is of another version or kind, or a field is missing or malformed.
        """
        if fields.get("v") != _SCHEMA:
            raise ValueError("not of version 1")
        kind = _text(fields, "type")
        known = kind.startswith("circuit:") or kind in {"quota:threshold", "policy:changed"}
        if not known:
            raise ValueError("of a type that is not known")
        state = CircuitState(fields.get("state", "")) if kind.startswith("circuit:") else None
        return cls(_text(fields, "key"), _whole(fields, "seq"), kind, state, fields)

    @property
    def is_reset(self) -> bool:
        """Whether the key has gone, so that the next `seq` is no successor of this one."""
        return "reset" in {self.fields.get("reason"), self.fields.get("change")}

    def event(self, before: CircuitState | None) -> Event:
        """Get the event, with the same id in every process that learns of this change.

        `before` stands for a previous state that the payload does not name.

        Raises:
            ValueError: a field is missing or malformed.
        """
        return told_to_all(self._circuit(before) if self.state is not None else self._other())

    def _circuit(self, before: CircuitState | None) -> Event:
        state = cast("CircuitState", self.state)
        kind = _CIRCUITS[state]
        previous = self.fields.get("previous")
        until = int(self.fields.get("open_until_us") or 0)
        return kind(
            id=self._id(kind),
            timestamp=_moment(_whole(self.fields, "at_us")),
            policy=_text(self.fields, "policy"),
            subject=_text(self.fields, "subject"),
            previous=CircuitState(previous) if previous else before or state,
            state=state,
            generation=_whole(self.fields, "generation"),
            seq=self.seq,
            open_until=_moment(until) if until else None,
            reason=self.fields.get("reason", ""),
        )

    def _other(self) -> Event:
        at = _moment(_whole(self.fields, "at_us"))
        policy = _text(self.fields, "policy")
        if self.kind == PolicyChanged.event_type:
            change = _text(self.fields, "change")
            return PolicyChanged(
                id=self._id(PolicyChanged), timestamp=at, policy=policy, change=change
            )
        return QuotaThresholdReached(
            id=self._id(QuotaThresholdReached),
            timestamp=at,
            policy=policy,
            subject=_text(self.fields, "subject"),
            threshold=float(_text(self.fields, "threshold")),
            used=_whole(self.fields, "used"),
            limit=_whole(self.fields, "limit"),
            seq=self.seq,
            window_end=_moment(_whole(self.fields, "window_end_us")),
        )

    def _id(self, kind: type[Event]) -> str:
        generation = self.fields.get("generation", "")
        return same_id(self.key, generation, str(self.seq), kind.event_type)


def parse(payload: bytes) -> Transition:
    """Get the transition that a message describes.

    Raises:
        ValueError: not a flat JSON object of strings, or not one that is understood.
        RecursionError: nested too deeply to be read.
    """
    loaded: object = json.loads(payload)
    if not isinstance(loaded, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - what is wrong is the text
    fields = cast("dict[str, object]", loaded)
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("not all values are strings")
    return Transition.of(cast("dict[str, str]", fields))


def _text(fields: Mapping[str, str], name: str) -> str:
    value = fields.get(name)
    if not value:
        raise ValueError(f"{name} is missing")
    return value


def _whole(fields: Mapping[str, str], name: str) -> int:
    return int(_text(fields, name))


def _moment(micros: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        raise ValueError("a moment out of range") from None
