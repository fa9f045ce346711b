"""What the rules have seen so far, and which alerts follow from the next events."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from stanchion.observers.containment import summary
from stanchion.observers.journal import Journal
from stanchion.observers.sinks.alerting import Alert, AlertAction, AlertRule
from stanchion.observers.sinks.refusal import Failure, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stanchion.events import Event

_GROUPS: Final = 10_000  # those longest unheard of are forgotten
_SEEN: Final = 10_000  # events

_Key: TypeAlias = tuple[str, tuple[str, ...]]
_Open: TypeAlias = "tuple[AlertRule, Event, _Group]"


@dataclass(slots=True)
class _Group:
    times: deque[datetime]  # of as many of the latest events as the threshold asks for
    count: int = 0
    since: datetime | None = None
    told: float | None = None  # when, by the clock; None while there is nothing to resolve


@dataclass(slots=True)
class _Due:
    """What one batch makes due, in order; several alerts of one group become one."""

    alerts: list[Alert] = field(default_factory=list[Alert])
    open: dict[_Key, _Open] = field(default_factory=dict[_Key, "_Open"])


class AlertBook:
    """Counts events by rule and group; each event counts once, however often it is delivered."""

    def __init__(
        self,
        rules: Sequence[AlertRule],
        *,
        resolve_unknown: bool = False,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
    ) -> None:
        """Begin with nothing seen.

        Args:
            rules: what to look for.
            resolve_unknown: also resolve what this process told nobody of, for receivers that
                know better.
            clock: seconds that only go forward; `every` goes by it.
            journal: where to say what was forgotten.
        """
        self._rules = tuple(rules)
        self._resolve_unknown = resolve_unknown
        self._clock = clock
        self._journal = journal or Journal()
        self._groups: OrderedDict[_Key, _Group] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._held: dict[_Key, _Open] = {}

    @property
    def held(self) -> int:
        """How many groups are not told of again yet, though they would be but for `every`."""
        return len(self._held)

    def take(self, events: Iterable[Event]) -> tuple[list[Alert], list[Failure[Event]]]:
        """Get the alerts that follow, and the events that a rule's own function failed on."""
        due = _Due()
        failures: list[Failure[Event]] = []
        for event in events:
            if self._is_new(event):
                failures += self._read(event, due)
        for key in list(due.open):
            self._tell(key, due)
        return due.alerts, failures

    def overdue(self) -> list[Alert]:
        """Get the alerts that were held back, of groups that may be told of again by now."""
        due = _Due()
        due.open = {
            key: held for key, held in self._held.items() if self._may_tell(held[0], held[2])
        }
        for key in list(due.open):
            self._tell(key, due)
        return due.alerts

    def wait(self) -> float | None:
        """Get the seconds until something is overdue; None where nothing is held back."""
        rests = (self._rest(rule, group) for rule, _, group in self._held.values())
        return min(rests, default=None)

    def _is_new(self, event: Event) -> bool:
        key = event.event_type, event.id
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return True

    def _read(self, event: Event, due: _Due) -> Iterable[Failure[Event]]:
        for rule in self._rules:
            if rule.closes(event):
                self._resolve(rule, event, due)
                continue
            try:
                selected = rule.selects(event)
            # Somebody else's code: the event counts as failed, the other rules go on.
            except Exception as error:  # noqa: BLE001
                reason = f"`where` of the rule {rule.name!r}: {summary(error)}"
                self._journal.say(logging.ERROR, "where", rule.name, "%s", reason)
                yield Failure((event,), Refused(reason, permanent=True))
                continue
            if selected:
                self._count(rule, event, due)

    def _count(self, rule: AlertRule, event: Event, due: _Due) -> None:
        key = rule.name, rule.group_of(event)
        group = self._group(key, rule)
        # A sender whose clock is ahead would otherwise make everybody else's events look old.
        at = min(event.timestamp, datetime.now(UTC))
        group.times.append(at)
        group.count += 1
        group.since = group.since or at
        if len(group.times) < rule.threshold:
            return
        spread = (max(group.times) - min(group.times)).total_seconds()
        is_near = spread <= _seconds(rule.within)
        if key in due.open or (is_near and self._may_tell(rule, group)):
            due.open[key] = rule, event, group
        elif is_near:
            self._held[key] = rule, event, group

    def _may_tell(self, rule: AlertRule, group: _Group) -> bool:
        return self._rest(rule, group) <= 0

    def _rest(self, rule: AlertRule, group: _Group) -> float:
        """Get the seconds for which the group is not told of again."""
        return 0.0 if group.told is None else group.told + _seconds(rule.every) - self._clock()

    def _tell(self, key: _Key, due: _Due) -> None:
        rule, event, group = due.open.pop(key)
        self._held.pop(key, None)
        due.alerts.append(self._alert(AlertAction.TRIGGER, rule, key, event, group))
        group.told = self._clock()
        group.count, group.since = 0, None

    def _resolve(self, rule: AlertRule, event: Event, due: _Due) -> None:
        key = rule.name, rule.group_of(event)
        if key in due.open:
            self._tell(key, due)
        self._held.pop(key, None)
        group = self._groups.pop(key, None)
        if self._resolve_unknown or (group is not None and group.told is not None):
            group = group or _Group(deque())
            due.alerts.append(self._alert(AlertAction.RESOLVE, rule, key, event, group))

    @staticmethod
    def _alert(
        action: AlertAction, rule: AlertRule, key: _Key, event: Event, group: _Group
    ) -> Alert:
        return Alert(rule, action, key[1], event, group.count, group.since or event.timestamp)

    def _group(self, key: _Key, rule: AlertRule) -> _Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(deque(maxlen=rule.threshold))
            if len(self._groups) > _GROUPS:
                self._forget()
        self._groups.move_to_end(key)
        return group

    def _forget(self) -> None:
        key, group = self._groups.popitem(last=False)
        self._held.pop(key, None)
        if group.told is not None or group.count:
            text = "more than %d groups of alerts: the oldest, of the rule %r, is forgotten"
            self._journal.say(logging.WARNING, "groups", "alerts", text, _GROUPS, key[0])


def _seconds(value: object) -> float:
    # The rule has brought it to this form.
    assert isinstance(value, float)
    return value
