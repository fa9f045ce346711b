"""To which topic an event goes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from stanchion.errors import ConfigError
from stanchion.events import Event, check_selector, matches

if TYPE_CHECKING:
    from stanchion.events import Selector

Topic = str | Mapping[type[Event] | str, str]

_PLACES: Final = ("type", "namespace")
_STRANGE: Final = re.compile(r"[^A-Za-z0-9._\-]")


@dataclass(frozen=True, slots=True)
class Routes:
    """Which selector leads to which topic, the first that matches first."""

    rules: tuple[tuple[type[Event] | str, str], ...]

    @classmethod
    def of(cls, topic: Topic, legal: re.Pattern[str], accepted: str) -> Routes:
        """Get the routes that a caller declared: one topic, or a mapping of selectors to topics.

        A topic may hold `{type}`, or `{namespace}`, which is the type up to its colon.

        Raises:
            ConfigError: a selector or a topic cannot work; `accepted` says what would.
        """
        given = cast("object", topic)
        rules: Mapping[object, object] = {"*": given}
        if isinstance(given, Mapping) and given:
            rules = cast("Mapping[object, object]", given)
        checked: list[tuple[type[Event] | str, str]] = []
        for selector, name in rules.items():
            check_selector(selector, field="topic")
            if not isinstance(name, str) or not legal.fullmatch(_sample(name)):
                raise ConfigError.of("topic", name, f"expected {accepted}")
            checked.append((cast("type[Event] | str", selector), name))
        return cls(tuple(checked))

    @property
    def selector(self) -> Selector:
        """Every event that has a topic."""
        return tuple(selector for selector, _ in self.rules)

    @property
    def fixed(self) -> tuple[str, ...]:
        """The topics that are the same for every event that they are chosen for."""
        return tuple({name: None for _, name in self.rules if "{" not in name})

    def topic(self, event: Event) -> str | None:
        """Get the topic for an event; None where nothing leads to one.

        What a topic's name cannot hold becomes a dot: `llm:call` is `llm.call`.
        """
        for selector, name in self.rules:
            if matches(selector, event):
                kind = event.event_type
                words = {"type": kind, "namespace": kind.partition(":")[0]}
                return name.format(**{key: _STRANGE.sub(".", words[key]) for key in _PLACES})
        return None


def _sample(template: str) -> str:
    """Get a topic that the template could make; one that is not legal if it cannot make any."""
    try:
        return template.format(type="a.b", namespace="a")
    except (ValueError, LookupError, AttributeError):
        return ""
