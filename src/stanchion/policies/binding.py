"""Built-in policies bound to a class of events: what they ask about each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from stanchion.decisions import ColdStart, Mode
from stanchion.policies.fields import Reader, cost_number, given, subject_text
from stanchion.store.keys import Keyspace, subject_of
from stanchion.store.protocol import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stanchion.events import Event
    from stanchion.policies.base import BuiltInPolicy
    from stanchion.policies.cost import Metric


class Asked(NamedTuple):
    """One policy's operation for one event, and the amounts that its cost was made of."""

    operation: Operation
    subject: str
    amounts: tuple[tuple[str, int, int], ...]
    shard: int = 0


class Binding:
    """A built-in policy bound to one event class: how to make operations of its events."""

    def __init__(self, policy: BuiltInPolicy, event_class: type[Event], keyspace: Keyspace) -> None:
        self.policy = policy
        self._keyspace = keyspace
        self._kind = policy.kind
        #: The field by which its subjects are spread over shards, None where they are not.
        self.sharded_by = keyspace.sharding and keyspace.sharding.field_among(policy.fields)
        self._specs = {tier: self.declared(policy, tier) for tier in policy.tiers}
        self._subject, self._tier, self._metrics = policy.readers(event_class)
        self._estimated = [metric.name for metric, read in self._metrics if read and metric.weight]
        self._shadow = policy.mode is Mode.SHADOW
        self._cold = policy.cold_start is not ColdStart.FRESH
        self.advises = policy.advises
        self._event_class = event_class
        self._windows: tuple[int, ...] = ()

    @staticmethod
    def declared(policy: BuiltInPolicy, tier: str = "*") -> str:
        """Get a policy's declaration as the text that the script compares."""
        spec = policy.declaration(tier)
        if policy.cold_start is not ColdStart.FRESH:
            spec["cold"] = str(policy.cold_start)
        if policy.max_subjects is not None:
            spec["max_subjects"] = policy.max_subjects
        return json.dumps(spec, separators=(",", ":"), sort_keys=True)

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

    def _place(self, event: Event) -> tuple[str, Keyspace]:
        """Get the subject of one event, and where its keys are."""
        policy = self.policy
        texts = [subject_text(policy.owner, path, read(event)) for path, read in self._subject]
        space = self._keyspace.of(policy.fields, texts)
        return subject_of(texts, private=policy.private), space

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
        policy = self.policy
        subject, space = self._place(event)
        key, aux = space.keys(self._kind, policy.name, subject)
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
            space.line(self._kind, self.policy.name, subject) if waits else None,
            cold=self._cold,
            subjects=space.subjects(policy.name) if policy.indexed else "",
        )
        return Asked(operation, subject, tuple(amounts), space.shard)

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
