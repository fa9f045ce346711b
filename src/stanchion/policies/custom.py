"""What a policy of somebody's own offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.decisions import Outcome, Verdict
    from stanchion.events import Event, Selector


@runtime_checkable
class Policy(Protocol):
    """What a custom policy offers; the built-in ones are declared instead.

    `on` says which events it is asked about and `priority` when (lower first). An object that
    also has `async settle(event, outcome, costs)` hears how admitted work ended, and is given
    back what it admitted (outcome NEUTRAL, no costs) when a later policy vetoes.
    """

    @property
    def name(self) -> str:
        """The name that verdicts carry; unique on a bus."""
        ...

    @property
    def on(self) -> Selector:
        """The events to be asked about."""
        ...

    @property
    def priority(self) -> int:
        """When to be asked: lower first, 100 unless there is a reason."""
        ...

    async def evaluate(self, event: Event) -> Verdict:
        """Say whether the event may proceed; raising counts as a veto."""
        ...


@runtime_checkable
class Settling(Protocol):
    """A custom policy that wants to hear how what it admitted ended."""

    async def settle(self, event: Event, outcome: Outcome, costs: Mapping[str, int]) -> None:
        """Take note of the outcome of one admitted event."""
        ...
