"""Alert rules: which events somebody is told of, how often, grouped by what, and what closes them.

AlertRule(
    "node-failures", on=NodeFailed, threshold=5, within="1m", group_by=("pipeline", "node"),
    every="10m", resolve_on=NodeCompleted, severity="error",
    text="$node of $pipeline fails: $error",
)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from string import Template
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import quote

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import (
    CircuitClosed,
    CircuitOpened,
    Event,
    PolicyFailed,
    QuotaThresholdReached,
    Selector,
    check_selector,
    matches,
)
from stanchion.observers.arguments import choice
from stanchion.observers.sinks import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta

Condition: TypeAlias = Callable[[Event], bool] | Mapping[str, object]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_MOST: Final = 10_000  # events that a rule may wait for: their times are kept
_LONGEST_KEY: Final = 255  # characters, PagerDuty's limit


class Severity(StrEnum):
    """How much an alert matters, in PagerDuty's words."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class AlertAction(StrEnum):
    """Whether an alert says that something began, or that it is over."""

    TRIGGER = "trigger"
    RESOLVE = "resolve"


class _Text(Template):
    idpattern = r"[_a-zA-Z]\w*(?:\.\w+)*"


@dataclass(frozen=True, slots=True)
class AlertRule:
    """When to tell somebody about events, and in which words.

    `on` selects the events, `where` those of them that count: a function of the event, or a
    mapping of fields to the value (or list of values) that they must have. An alert is due when
    `threshold` of them came `within` a time of each other, by the events' own times; those that
    have the same `group_by` fields count together. A group is told of again after `every` at the
    earliest (0: each time), and then with the number of events in between. `resolve_on` selects
    what closes a group, by the same fields; the next alert after that is not held back.

    In `text`, `$name` and `${metadata.name}` stand for fields of the latest event.

    Raises:
        ConfigError: a field cannot work; the text names it.
    """

    name: str
    on: Selector
    where: Condition | None = None
    threshold: int = 1
    within: timedelta | float | str = "1m"
    group_by: tuple[str, ...] = ()
    every: timedelta | float | str = "5m"
    resolve_on: Selector | None = None
    severity: Severity | str = Severity.ERROR
    text: str = ""

    def __post_init__(self) -> None:
        """Check the fields, and bring durations to seconds and lists to tuples."""
        if not isinstance(cast("object", self.name), str) or not _NAME.fullmatch(self.name):
            raise ConfigError.of("name", self.name, "expected 1 to 64 of A-Z a-z 0-9 . _ -")
        if (
            not isinstance(cast("object", self.threshold), int)
            or isinstance(self.threshold, bool)
            or not 1 <= self.threshold <= _MOST
        ):
            raise ConfigError.of("threshold", self.threshold, f"expected from 1 to {_MOST}")
        self._set("on", _selector(self.on, "on"))
        self._set("within", seconds(self.within, field="within"))
        self._set("every", 0.0 if self.every == 0 else seconds(self.every, field="every"))
        self._set("severity", choice(Severity, "severity", self.severity))
        self._set("group_by", _paths(self.group_by))
        _check_condition(self.where)
        _check_text(self.text)
        if self.resolve_on is not None:
            self._set("resolve_on", _selector(self.resolve_on, "resolve_on"))
        for selector in (self.on, self.resolve_on or ()):
            _check_fields(selector, self.group_by)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, value: object) -> AlertRule:
        """Get a rule from one, or from a mapping of its fields as a YAML file has it.

        Raises:
            ConfigError: neither of these, or a field cannot work.
        """
        if isinstance(value, AlertRule):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError.of("rules", value, "expected AlertRule(...), or a mapping")
        fields = {str(name): one for name, one in cast("Mapping[Any, Any]", value).items()}
        known = cls.__dataclass_fields__
        if unknown := fields.keys() - known.keys():
            raise ConfigError.of("rules", min(unknown), f"expected {list(known)}")
        if missing := {"name", "on"} - fields.keys():
            raise ConfigError.of("rules", fields, f"expected {min(missing)!r} in it")
        return cls(**fields)

    def selects(self, event: Event) -> bool:
        """Get whether the event counts; what `where` raises comes through."""
        if not matches(self.on, event):
            return False
        if self.where is None:
            return True
        if callable(self.where):
            return bool(self.where(event))
        return all(
            reading.field(event, path)
            in (wanted if isinstance(wanted, list | tuple) else (wanted,))
            for path, wanted in self.where.items()
        )

    def closes(self, event: Event) -> bool:
        """Get whether the event closes its group."""
        return self.resolve_on is not None and matches(self.resolve_on, event)

    def group_of(self, event: Event) -> tuple[str, ...]:
        """Get the values of the `group_by` fields, as text."""
        return tuple(reading.shown(reading.field(event, path)) for path in self.group_by)


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody is to be told: a rule, a group of it, and the latest event.

    `count` events came since the group was last told of, from `since` on.
    """

    rule: AlertRule
    action: AlertAction
    group: tuple[str, ...]
    event: Event
    count: int
    since: datetime

    @property
    def text(self) -> str:
        """One line for people."""
        if self.action is AlertAction.RESOLVE or not self.rule.text:
            named = zip(self.rule.group_by, self.group, strict=True)
            return " ".join((self.event.event_type, *(f"{name}={value}" for name, value in named)))
        fields = {
            name: reading.shown(reading.field(self.event, name))
            for name in _Text(self.rule.text).get_identifiers()
        }
        return _Text(self.rule.text).substitute(fields)

    @property
    def more(self) -> int:
        """How many events there were besides the one that `text` is about."""
        return max(self.count - 1, 0)

    @property
    def fields(self) -> dict[str, str]:
        """The `group_by` fields by name."""
        return dict(zip(self.rule.group_by, self.group, strict=True))

    def dedup_key(self, source: str) -> str:
        """Get what names the group in every process and at every time, at most 255 characters."""
        parts = (source, self.rule.name, *self.group)
        key = "/".join(quote(part, safe=" @:") for part in parts)
        if len(key) <= _LONGEST_KEY:
            return key
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        return f"{key[: _LONGEST_KEY - len(digest) - 1]}/{digest}"


def checked_rules(rules: Sequence[AlertRule | Mapping[str, Any]]) -> tuple[AlertRule, ...]:
    """Get the rules, whose names differ.

    Raises:
        ConfigError: no rule at all, something else, or a name that comes twice.
    """
    if not isinstance(cast("object", rules), list | tuple) or not rules:
        raise ConfigError.of("rules", rules, "expected a list of at least one rule")
    checked = tuple(AlertRule.of(rule) for rule in rules)
    names = [rule.name for rule in checked]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError.of("rules", name, "two rules have this name")
    return checked


def interests(rules: Iterable[AlertRule]) -> Selector:
    """Get the selector of every event that some rule is about."""
    found: dict[type[Event] | str, None] = {}
    for rule in rules:
        for selector in (rule.on, rule.resolve_on or ()):
            each = selector if isinstance(selector, tuple) else (selector,)
            found.update(dict.fromkeys(each))
    return tuple(found)


def _selector(value: object, name: str) -> Selector:
    selector = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
    check_selector(selector, field=name)
    return cast("Selector", selector)


def _paths(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError.of("group_by", value, "expected a list of fields")
    for path in cast("list[object]", value):
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise ConfigError.of("group_by", path, 'expected a field such as "metadata.region"')
    return tuple(cast("list[str]", value))


def _check_condition(where: object) -> None:
    if where is None or callable(where):
        return
    if not isinstance(where, Mapping):
        raise ConfigError.of("where", where, "expected a function, or fields and their values")
    for path in cast("Mapping[object, object]", where):
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise ConfigError.of("where", path, 'expected a field such as "metadata.region"')


def _check_text(text: object) -> None:
    if not isinstance(text, str) or not _Text(text).is_valid():
        raise ConfigError.of("text", text, "expected text with $name or ${metadata.name} in it")


def _check_fields(selector: Selector, group_by: tuple[str, ...]) -> None:
    for kind in selector if isinstance(selector, tuple) else (selector,):
        if isinstance(kind, str):
            continue
        for path in group_by:
            if path.partition(".")[0] not in kind.model_fields | {"event_type": None}:
                accepted = f"{kind.__name__} has {', '.join(sorted(kind.model_fields))}"
                raise ConfigError.of("group_by", path, accepted)


#: What somebody wants to know who has said nothing: open circuits, quotas near their end, and
#: policies that could not be asked.
DEFAULT_RULES: Final = (
    AlertRule(
        "circuit-open",
        on=CircuitOpened,
        group_by=("policy", "subject"),
        resolve_on=CircuitClosed,
        severity=Severity.CRITICAL,
        text="Circuit $policy is open for $subject: $reason",
    ),
    AlertRule(
        "quota-low",
        on=QuotaThresholdReached,
        where=lambda event: cast("float", reading.field(event, "threshold")) < 1,
        group_by=("policy", "subject", "threshold"),
        severity=Severity.WARNING,
        text="Quota $policy of $subject: $used of $limit used, until $window_end",
    ),
    AlertRule(
        "quota-used-up",
        on=QuotaThresholdReached,
        where=lambda event: cast("float", reading.field(event, "threshold")) >= 1,
        group_by=("policy", "subject", "threshold"),
        severity=Severity.ERROR,
        text="Quota $policy of $subject is used up ($used of $limit) until $window_end",
    ),
    AlertRule(
        "policy-failed",
        on=PolicyFailed,
        group_by=("policy",),
        severity=Severity.ERROR,
        text="Policy $policy could not be asked about $asked_type: $error",
    ),
)
