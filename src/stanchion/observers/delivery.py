"""How a sink says which events it could not deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion.errors import StanchionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.events import Event


class Undelivered(StanchionError):
    """Some events of a batch were not taken; those that are not named here were.

    `retry_after` is how many seconds the receiver asked to be left alone. `permanent` says that
    sending them again cannot help: they are too large, or malformed to the receiver.
    """

    def __init__(
        self,
        events: Sequence[Event],
        reason: str,
        *,
        retry_after: float | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(f"{len(events)} events were not delivered: {reason}")
        self.events = tuple(events)
        self.reason = reason
        self.retry_after = retry_after
        self.permanent = permanent
