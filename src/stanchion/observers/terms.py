"""The limits under which an observer is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from stanchion.durations import seconds
from stanchion.errors import ConfigError
from stanchion.events import Selector, check_selector
from stanchion.observers.arguments import choice, count, delay
from stanchion.observers.inbox import Overflow
from stanchion.observers.retry import Patience
from stanchion.observers.target import batch_size

if TYPE_CHECKING:
    from datetime import timedelta

    from stanchion.observers.target import Target

_QUEUE: Final = 1000


@dataclass(frozen=True, slots=True)
class Terms:
    """Checked limits; `timeout`, `batch_delay` and `block_for` are in seconds.

    `batch_size` is None where events are handed over one by one.
    """

    timeout: float
    queue: int
    concurrency: int
    overflow: Overflow
    block_for: float
    batch_size: int | None
    batch_delay: float
    priority: Selector | None
    patience: Patience

    @classmethod
    def of(
        cls,
        target: Target,
        *,
        timeout: timedelta | float | str,
        queue: int | None,
        concurrency: int,
        overflow: Overflow | str,
        block_for: timedelta | float | str,
        batch_size: int | None,
        batch_delay: timedelta | float | str | None,
        priority: Selector | None,
        retry: object,
        quarantine: object,
    ) -> Terms:
        """Get the terms that a caller asked for; what is None is as the observer itself says.

        Raises:
            ConfigError: one of them cannot work; the text names it.
        """
        if priority is not None:
            check_selector(priority, field="priority")
        size, wait = _size(target, batch_size), _delay(target, batch_delay)
        return cls(
            timeout=seconds(timeout, field="timeout"),
            queue=_queue(queue, size, wait),
            concurrency=count("concurrency", concurrency),
            overflow=choice(Overflow, "overflow", overflow),
            block_for=span(block_for, field="block_for"),
            batch_size=size,
            batch_delay=wait,
            priority=priority,
            patience=Patience.of(retry, quarantine, idempotent=target.idempotent),
        )


def span(timeout: timedelta | float | str, *, field: str = "timeout") -> float:
    """Get how long to wait, in seconds; zero, unlike elsewhere, means not at all.

    Raises:
        ConfigError: not a duration, or a negative one.
    """
    return delay(field, timeout)


def _queue(given: object, size: int | None, wait: float) -> int:
    if given is None:
        # While one batch is being sent, the next one fills.
        return max(_QUEUE, 2 * (size or 0))
    queue = count("queue", given)
    if wait and size is not None and queue < size:
        accepted = f"batch_size is {size}: a batch that waits to fill never would"
        raise ConfigError.of("queue", queue, accepted)
    return queue


def _size(target: Target, given: object) -> int | None:
    if not target.batched:
        if given is not None:
            raise ConfigError.of("batch_size", given, f"{target.label} has no `handle_batch`")
        return None
    return batch_size(target.batch_size if given is None else given)


def _delay(target: Target, given: timedelta | float | str | None) -> float:
    if not target.batched:
        if given is not None:
            raise ConfigError.of("batch_delay", given, f"{target.label} has no `handle_batch`")
        return 0.0
    return delay("batch_delay", cast("float", target.batch_delay if given is None else given))
