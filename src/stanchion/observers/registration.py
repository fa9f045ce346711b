"""An observer together with the terms on which a manager is to serve it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from stanchion.observers.counted import WatchesPolicies
from stanchion.observers.pubsub import NeedsChannel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stanchion.observers.counted import HasPolicies
    from stanchion.observers.manager import ObserverManager
    from stanchion.observers.target import AnyObserver
    from stanchion.store.protocol import Channel


@dataclass(frozen=True, slots=True)
class Registration:
    """An observer and the keyword arguments of `ObserverManager.register` for it.

    A bus takes it wherever it takes an observer:
    `observers=[Registration.of(sink, queue=10_000, on="policy:*")]`.
    """

    observer: AnyObserver
    terms: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, observer: AnyObserver, **terms: Any) -> Self:
        """Get a registration; what `register` does not take shows when it is registered."""
        return cls(observer, MappingProxyType(terms))


def enrol(
    manager: ObserverManager,
    observers: Iterable[AnyObserver | Registration],
    channel: Channel,
    namespace: str,
    policies: HasPolicies,
) -> tuple[str, ...]:
    """Register observers, with the channel and the policies for those that want them.

    Gets their names.

    Raises:
        ConfigError: an observer or its terms cannot work.
    """
    names: list[str] = []
    for given in observers:
        entry = given if isinstance(given, Registration) else Registration.of(given)
        names.append(manager.register(entry.observer, **entry.terms))
        if isinstance(entry.observer, NeedsChannel):
            entry.observer.attach(channel, namespace)
        if isinstance(entry.observer, WatchesPolicies):
            entry.observer.watch_policies(policies)
    return tuple(names)
