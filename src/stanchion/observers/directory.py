"""Which observers there are, and which of them want an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from stanchion.errors import ConfigError
from stanchion.events import Event, Selector, UnknownEvent, check_selector, matches

if TYPE_CHECKING:
    import threading

    from stanchion.observers.lane import Lane

_ROUTES: Final = 1024  # an end to what types that only others know can make us remember


class Directory:
    """Lanes by name, with a table of who wants which type that is filled as types turn up."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._lanes: dict[str, tuple[Lane, Selector]] = {}
        self._routes: dict[type[Event] | str, tuple[Lane, ...]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._lanes

    def all(self) -> dict[str, Lane]:
        """Get the lanes by name, in the order of their registration."""
        with self._lock:
            return {name: lane for name, (lane, _) in self._lanes.items()}

    def add(self, lane: Lane, on: Selector) -> None:
        """Send `lane` what `on` selects."""
        with self._lock:
            self._lanes[lane.name] = lane, on
            self._routes = {}

    def remove(self, name: str) -> Lane:
        """Send the lane of that name nothing more.

        Raises:
            ConfigError: there is none.
        """
        with self._lock:
            if name not in self._lanes:
                raise ConfigError.of("name", name, f"expected one of {sorted(self._lanes)}")
            lane, _ = self._lanes.pop(name)
            self._routes = {}
            return lane

    def lanes_for(self, event: Event) -> tuple[Lane, ...]:
        """Get the lanes that want an event."""
        lanes = self._routes.get(type(event))
        return self._find(event) if lanes is None else lanes

    def _find(self, event: Event) -> tuple[Lane, ...]:
        # Only with an unknown event does the type hang on the event and not on its class.
        key = event.event_type if isinstance(event, UnknownEvent) else type(event)
        with self._lock:
            lanes = self._routes.get(key)
            if lanes is None:
                lanes = tuple(lane for lane, on in self._lanes.values() if matches(on, event))
                if len(self._routes) >= _ROUTES:
                    self._routes = {}
                self._routes[key] = lanes
            return lanes


def selection(on: object) -> Selector:
    """Get what an observer is to be sent: what `on` selects, everything if that is None.

    Raises:
        ConfigError: `on` is no selector.
    """
    if on is None:
        return "*"
    check_selector(on)
    return cast("Selector", on)
