"""What a policy of somebody's own offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion.decisions import Outcome, Verdict
    from stanchion.events import Event, Selector
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Store


@runtime_checkable
class Policy(Protocol):
    """What a custom policy offers; the built-in ones are declared instead.

    `on` says which events it is asked about and `priority` when (lower first). An object that
    also has `async settle(event, outcome, costs)` hears how admitted work ended, and is given
    back what it admitted (outcome NEUTRAL, no costs) when a later policy vetoes.

    These are heeded where an object has them: `mode`, a `Mode`; `on_outage`, which says with
    ADMIT that failing to ask admits; `on_veto`, a `Signal`; and `independent`, true where it may
    be asked at the same time as its neighbours of the same priority that are so as well.
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


@runtime_checkable
class Punctual(Protocol):
    """A custom policy that keeps to the deadline by itself, and so knows of it."""

    async def evaluate_by(self, event: Event, until: float) -> Verdict:
        """Say whether the event may proceed, by the time `until` of the loop and no later."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A custom policy that holds connections, tasks or threads."""

    async def close(self) -> None:
        """Let go of them; called when a bus closes or drops it, and it may be asked again."""
        ...


@runtime_checkable
class NeedsStore(Protocol):
    """A custom policy whose state is shared; a bus gives it its store, in `attach`."""

    def attach(self, store: Store, keyspace: Keyspace, notify: Callable[[Event], None]) -> None:
        """Take the store of the bus, which is open when the policy is asked."""
        ...


class Seat(NamedTuple):
    """One policy of a panel, and what else it offers; to find that out takes longer than asking."""

    policy: Policy
    punctual: bool
    settling: bool


class Panel:
    """Custom policies next to each other in the order, which are asked at the same time."""

    __slots__ = ("policies", "seats")

    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self.policies = policies
        self.seats = tuple(
            Seat(one, isinstance(one, Punctual), isinstance(one, Settling)) for one in policies
        )
