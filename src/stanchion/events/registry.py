"""Which class stands for which name: a table that a reload may rewrite and a rival may not."""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def full_name(cls: type) -> str:
    """Get the module and qualified name of a class, which stay the same over a reload."""
    return f"{cls.__module__}.{cls.__qualname__}"


class Registry(Generic[T]):
    """Classes by event type; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes: dict[str, type[T]] = {}

    def add(self, event_type: str, cls: type[T]) -> None:
        """Let `cls` stand for `event_type`; a redefinition of the same class takes its place.

        Raises:
            ConfigError: another class has the type.
        """
        with self._lock:
            known = self._classes.get(event_type)
            if known is not None and full_name(known) != full_name(cls):
                raise ConfigError(
                    f"type={event_type!r} of {full_name(cls)}: taken by {full_name(known)}, "
                    "and each event class needs a type of its own"
                )
            self._classes[event_type] = cls

    def get(self, event_type: str) -> type[T] | None:
        """Get the class that stands for `event_type` now, None where there is none."""
        return self._classes.get(event_type)

    def snapshot(self) -> Mapping[str, type[T]]:
        """Get the whole table as it is now."""
        with self._lock:
            return MappingProxyType(dict(self._classes))
