"""The policies of a bus in their order, compiled once for each type of event."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion.decisions import Mode, Verdict
from stanchion.errors import ConfigError, PolicyFailed
from stanchion.events import Event, Selector, check_selector, matches
from stanchion.policies import Binding, BuiltInPolicy, Panel, Policy, Run
from stanchion.store.keys import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stanchion.store.keys import Keyspace

_log = logging.getLogger("stanchion.bus")
_FOREIGN = 1024

AnyPolicy = BuiltInPolicy | Policy


@dataclass(frozen=True, slots=True)
class _Unbound:
    """Stands in the chain for a policy that an event's class has not the fields for."""

    name: str
    on: Selector
    priority: int
    text: str

    async def evaluate(self, event: Event) -> Verdict:
        raise PolicyFailed(f"{event.event_type}: {self.text}")


# Built-in policies of one shard that stand next to each other are asked in one call; a custom one
# stands alone, unless it and its neighbours of the same priority are independent.
Segment = Run | Panel


class Chain:
    """Policies ordered by priority, then registration."""

    def __init__(
        self,
        keyspace: Keyspace,
        policies: Iterable[AnyPolicy],
        check: Callable[[AnyPolicy], None],
    ) -> None:
        self._keyspace = keyspace
        self._check = check
        self._policies: dict[str, AnyPolicy] = {}
        self._plans: dict[object, tuple[Segment, ...]] = {}
        for policy in policies:
            self.add(policy)

    @property
    def policies(self) -> tuple[AnyPolicy, ...]:
        """The policies in the order of asking."""
        return tuple(sorted(self._policies.values(), key=lambda policy: policy.priority))

    def get(self, name: str) -> AnyPolicy | None:
        """Get the policy of that name, None where there is none."""
        return self._policies.get(name)

    def add(self, policy: AnyPolicy) -> None:
        """Add a policy.

        Raises:
            ConfigError: it is no policy, or its name is taken.
        """
        if not isinstance(policy, BuiltInPolicy):
            _check_custom(policy)
        if policy.name in self._policies:
            raise ConfigError.of("policy name", policy.name, "another policy has it already")
        self._check(policy)
        self._policies[policy.name] = policy
        self._plans = {}

    def remove(self, name: str) -> AnyPolicy:
        """Remove a policy and get it back.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self._policies:
            raise ConfigError.of("policy name", name, f"expected one of {sorted(self._policies)}")
        self._plans = {}
        return self._policies.pop(name)

    def plan(self, event: Event) -> tuple[Segment, ...]:
        """Get what is to be asked about an event, in order."""
        kind: object = type(event)
        if not type(event).event_type:
            kind = event.event_type
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._compile(event)
            if len(self._plans) >= _FOREIGN:
                self._plans = {}
            self._plans[kind] = plan
        return plan

    def _compile(self, event: Event) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        run: list[Binding] = []
        for policy in self.policies:
            if not matches(policy.on, event):
                continue
            if getattr(policy, "mode", None) == Mode.OFF:
                continue
            asked = self._bind(policy, event) if isinstance(policy, BuiltInPolicy) else policy
            if isinstance(asked, Binding):
                if run and run[-1].sharded_by != asked.sharded_by:
                    segments.append(Run(run))
                    run = []
                run.append(asked)
                continue
            if run:
                segments.append(Run(run))
                run = []
            last = segments[-1] if segments else None
            if isinstance(last, Panel) and _together(last.policies[-1], asked):
                segments[-1] = Panel((*last.policies, asked))
            else:
                segments.append(Panel((asked,)))
        if run:
            segments.append(Run(run))
        return tuple(segments)

    def _bind(self, policy: BuiltInPolicy, event: Event) -> Binding | Policy:
        try:
            return Binding(policy, type(event), self._keyspace)
        except ConfigError as error:
            _log.error("every %s is vetoed: %s", event.event_type, error)
            return _Unbound(policy.name, policy.on, policy.priority, str(error))


def _together(one: Policy, other: Policy) -> bool:
    """Whether neighbours may be asked at the same time."""
    independent = all(getattr(policy, "independent", False) is True for policy in (one, other))
    return independent and one.priority == other.priority


def _check_custom(policy: object) -> None:
    if isinstance(policy, type) or not isinstance(policy, Policy):
        raise ConfigError.of(
            "policy",
            policy,
            "expected a built-in policy, or an object with name, on, priority "
            "and async evaluate(event)",
        )
    check_name("policy name", policy.name)
    check_selector(policy.on)
    if type(policy.priority) is not int:
        raise ConfigError.of(f"priority of {policy.name}", policy.priority, "expected an int")
