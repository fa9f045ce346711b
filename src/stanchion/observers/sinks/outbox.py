"""Alerts on their way out: kept until the receiver has taken them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Final

from stanchion.errors import StanchionError
from stanchion.observers.containment import summary
from stanchion.observers.journal import Journal
from stanchion.observers.sinks.refusal import Failure, Refused, deliver, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stanchion.events import Event
    from stanchion.observers.sinks.alertbook import AlertBook
    from stanchion.observers.sinks.alerting import Alert

_MOST: Final = 1000  # alerts that wait; the oldest give way
_PAUSE: Final = 30.0  # seconds after which what was not taken is tried without any new event


class Outbox:
    """Turns events into alerts and sends them, in order and one call at a time.

    An alert that could not be sent is sent with those of the next call, or after a while without
    one; and so is what was held back, as soon as its group may be told of again.
    """

    def __init__(
        self,
        book: AlertBook,
        send: Callable[[Sequence[Alert]], Awaitable[None]],
        *,
        name: str,
        most: int,
        deadline: float,
    ) -> None:
        self._book = book
        self._send_chunk = send
        self._name = name
        self._most = most
        self._deadline = deadline
        self._waiting: deque[Alert] = deque()
        self._not_before = 0.0  # by the loop's clock
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._journal = Journal()

    def start(self) -> None:
        """Begin to send what nobody's call brings; calling it twice is harmless."""
        if self._task is None:
            # In an empty context: this outlives whatever run happens to open the sink.
            self._task = asyncio.get_running_loop().create_task(
                self._follow_up(), name=f"stanchion {self._name}", context=Context()
            )

    async def close(self) -> None:
        """Stop, and say how many alerts were never sent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if unsent := len(self._waiting) + self._book.held:
            text = "%s is closed and %d alerts were not sent"
            self._journal.say(logging.WARNING, "unsent", self._name, text, self._name, unsent)
            self._waiting.clear()

    async def deliver(self, events: Sequence[Event]) -> None:
        """Send what follows from the events, and what was left over.

        Raises:
            Undelivered: the alerts of these events were not taken, or a rule failed on them.
        """
        async with self._lock:
            alerts, failures = self._book.take(events)
            self._put(alerts)
            for failure in await self._flush():
                failures += self._about(failure, events)
            report(events, failures)

    # ------------------------------------------------------------------- without anybody's call

    async def _follow_up(self) -> None:
        while True:
            async with self._lock:
                self._changed.clear()
                wait = self._wait()
                if wait is not None and wait <= 0:
                    self._put(self._book.overdue())
                    for failure in await self._flush():
                        self._about(failure, ())
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _wait(self) -> float | None:
        """Get the seconds until there is something to send; None while there is nothing."""
        held = self._book.wait()
        if not self._waiting and held is None:
            return None
        rest = self._not_before - asyncio.get_running_loop().time()
        return rest if self._waiting else max(rest, held or 0.0)

    # --------------------------------------------------------------------------------- sending

    async def _flush(self) -> list[Failure[Alert]]:
        try:
            unsent = await deliver(self._chunks(), self._send, deadline=self._deadline)
            waits = [one.refusal.retry_after for one in unsent if not one.refusal.permanent]
            pause = max((wait or _PAUSE for wait in waits), default=0.0)
            self._not_before = asyncio.get_running_loop().time() + pause
        finally:
            self._changed.set()
        return unsent

    def _chunks(self) -> list[tuple[Alert, ...]]:
        waiting = tuple(self._waiting)
        return [waiting[at : at + self._most] for at in range(0, len(waiting), self._most)]

    async def _send(self, chunk: Sequence[Alert]) -> None:
        try:
            await self._send_chunk(chunk)
        except StanchionError:
            raise
        # What an alert is made of, and what a client library makes of it, is not ours to foresee:
        # one that cannot be sent shall not stand in the way of the others for ever.
        except Exception as error:
            raise Refused(summary(error), permanent=True) from error
        # No await in between: what was taken is never sent again, even if this call is cancelled.
        self._drop(chunk)

    def _put(self, alerts: Sequence[Alert]) -> None:
        self._waiting.extend(alerts)
        if (over := len(self._waiting) - _MOST) > 0:
            for _ in range(over):
                self._waiting.popleft()
            text = "%s has more than %d alerts to send: the %d oldest are dropped"
            self._journal.say(logging.ERROR, "outbox", self._name, text, self._name, _MOST, over)

    def _drop(self, alerts: Sequence[Alert]) -> None:
        gone = {id(alert) for alert in alerts}
        self._waiting = deque(alert for alert in self._waiting if id(alert) not in gone)

    def _about(self, failure: Failure[Alert], events: Sequence[Event]) -> list[Failure[Event]]:
        """Get a failure to send in terms of the events of this call, if any."""
        about = {alert.event.id for alert in failure.items}
        mine = tuple(event for event in events if event.id in about)
        if failure.refusal.permanent:
            self._drop(failure.items)
            text = "%s gives up %d alerts: %s"
            reason = failure.refusal.reason
            self._journal.say(
                logging.ERROR, "refused", self._name, text, self._name, len(failure.items), reason
            )
            return [Failure(mine, failure.refusal)] if mine else []
        # Where an earlier call's alert is in the way, all of this call come again. They count for
        # nothing then, and what waits is tried with them.
        return [Failure(mine or tuple(events), failure.refusal)]
