"""From the fate of each event in a batch to what a sink raises."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stanchion.errors import StanchionError
from stanchion.events import InvalidEvent
from stanchion.observers.delivery import Undelivered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stanchion.events import Event

    Failure = tuple[Event, BaseException]


class Unroutable(StanchionError):
    """No topic, or none that the receiver could have, belongs to the type of an event."""


class Refused(StanchionError):
    """A receiver said no; `answer` is its word for it."""

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


def undelivered(
    failures: Sequence[Failure], is_permanent: Callable[[BaseException], bool]
) -> Undelivered:
    """Get the error for what failed, the reasons counted by kind.

    It is permanent only if every failure is: the others are worth another attempt, and those that
    are left after it will say so.
    """
    kinds = Counter(_kind(error) for _, error in failures)
    reason = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    permanent = all(
        isinstance(error, InvalidEvent | Unroutable) or is_permanent(error) for _, error in failures
    )
    return Undelivered([event for event, _ in failures], reason, permanent=permanent)


def _kind(error: BaseException) -> str:
    """Get the name of what went wrong; not the text, which may quote what was sent."""
    return type(error).__name__ if not isinstance(error, Refused) else error.answer
