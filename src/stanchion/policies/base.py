"""What every policy is, and what the built-in ones share: selection, subject, mode, declaration."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Literal,
    NamedTuple,
)

from pydantic import ConfigDict, Field, StrictInt, field_validator

from stanchion.decisions import ColdStart, Mode, OnOutage, Outcome, Reason, Signal, Verdict
from stanchion.errors import ConfigError, Vetoed
from stanchion.events import Event, Selector, event_types, matches
from stanchion.policies.cost import Metric
from stanchion.policies.declared import DeclaredPolicy
from stanchion.policies.fields import (
    Data,
    Reader,
    either,
    handed_out,
    reader,
)

if TYPE_CHECKING:
    from stanchion.store.keys import Kind
    from stanchion.store.protocol import OpReply

_MICROS = 1_000_000
_MOST_FIELDS = 8


class Prefetched(NamedTuple):
    """How much a process takes ahead, and what becomes of it.

    `lapse` is for how many seconds it may be spent, 0 where it lives as long as the window.
    `reserves` says that it is a reservation, which is settled, and `settles` that the real cost of
    what is spent of it may differ. `copies` is how many replicas must have it before it is spent.
    """

    units: int
    lapse: float = 0.0
    reserves: bool = False
    settles: bool = False
    copies: int = 0


class Readers(NamedTuple):
    """What a policy reads of events of one class: subject, tier, and metrics that are no number."""

    subject: list[tuple[str, Reader]]
    tier: Reader | None
    metrics: list[tuple[Metric, Reader | None]]


class BuiltInPolicy(DeclaredPolicy):
    """A policy that is declared, and decided by a script in the store.

    `by` names the event fields that make the subject: each combination of values has limits of
    its own, and no fields at all means one shared subject. `mode` shadow reports vetoes without
    enforcing them. `on_outage` is the answer while the store cannot be asked. `on_veto` is what a
    veto advises the orchestrator to do, and `advice` the data that goes with it, such as
    `{"model": "small"}` with fallback. `cold_start` is how a subject begins once all state has been
    lost. `private` keeps subjects out of Redis: keys carry a digest
    instead. `max_subjects` is how many subjects may have state at a time, under one hash tag: with
    `shard_by`, in each shard. One that has state is never refused for it; a new one beyond it is,
    as `too_many_subjects`, and nothing is written for it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        # With the first policy of a class, and not with the import.
        defer_build=True,
    )

    vetoed: ClassVar[type[Vetoed]] = Vetoed
    full: ClassVar[Reason] = Reason.LIMIT_REACHED
    #: The rules of `cold_start` that make no sense here, and why.
    cold_refused: ClassVar[Mapping[ColdStart, str]] = {
        ColdStart.PRORATED: "there is no budget of which a part could have been used"
    }

    by: tuple[str, ...] | str = ()
    priority: int = 100
    mode: Annotated[Mode | Literal["enforce", "shadow", "off"], either(Mode)] = Mode.ENFORCE
    on_outage: Annotated[OnOutage | Literal["veto", "admit", "local"], either(OnOutage)] = (
        OnOutage.VETO
    )
    on_veto: Annotated[
        Signal | Literal["proceed", "fail", "skip", "retry", "fallback"], either(Signal)
    ] = Signal.FAIL
    advice: Data | None = None
    private: bool = False
    cold_start: Annotated[ColdStart | Literal["fresh", "spent", "prorated"], either(ColdStart)] = (
        ColdStart.FRESH
    )
    max_subjects: StrictInt | None = Field(default=None, ge=1, le=2**52)

    @field_validator("by", mode="after")
    @classmethod
    def _tuple(cls, value: tuple[str, ...] | str) -> tuple[str, ...]:
        fields = (value,) if isinstance(value, str) else value
        if len(fields) > _MOST_FIELDS:
            accepted = f"expected at most {_MOST_FIELDS} fields: each adds up to 100 to every key"
            raise ConfigError.of(f"{cls.__name__}: by", fields, accepted)
        return fields

    @property
    def advises(self) -> Signal:
        """What a veto of this policy advises to do."""
        return Signal(self.on_veto)

    @property
    def fields(self) -> tuple[str, ...]:
        """The `by` fields, in order."""
        return (self.by,) if isinstance(self.by, str) else self.by

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of limit that the script is to apply."""

    def metrics(self) -> tuple[Metric, ...]:
        """Get what the cost is made of; a number counts under the policy's own name."""
        return (Metric(self.name, 1, 1),)

    @property
    def tier_field(self) -> str | None:
        """The event field that chooses among several limits, None where there is one for all."""
        return None

    @property
    def tiers(self) -> tuple[str, ...]:
        """The values of that field that have a limit of their own, "*" standing for all others."""
        return ("*",)

    @abstractmethod
    def declaration(self, tier: str = "*") -> dict[str, object]:
        """Get the declaration as the script reads it; times in microseconds."""

    def capacity_of(self, tier: str) -> int | None:
        """Get the largest cost that can ever be admitted, None where any can."""
        del tier
        return None

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        super().check()
        self._check_cold_start()
        if self.max_subjects is not None and not self.fields:
            text = "needs by: without it there is one subject"
            raise ConfigError.of(f"{self.owner}: max_subjects", self.max_subjects, text)
        for event_class in classes_of(self.on):
            self.check_event(event_class)

    def _check_cold_start(self) -> None:
        if (why := self.cold_refused.get(ColdStart(self.cold_start))) is not None:
            known = [rule.value for rule in ColdStart if rule not in self.cold_refused]
            text = f"expected one of {known}: {why}"
            raise ConfigError.of(f"{self.owner}: cold_start", str(self.cold_start), text)

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that `by` and `cost` name.

        Raises:
            ConfigError: one of them is missing.
        """
        self.readers(event_class)

    def readers(self, event_class: type[Event]) -> Readers:
        """Get what reads events of this class; raises ConfigError as `check_event` does."""
        tier = self.tier_field
        return Readers(
            [(path, reader(self.owner, "by", path, event_class)) for path in self.fields],
            None if tier is None else reader(self.owner, "limit_by", tier, event_class),
            [
                (
                    metric,
                    None
                    if metric.amount is not None
                    else reader(self.owner, "cost", metric.name, event_class),
                )
                for metric in self.metrics()
            ],
        )

    def share(self, processes: int) -> BuiltInPolicy | None:
        """Get the policy that one of so many processes keeps by itself; None for less than a unit.

        What is not counted in units, such as a circuit, each process keeps whole.
        """
        del processes
        return self

    @property
    def prefetched(self) -> Prefetched | None:
        """What a process takes ahead; None where every decision asks the store."""
        return None

    @property
    def copies(self) -> int:
        """How many replicas must have what it charges before that counts."""
        return 0

    @property
    def indexed(self) -> str:
        """Its name if it has an index of its subjects, else nothing."""
        return "" if self.max_subjects is None else self.name

    def windows(self, now_us: int) -> tuple[int, ...]:
        """Get calendar windows around a moment; none where the script finds them itself."""
        del now_us
        return ()

    def verdict(self, reply: OpReply) -> Verdict:
        """Get the answer in the units of the public API."""
        allowed = reply.reason == Reason.OK
        return Verdict(
            policy=self.name,
            allowed=allowed,
            reason=reply.reason,
            limit=None if reply.limit < 0 else reply.limit,
            remaining=None if reply.remaining < 0 else reply.remaining,
            retry_after=None if reply.wait_us < 0 else reply.wait_us / _MICROS,
            reset_after=None if reply.reset_us < 0 else reply.reset_us / _MICROS,
            enforced=self.mode is Mode.ENFORCE,
            advice=None if allowed else handed_out(self.advice),
        )

    def unasked(
        self, reason: Reason, *, allowed: bool = False, detail: str | None = None
    ) -> Verdict:
        """Get the answer where the store was not asked; `detail` says why, for people."""
        return Verdict(
            self.name,
            allowed=allowed,
            reason=reason,
            enforced=self.mode is Mode.ENFORCE,
            detail=detail,
            advice=None if allowed else handed_out(self.advice),
        )

    def classify(self, error: BaseException | None) -> Outcome:
        """Get what an exception that ended a guarded block means to this policy."""
        if error is None:
            return Outcome.SUCCESS
        return Outcome.FAILURE if isinstance(error, Exception) else Outcome.NEUTRAL

    def judge(self, result: object) -> Outcome:
        """Get what the result of a guarded call means to this policy."""
        del result
        return Outcome.SUCCESS


def luck() -> int:
    """Get chance for a script that needs some, from 0 to 999999: jitter, and ramp-up."""
    return int(random.random() * _MICROS)  # noqa: S311 - it spreads load, and hides nothing


def classes_of(selector: Selector) -> tuple[type[Event], ...]:
    """Get the event classes that a selector names, or matches among those known by now."""
    parts = selector if isinstance(selector, tuple) else (selector,)
    found: dict[type[Event], None] = {}
    for part in parts:
        if isinstance(part, type):
            found[part] = None
        else:
            found |= dict.fromkeys(kind for kind in event_types().values() if matches(part, kind))
    return tuple(found)
