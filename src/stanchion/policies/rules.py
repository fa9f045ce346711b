"""`RulePolicy`: conditions over an event's fields, each with a reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from stanchion.decisions import Signal
from stanchion.errors import ConfigError
from stanchion.policies.base import classes_of
from stanchion.policies.conditions import (
    EVENT_TYPE,
    Condition,
    Undecidable,
    Values,
    check_names,
    compiled,
    values_of,
)
from stanchion.policies.deciding import ImmediatePolicy
from stanchion.policies.fields import Data, as_tuple, either
from stanchion.policies.templates import Template

if TYPE_CHECKING:
    from stanchion.decisions import Verdict
    from stanchion.events import Event

UNDECIDABLE: Final = "undecidable"


class Rule(BaseModel):
    """One rule: an event for which `when` is true is vetoed, with `reason`.

    `when` is an expression in CEL over the event's fields and the policy's constants. `reason` may
    have values in it, such as `"{tokens} tokens are above {limit}"`. `signal` and `advice` come
    before the policy's `on_veto` and `advice`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    when: str
    reason: str
    signal: (
        Annotated[Signal | Literal["fail", "skip", "retry", "fallback"], either(Signal)] | None
    ) = None
    advice: Data | None = None


class _Compiled:
    """A rule that is ready to be asked."""

    __slots__ = ("condition", "reason", "rule", "signal")

    def __init__(self, owner: str, rule: Rule) -> None:
        place = f"{owner}: rule {rule.name!r}"
        self.rule = rule
        self.condition: Condition = compiled(f"{place}: when", rule.when)
        self.reason = Template(f"{place}: reason", rule.reason)
        self.signal = None if rule.signal is None else Signal(rule.signal)
        if self.signal is Signal.PROCEED:
            raise ConfigError.of(f"{place}: signal", "proceed", "not what a veto can advise")


class RulePolicy(ImmediatePolicy):
    """Vetoes events for which a rule's condition is true; the first such rule gives the reason.

    `rules` are `Rule`s, or mappings with their fields, in order. `constants` can be used by name in
    conditions and reasons. An event without a field that a condition needs, or with one that cannot
    be compared, is vetoed with the reason "undecidable"; `has(metadata.plan)` asks whether a key is
    there, and `tenant != null` whether a field is set.

    Raises:
        ConfigError: a field that cannot work, a condition that does not compile or names a field
            that an event class does not have (the text points at the column), or the extra
            `rules` is not installed.
    """

    rules: Annotated[Sequence[Rule], AfterValidator(as_tuple)]
    constants: Data = Field(default={})

    _compiled: tuple[_Compiled, ...] = PrivateAttr(default=())
    _needed: frozenset[str] = PrivateAttr(default=frozenset())

    def check(self) -> None:
        """Compile the rules; raises ConfigError."""
        super().check()
        if not self.rules:
            raise ConfigError.of(f"{self.owner}: rules", self.rules, "expected at least one")
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError.of(f"{self.owner}: rules", twice[0], "two rules have this name")
        self._compiled = tuple(_Compiled(self.owner, rule) for rule in self.rules)
        for event_class in classes_of(self.on):
            self._check_class(event_class)
        named = (one.condition.fields | one.reason.fields for one in self._compiled)
        self._needed = frozenset().union(*named) - self.constants.keys()

    def _check_class(self, event_class: type[Event]) -> None:
        known = {*event_class.model_fields, EVENT_TYPE}
        if hides := sorted(known & self.constants.keys()):
            raise ConfigError.of(
                f"{self.owner}: constants", hides[0], f"{event_class.__name__} has such a field"
            )
        known |= self.constants.keys()
        for one in self._compiled:
            place = f"{self.owner}: rule {one.rule.name!r}"
            check_names(f"{place}: when", one.condition, known, event_class.__name__)
            one.reason.check(f"{place}: reason", known, event_class.__name__)

    async def decide(self, event: Event) -> Verdict:
        """Get the verdict of the first rule that is true of an event."""
        given = values_of(event, self._needed) | self.constants
        values = Values(given)
        for one in self._compiled:
            try:
                if not one.condition.holds(values):
                    continue
            except Undecidable as error:
                detail = f"rule {one.rule.name!r}: {error}"
                return self.refuses(UNDECIDABLE, detail=detail)
            return self.refuses(
                one.reason.filled(given),
                detail=f"rule {one.rule.name!r}",
                signal=one.signal,
                advice=one.rule.advice,
            )
        return self.admits()
