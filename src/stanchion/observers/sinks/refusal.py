"""What receivers that are asked one request at a time refuse, and how a batch gets past it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from stanchion.errors import StanchionError
from stanchion.observers.delivery import Undelivered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from stanchion.events import Event

T = TypeVar("T")

# The receiver will not take these bytes, however often they come: malformed, too large, of the
# wrong kind. Other 4xx are about who asks and where, which somebody can put right.
_PERMANENT: Final = frozenset({400, 413, 422})
_LONGEST_WAIT: Final = 86_400.0  # seconds; what asks for more has its clock wrong
_SPLITS: Final = 16  # refused requests in search of the events that are to blame


class Refused(StanchionError):
    """A receiver did not take a request.

    `retry_after` is how many seconds it asked to be left alone; `permanent` says that the same
    request will be refused again.
    """

    def __init__(
        self, reason: str, *, retry_after: float | None = None, permanent: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.permanent = permanent

    @classmethod
    def by_status(cls, receiver: str, status: int, retry_after: str | None = None) -> Refused:
        """Get what an HTTP status other than 2xx says; `retry_after` is the header's value."""
        return cls(
            f"{receiver} answered {status}",
            retry_after=wait_of(retry_after),
            permanent=status in _PERMANENT,
        )


@dataclass(frozen=True, slots=True)
class Failure(Generic[T]):
    """What was not delivered of a batch, and why."""

    items: tuple[T, ...]
    refusal: Refused

    def of(self, event: Callable[[T], Event]) -> Failure[Event]:
        """Get the same failure in terms of events."""
        return Failure(tuple(event(item) for item in self.items), self.refusal)


def wait_of(header: str | None, *, now: datetime | None = None) -> float | None:
    """Get the seconds that a Retry-After header asks for; None where it says nothing usable.

    Its value is a number of seconds or an HTTP date; at most a day is believed.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": the sender does not know its zone, and HTTP has only GMT
        moment = moment.replace(tzinfo=UTC)
    wait = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(math.ceil(wait), 0.0), _LONGEST_WAIT)


async def deliver(
    chunks: Iterable[Sequence[T]],
    send: Callable[[Sequence[T]], Awaitable[None]],
    *,
    deadline: float,
) -> list[Failure[T]]:
    """Send chunks in their order within `deadline` seconds; get what was not delivered.

    A chunk that is refused for good is halved until the items to blame stand alone, so that one of
    them does not take the others with it. After a refusal that may pass, and when the time is up,
    what is left is not tried.
    """
    waiting = deque(tuple(chunk) for chunk in chunks)
    failures: list[Failure[T]] = []
    splits = 0
    try:
        async with asyncio.timeout(deadline):
            while waiting:
                try:
                    await send(waiting[0])
                except Refused as refusal:
                    chunk = waiting.popleft()
                    if not refusal.permanent:
                        failures.append(Failure(chunk, refusal))
                        failures += [Failure(rest, refusal) for rest in waiting]
                        break
                    if len(chunk) == 1:
                        failures.append(Failure(chunk, refusal))
                    elif splits < _SPLITS:
                        splits += 1
                        middle = len(chunk) // 2
                        waiting.extendleft((chunk[middle:], chunk[:middle]))
                    else:
                        # Some of them may be good: they are not given up, only put off.
                        failures.append(Failure(chunk, Refused(refusal.reason)))
                else:
                    waiting.popleft()
    except TimeoutError:
        late = Refused(f"not confirmed within {deadline:g} s")
        failures += [Failure(chunk, late) for chunk in waiting]
    return failures


def report(batch: Sequence[Event], failures: Sequence[Failure[Event]]) -> None:
    """Raise `Undelivered` for what failed, in the order of the batch; nothing if nothing did.

    It is permanent where every failure is. Otherwise all come back once more, and those that are
    refused for good are alone by then.
    """
    if not failures:
        return
    lost = {id(event) for failure in failures for event in failure.items}
    waits = [wait for one in failures if (wait := one.refusal.retry_after) is not None]
    raise Undelivered(
        [event for event in batch if id(event) in lost],
        "; ".join(dict.fromkeys(failure.refusal.reason for failure in failures)),
        retry_after=max(waits, default=None),
        permanent=all(failure.refusal.permanent for failure in failures),
    )
