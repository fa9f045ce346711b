"""How events get to one observer: a call, what came of it, and the calls that repeat it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from tenacity import AsyncRetrying, retry_if_result, wait_random_exponential

from stanchion.errors import shown
from stanchion.observers.calls import Call, Calls, ended, error_of
from stanchion.observers.containment import summary
from stanchion.observers.delivery import Undelivered

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tenacity import RetryCallState
    from tenacity.wait import wait_base

    from stanchion.events import Event
    from stanchion.observers.gate import Gate
    from stanchion.observers.journal import Journal
    from stanchion.observers.notice import Notice
    from stanchion.observers.parcel import Parcel
    from stanchion.observers.retry import Retry
    from stanchion.observers.stats import Tally
    from stanchion.observers.target import Target
    from stanchion.observers.terms import Terms

_STOP_GRACE: Final = 1.0  # seconds that a cancelled handler has to clean up before it is reported


class Courier:
    """Delivers parcels, counts what becomes of their events, and logs what goes wrong."""

    def __init__(
        self,
        name: str,
        target: Target,
        terms: Terms,
        *,
        calls: Calls,
        gate: Gate,
        tally: Tally,
        lock: threading.RLock,
        journal: Journal,
        redaction: Callable[[Event], Event] | None,
        changed: Callable[[], None],
    ) -> None:
        self._name = name
        self._target = target
        self._terms = terms
        self._calls = calls
        self._gate = gate
        self._tally = tally
        self._lock = lock
        self._journal = journal
        self._redaction = redaction
        self._changed = changed
        self._stuck = 0
        self.repeating = 0
        self.despairs = False

    @property
    def all_hang(self) -> bool:
        """Whether no call can be made because of those that do not return."""
        return self._stuck >= (1 if self._gate.quarantined else self._terms.concurrency)

    async def deliver(self, parcel: Parcel, *, probe: bool) -> None:
        """Call the observer, again where that may help, until nothing is left of the parcel.

        With `probe`, the caller has entered the gate, and leaves it.
        """
        if not await self._attempt(parcel):
            return
        retry = cast("Retry", self._terms.patience.named)
        backoff = wait_random_exponential(
            multiplier=cast("float", retry.first), max=cast("float", retry.longest)
        )
        self.repeating += 1
        try:
            await AsyncRetrying(
                before=partial(self._pause, backoff),
                retry=retry_if_result(bool),
                sleep=asyncio.sleep,
            )(self._again, parcel, probe=probe)
        finally:
            self.repeating -= 1

    def give_up(self, parcel: Parcel) -> None:
        """Count what is left of a parcel as dropped."""
        self._settle(parcel, "dropped", [])

    # --------------------------------------------------------------------------------- one call

    async def _pause(self, backoff: wait_base, state: RetryCallState) -> None:
        if not self._gate.shut:  # or else the gate says how long
            await self._gate.rest(backoff(state))

    async def _again(self, parcel: Parcel, *, probe: bool) -> bool:
        if probe:
            await self._gate.wait()
            return await self._repeat(parcel)
        if not self._gate.shut:
            return await self._repeat(parcel)
        await self._gate.enter()
        try:
            return await self._repeat(parcel)
        finally:
            self._gate.leave()

    async def _repeat(self, parcel: Parcel) -> bool:
        with self._lock:
            self._tally.retried += len(parcel.rest)
        return await self._attempt(parcel)

    async def _attempt(self, parcel: Parcel) -> bool:
        """Make one call; True when what is left of the parcel is to be sent again."""
        events = self._covered(parcel)
        if not events:
            return False
        parcel.calls += 1
        batched = self._target.batched
        context = parcel.context(batched=batched)
        content = tuple(events) if batched else events[0]
        call = self._calls.begin(self._target.handle, context, content)
        # An async function that waits for nothing has ended after one turn, and needs no timer.
        await asyncio.sleep(0)
        if not call.done() and not await ended(call, self._terms.timeout):
            return await self._overdue(parcel, call)
        error = error_of(call)
        if error is not None:
            return self._failed(parcel, events, error)
        self._settle(parcel, "delivered", [])
        self._worked()
        return False

    def _covered(self, parcel: Parcel) -> list[Event]:
        if self._redaction is None:
            return [notice.event for notice in parcel.rest]
        before, kind = len(parcel.rest), parcel.kind
        events, rest, error = parcel.cover(self._redaction)
        if error is not None:
            text = "observer %r is not told of a %s, which cannot be redacted: %s"
            self._say(logging.ERROR, "redaction", text, kind, summary(error))
        if len(rest) < before:
            self._settle(parcel, "failed", rest)
        return events

    def _failed(self, parcel: Parcel, events: list[Event], error: BaseException) -> bool:
        patience, kind = self._terms.patience, parcel.kind
        missed, retry = parcel.split(error, events), patience.named
        if missed is None:
            missed, retry = parcel.rest, patience.retry
        reason = summary(error)
        if isinstance(error, Undelivered):
            reason = f"{reason}: {shown(error.reason)}"
            parcel.asked += self._gate.leave_alone(error.retry_after)
            if error.permanent:
                retry = None
        some = len(missed) < len(parcel.rest)
        self._settle(parcel, "delivered", missed)
        if some:
            self._worked()
        if not missed:
            return False
        kind = parcel.kind
        again = retry is not None and not parcel.exhausted(retry)
        if again:
            text = "observer %r failed on a %s and is called again: %s"
            self._say(logging.WARNING, "retry", text, kind, reason)
        else:
            text = "observer %r failed on a %s: %s"
            self._say(logging.WARNING, "failure", text, kind, reason)
            self._settle(parcel, "failed", [])
        if not some:
            self._failed_to_work()
        return again

    async def _overdue(self, parcel: Parcel, call: Call) -> bool:
        retry, kind = self._terms.patience.retry, parcel.kind
        again = retry is not None and not parcel.exhausted(retry)
        text = "observer %r took longer than %g s over a %s, which is given up"
        if again:
            text = "observer %r took longer than %g s over a %s and is called again"
        else:
            self._settle(parcel, "timed_out", [])
        self._say(logging.WARNING, "timeout", text, self._terms.timeout, kind)
        self._failed_to_work()
        await self.stop(call)
        if again and error_of(call) is None:
            # It did its work in the end, however late.
            self._settle(parcel, "timed_out", [])
            return False
        return again

    async def stop(self, call: Call) -> None:
        """Cancel a call that took too long, and wait until it has really ended.

        A task may ignore its cancellation and a thread cannot be cancelled. To give such an
        observer the next event would pile up what hangs, so it gets none until it returns.
        """
        if isinstance(call, asyncio.Task):
            call.cancel()
        if await ended(call, _STOP_GRACE):
            return
        self._stuck += 1
        self._changed()
        text = "observer %r does not return: %d of its %d places hang"
        self._say(logging.ERROR, "stuck", text, self._stuck, self._terms.concurrency)
        try:
            await ended(call, None)
        finally:
            self._stuck -= 1

    # ------------------------------------------------------------------------------- the account

    def _settle(self, parcel: Parcel, outcome: str, rest: list[Notice]) -> None:
        with self._lock:
            number = len(parcel.rest) - len(rest)
            parcel.rest = rest
            self._tally.in_hand -= number
            setattr(self._tally, outcome, getattr(self._tally, outcome) + number)

    def _worked(self) -> None:
        if self._gate.succeeded():
            self._say(logging.WARNING, "quarantine", "observer %r works again")

    def _failed_to_work(self) -> None:
        if self._gate.failed():
            text = "observer %r fails time and again: it is called only to see whether it works"
            self._say(logging.ERROR, "quarantine", text)
        if self._gate.quarantined and self._gate.hurried:
            self.despairs = True
            self._changed()

    def _say(self, level: int, kind: str, text: str, *values: object) -> None:
        self._journal.say(level, kind, self._name, text, self._name, *values)
