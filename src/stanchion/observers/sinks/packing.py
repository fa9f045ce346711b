"""Events as JSON, packed into requests that keep within a receiver's limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from stanchion.events import InvalidEvent
from stanchion.observers.sinks.refusal import Failure, Refused, deliver, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from stanchion.events import Event


class Sized(Protocol):
    """Whatever knows how many bytes it takes of a request."""

    @property
    def size(self) -> int:
        """The bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """An event, its CloudEvents document, and the bytes of it that count against a limit."""

    event: Event
    document: dict[str, Any]
    size: int


SizedT = TypeVar("SizedT", bound=Sized)


@dataclass(frozen=True, slots=True)
class Envelopes(Generic[SizedT]):
    """What can be sent of a batch, and what cannot."""

    ready: list[SizedT]
    failures: list[Failure[Event]]


def compact(document: object) -> str:
    """Get JSON without spaces, every character as itself."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def enveloped(
    events: Iterable[Event], make: Callable[[Event], SizedT], *, most_bytes: int
) -> Envelopes[SizedT]:
    """Get the envelopes of those events that have one and whose size is within `most_bytes`.

    `make` raises `InvalidEvent`, or `Refused`, for an event that has none.
    """
    result: Envelopes[SizedT] = Envelopes([], [])
    for event in events:
        try:
            envelope = make(event)
        except InvalidEvent:
            # Without its text, which quotes the event.
            refusal = Refused(f"a {event.event_type} does not fit JSON", permanent=True)
        except Refused as error:
            refusal = error
        else:
            if envelope.size <= most_bytes:
                result.ready.append(envelope)
                continue
            reason = f"a {event.event_type} has {envelope.size} bytes of at most {most_bytes}"
            refusal = Refused(reason, permanent=True)
        result.failures.append(Failure((event,), refusal))
    return result


def chunks(
    items: Sequence[SizedT], *, most_items: int, most_bytes: int
) -> Iterable[Sequence[SizedT]]:
    """Cut a sequence into runs of at most so many items and bytes; one too large stands alone."""
    run: list[SizedT] = []
    size = 0
    for item in items:
        if run and (len(run) == most_items or size + item.size > most_bytes):
            yield run
            run, size = [], 0
        run.append(item)
        size += item.size
    if run:
        yield run


async def deliver_packed(
    events: Sequence[Event],
    make: Callable[[Event], Packed],
    send: Callable[[Sequence[Packed]], Awaitable[None]],
    *,
    most_items: int,
    most_bytes: int,
    deadline: float,
) -> None:
    """Send events in requests of at most so many items and bytes, within `deadline` seconds.

    Raises:
        Undelivered: some were not taken, or are too large.
    """
    envelopes = enveloped(events, make, most_bytes=most_bytes)
    unsent = await deliver(
        chunks(envelopes.ready, most_items=most_items, most_bytes=most_bytes),
        send,
        deadline=deadline,
    )
    report(events, [*envelopes.failures, *(one.of(lambda item: item.event) for one in unsent)])
