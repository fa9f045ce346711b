"""Which observers there are, and which of them want an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

from stanchion.errors import ConfigError
from stanchion.events import Event, Selector, UnknownEvent, check_selector, matches

if TYPE_CHECKING:
    import threading

    from stanchion.observers.lane import Lane

_Key = TypeVar("_Key")
# Who wants an event, and for whom it is urgent.
Route = tuple[tuple["Lane", bool], ...]
_ROUTES: Final = 1024  # an end to what types that only others know can make us remember


class Directory:
    """Lanes by name, with a table of who wants which type that is filled as types turn up."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._lanes: dict[str, tuple[Lane, Selector]] = {}
        #: By class, for those events whose type is their class's; read without asking anybody.
        self.routes: dict[type[Event], Route] = {}
        self._unknown: dict[str, Route] = {}
        self._wanted: dict[type[Event], bool] = {}

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
            self._forget()

    def remove(self, name: str) -> Lane:
        """Send the lane of that name nothing more.

        Raises:
            ConfigError: there is none.
        """
        with self._lock:
            if name not in self._lanes:
                raise ConfigError.of("name", name, f"expected one of {sorted(self._lanes)}")
            lane, _ = self._lanes.pop(name)
            self._forget()
            return lane

    def route(self, event: Event) -> Route:
        """Get the lanes that want an event, and for which of them it is urgent."""
        # Only with an unknown event does the type hang on the event and not on its class.
        if isinstance(event, UnknownEvent):
            return self._remembered(self._unknown, event.event_type, event)
        return self._remembered(self.routes, type(event), event)

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody is to be told of events of a class whose type is its own."""
        wanted = self._wanted.get(kind)
        if wanted is None:
            with self._lock:
                wanted = any(matches(on, kind) for _, on in self._lanes.values())
                self._wanted[kind] = wanted
        return wanted

    def _remembered(self, table: dict[_Key, Route], key: _Key, event: Event) -> Route:
        with self._lock:
            route = table.get(key)
            if route is None:
                route = tuple(
                    (lane, lane.is_urgent(event))
                    for lane, on in self._lanes.values()
                    if matches(on, event)
                )
                if len(table) >= _ROUTES:
                    table.clear()
                table[key] = route
            return route

    def _forget(self) -> None:
        # New ones: `notify` may be reading the old ones.
        self.routes, self._unknown, self._wanted = {}, {}, {}


def selection(on: object) -> Selector:
    """Get what an observer is to be sent: what `on` selects, everything if that is None.

    Raises:
        ConfigError: `on` is no selector.
    """
    if on is None:
        return "*"
    check_selector(on)
    return cast("Selector", on)
