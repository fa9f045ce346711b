"""What every policy has that asks a service: how it is declared, and how its answers are used."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from abc import abstractmethod
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, cast
from weakref import WeakKeyDictionary

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_core import to_jsonable_python

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import Event
from stanchion.policies.base import classes_of
from stanchion.policies.deciding import DecidingPolicy
from stanchion.policies.fields import Reader, handed_out, reader
from stanchion.policies.remote.desk import Desk, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from stanchion.decisions import Verdict


_LONGEST = 256


def _duration(value: object, info: ValidationInfo) -> float:
    return seconds(value, field=info.field_name or "duration")


def _life(value: object, info: ValidationInfo) -> float:
    return 0.0 if value in {0, "0"} and value is not False else _duration(value, info)


# Whatever was given, what is kept is float seconds.
Duration = Annotated[timedelta | float | str, BeforeValidator(_duration)]
Life = Annotated[timedelta | float | str, BeforeValidator(_life)]


class RemotePolicy(DecidingPolicy):
    """A policy that asks somebody else: subclasses say how, with `ask`.

    `timeout` is how long an answer may take, within the deadline of the check; without one the
    policy vetoes, or admits with `on_outage="admit"`. After three failures in a row the service
    is left alone for a moment, and asked by one at a time.

    `by` names the event fields that make a question. Events of one type with the same values are
    the same question: it is asked once for all who want to know at the same time, and its answer
    is kept for `cache_admit` or `cache_deny`, of at most `cache_size` questions. Without `by`
    every event is a question of its own.

    With `mode="shadow"` vetoes are reported and not followed. Policies of the same priority that
    stand next to each other are asked at the same time unless one is not `independent`.
    """

    #: Fields whose values are told to nobody.
    secret: ClassVar[frozenset[str]] = frozenset()

    independent: bool = True
    timeout: Duration = 0.5
    by: tuple[str, ...] | str | None = None
    cache_admit: Life = 0.0
    cache_deny: Life = 0.0
    cache_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1024

    _desks: WeakKeyDictionary[asyncio.AbstractEventLoop, Desk] = PrivateAttr(
        default_factory=WeakKeyDictionary[asyncio.AbstractEventLoop, Desk]
    )
    _readers: dict[type[Event], tuple[Reader, ...]] = PrivateAttr(
        default_factory=dict[type[Event], tuple[Reader, ...]]
    )

    @field_validator("by", mode="after")
    @classmethod
    def _tuple(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
        return (value,) if isinstance(value, str) else value

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        super().check()
        if self.by is None and (self.cache_admit or self.cache_deny):
            raise ConfigError.of(
                f"{self.owner}: by", None, "answers are kept by the event fields that it names"
            )
        for event_class in classes_of(self.on):
            self.check_event(event_class)

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that are named.

        Raises:
            ConfigError: one of them is missing.
        """
        self._read(event_class)

    @abstractmethod
    async def ask(self, event: Event) -> Verdict:
        """Ask the service about one event; the caller keeps the time.

        Raises:
            PolicyFailed: it does not answer, or with something that is no answer.
        """

    async def evaluate(self, event: Event) -> Verdict:
        """Say whether the event may proceed; `stanchion.errors.PolicyFailed` where unknown."""
        return await self.evaluate_by(event, math.inf)

    async def evaluate_by(self, event: Event, until: float) -> Verdict:
        """Do the same by the time `until` of the loop, and no later.

        Raises:
            PolicyFailed: the service did not answer in time, or with something that is no answer.
            ConfigError: the event has not the fields that the policy was declared with.
        """
        question = None if self.by is None else self._question(event)
        verdict = await self._desk().answer(question, partial(self.ask, event), until)
        if verdict.event is not None and (self.by is not None or self.independent):
            accepted = "a policy that rewrites events cannot be independent, nor share its answers"
            raise ConfigError.of(f"{self.owner}: independent", self.independent, accepted)
        if verdict.allowed and verdict.policy == self.name and verdict.enforced == self.enforced:
            return verdict
        advice = None if verdict.allowed else verdict.advice or handed_out(self.advice)
        return replace(
            verdict,
            policy=self.name,
            enforced=self.enforced,
            advice=advice,
            event=verdict.event if self.enforced else None,
        )

    def forget(self) -> None:
        """Let go of every answer that was kept."""
        for desk in self._desks.values():
            desk.answers.forget()

    async def close(self) -> None:
        """Let what is being asked on this loop end, and let go of the rest; it can be asked again.

        A bus does so with its policies when it is closed.
        """
        desk = self._desks.pop(asyncio.get_running_loop(), None)
        if desk is not None:
            await desk.close()

    def __copy__(self) -> Self:
        """Get the same declaration with nothing counted, kept or connected."""
        fresh = super().__copy__()
        for name, private in type(self).__private_attributes__.items():
            if (make := cast("Callable[[], object] | None", private.default_factory)) is not None:
                setattr(fresh, name, make())
        return fresh

    def _desk(self) -> Desk:
        loop = asyncio.get_running_loop()
        desk = self._desks.get(loop)
        if desk is None:
            kept = (self.timeout, self.cache_admit, self.cache_deny)
            terms = Terms(*cast("tuple[float, float, float]", kept), self.cache_size)
            desk = self._desks[loop] = Desk(terms, self._counters)
        return desk

    def _read(self, event_class: type[Event]) -> tuple[Reader, ...]:
        readers = self._readers.get(event_class)
        if readers is None:
            paths = cast("tuple[str, ...]", self.by or ())
            readers = tuple(reader(self.owner, "by", path, event_class) for path in paths)
            self._readers[event_class] = readers
        return readers

    def _question(self, event: Event) -> Hashable:
        values = (_hashable(read(event)) for read in self._read(type(event)))
        return (event.event_type, *values)


def _hashable(value: object) -> Hashable:
    """Get what is equal for equal values only: 1, True and "1" are three."""
    if value is None or type(value) is str:
        return _short(value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | int | float | str):
        return (type(value).__name__, _short(value))
    return ("json", _short(json.dumps(to_jsonable_python(value), sort_keys=True)))


def _short(value: Hashable) -> Hashable:
    """Get a digest in place of a long text: it may be remembered for as long as the answer is."""
    if isinstance(value, str) and len(value) > _LONGEST:
        return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return value
