"""What every policy is, and what the built-in ones share: selection, subject, mode, declaration."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Literal,
    NamedTuple,
)

from pydantic import (
    ConfigDict,
    field_validator,
)

from stanchion.decisions import Mode, OnOutage, Outcome, Reason, Signal, Verdict
from stanchion.errors import Vetoed
from stanchion.events import Event, Selector, event_types, matches
from stanchion.policies.cost import Metric
from stanchion.policies.declared import DeclaredPolicy
from stanchion.policies.fields import (
    Data,
    Reader,
    cost_number,
    either,
    given,
    handed_out,
    reader,
    subject_text,
)
from stanchion.store.keys import Keyspace, Kind, subject_of
from stanchion.store.protocol import Operation, OpReply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_MICROS = 1_000_000
_Place = tuple[str, str, str]


class Prefetched(NamedTuple):
    """How much a process takes ahead, and what becomes of it.

    `lapse` is for how many seconds it may be spent, 0 where it lives as long as the window.
    `reserves` says that it is a reservation, which is settled, and `settles` that the real cost of
    what is spent of it may differ.
    """

    units: int
    lapse: float = 0.0
    reserves: bool = False
    settles: bool = False


class Asked(NamedTuple):
    """One policy's operation for one event, and the amounts that its cost was made of."""

    operation: Operation
    subject: str
    amounts: tuple[tuple[str, int, int], ...]


class BuiltInPolicy(DeclaredPolicy):
    """A policy that is declared, and decided by a script in the store.

    `by` names the event fields that make the subject: each combination of values has limits of
    its own, and no fields at all means one shared subject. `mode` shadow reports vetoes without
    enforcing them. `on_outage` is the answer while the store cannot be asked. `on_veto` is what a
    veto advises the orchestrator to do, and `advice` the data that goes with it, such as
    `{"model": "small"}` with fallback. `private` keeps subjects out of Redis: keys carry a digest
    instead.
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

    @field_validator("by", mode="after")
    @classmethod
    def _tuple(cls, value: tuple[str, ...] | str) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else value

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
        for event_class in classes_of(self.on):
            self.check_event(event_class)

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that `by` and `cost` name.

        Raises:
            ConfigError: one of them is missing.
        """
        Binding(self, event_class, Keyspace("default"))

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

    def unasked(self, reason: Reason, *, allowed: bool = False) -> Verdict:
        """Get the answer where the store was not asked."""
        return Verdict(
            self.name,
            allowed=allowed,
            reason=reason,
            enforced=self.mode is Mode.ENFORCE,
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


class Binding:
    """A built-in policy bound to one event class: how to make operations of its events."""

    def __init__(self, policy: BuiltInPolicy, event_class: type[Event], keyspace: Keyspace) -> None:
        self.policy = policy
        self._keyspace = keyspace
        self._kind = policy.kind
        self._specs = {tier: self.declared(policy, tier) for tier in policy.tiers}
        self._tier: Reader | None = None
        if policy.tier_field is not None:
            self._tier = reader(policy.owner, "limit_by", policy.tier_field, event_class)
        self._subject: list[tuple[str, Reader]] = [
            (path, reader(policy.owner, "by", path, event_class)) for path in policy.fields
        ]
        self._metrics: list[tuple[Metric, Reader | None]] = [
            (
                metric,
                None
                if metric.amount is not None
                else reader(policy.owner, "cost", metric.name, event_class),
            )
            for metric in policy.metrics()
        ]
        self._estimated = [metric.name for metric, read in self._metrics if read and metric.weight]
        self._shadow = policy.mode is Mode.SHADOW
        self.advises = policy.advises
        self._event_class = event_class
        self._windows: tuple[int, ...] = ()

    @staticmethod
    def declared(policy: BuiltInPolicy, tier: str = "*") -> str:
        """Get a policy's declaration as the text that the script compares."""
        return json.dumps(policy.declaration(tier), separators=(",", ":"), sort_keys=True)

    @property
    def readers(self) -> Iterator[tuple[str, Reader]]:
        """What of an event the operation depends on, by path."""
        yield from self._subject
        if self._tier is not None:
            yield self.policy.tier_field or "", self._tier
        for metric, read in self._metrics:
            if read is not None:
                yield metric.name, read

    @property
    def guesses(self) -> Iterator[str]:
        """The costs that an event of this class can leave to a default."""
        for name in self._estimated:
            info = self._event_class.model_fields.get(name)
            if info is None or not info.is_required():
                yield name

    def _place(self, event: Event) -> _Place:
        """Get the subject of one event, and its keys."""
        policy = self.policy
        texts = [subject_text(policy.owner, path, read(event)) for path, read in self._subject]
        subject = subject_of(texts, private=policy.private)
        return (subject, *self._keyspace.keys(self._kind, policy.name, subject))

    def tier(self, event: Event) -> str:
        """Get which of the policy's limits applies to an event."""
        if self._tier is None:
            return "*"
        value = subject_text(self.policy.owner, self.policy.tier_field or "", self._tier(event))
        return value if value is not None and value in self._specs else "*"

    @property
    def enforced(self) -> bool:
        """Whether what the policy says is followed."""
        return not self._shadow

    def cap_estimates(
        self, event: Event, caps: dict[str, int], capacity: int | None = None
    ) -> None:
        """Lower `caps` for each cost field that the event leaves to its default.

        A default is a guess, and one above what could ever be admitted would veto every event; so
        all of them together are capped by what the caller's own figures leave of the smallest limit
        that applies. What a caller gave is never capped. `capacity` is the limit where it is not
        the declared one.
        """
        guessed = {name for name in self._estimated if not given(event, name)}
        if not guessed:
            return
        if capacity is None:
            capacity = self.policy.capacity_of(self.tier(event))
        if capacity is None:
            return
        amounts = {metric.name: self._amount(event, metric, read) for metric, read in self._metrics}
        total = sum(metric.weight * amounts[metric.name] for metric, _ in self._metrics)
        guess = sum(m.weight * amounts[m.name] for m, _ in self._metrics if m.name in guessed)
        room = max(0, capacity - (total - guess))
        if guess > room:
            for name in guessed:
                cap = amounts[name] * room // guess
                caps[name] = min(caps.get(name, cap), cap)

    def _amount(self, event: Event, metric: Metric, read: Reader | None) -> int:
        if read is None:
            return metric.amount or 0
        return cost_number(self.policy.owner, metric.name, read(event))

    def ask(
        self,
        event: Event,
        now_us: int,
        caps: Mapping[str, int] | None = None,
        *,
        waits: bool = False,
    ) -> Asked:
        """Get the operation that asks this policy about one event.

        Raises:
            ConfigError: a cost is no whole number, or is negative, or a `by` field holds what
                makes no subject.
        """
        subject, key, aux = self._place(event)
        caps = caps or {}
        if self._shadow:
            # Nobody else's estimate is any the lower for it.
            self.cap_estimates(event, caps := dict(caps))
        amounts: list[tuple[str, int, int]] = []
        total = 0
        for metric, read in self._metrics:
            amount = self._amount(event, metric, read)
            if read is not None and metric.name in caps:
                amount = min(amount, caps[metric.name])
            amounts.append((metric.name, metric.weight, amount))
            total += metric.weight * amount
        cost_number(self.policy.owner, "sum of all metrics", total)
        operation = Operation(
            self._kind.script_name,
            self._specs[self.tier(event)],
            key,
            aux,
            total,
            self._shadow,
            self._calendar(now_us),
            self._keyspace.line(self._kind, self.policy.name, subject) if waits else None,
        )
        return Asked(operation, subject, tuple(amounts))

    def _calendar(self, now_us: int) -> tuple[int, ...]:
        # Windows hold for hours or longer; they are made again once the second one has begun.
        if not self._windows or not self._windows[2] <= now_us < self._windows[3]:
            self._windows = self.policy.windows(now_us)
        return self._windows


def estimates(run: Iterable[Binding], event: Event) -> dict[str, int]:
    """Get what the enforced policies cap an event's cost fields at, where these are left open."""
    caps: dict[str, int] = {}
    for binding in run:
        if binding.enforced:
            binding.cap_estimates(event, caps)
    return caps


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
