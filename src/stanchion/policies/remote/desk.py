"""Where the questions of one policy are put to its service: once each, in time, or not at all."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stanchion.errors import ConfigError, PolicyFailed
from stanchion.policies.remote.answers import Answers
from stanchion.policies.remote.gate import ServiceGate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable

    from stanchion.decisions import Verdict
    from stanchion.policies.stats import Counters

# A call that was given less than this share of its timeout says nothing about the service.
_TELLING: Final = 0.1


@dataclass(frozen=True, slots=True)
class Terms:
    """How long an answer may take, and how long it is kept; seconds, 0 for not at all."""

    timeout: float
    cache_admit: float = 0.0
    cache_deny: float = 0.0
    cache_size: int = 1024


class TimedOut(PolicyFailed):
    """There was no answer in time."""


class Refused(PolicyFailed):
    """The service was not even asked, since it has not been answering."""


_KINDS: Final[dict[type[BaseException], tuple[str, ...]]] = {
    TimedOut: ("timed_out",),
    Refused: ("refused",),
}


def _kinds(error: BaseException) -> tuple[str, ...]:
    return _KINDS.get(type(error), ())


class _Flight:
    """A question under way for several; it lasts as long as the most patient may wait."""

    def __init__(self, until: float, latest: float) -> None:
        self.waiting = 0
        self._until = min(until, latest)
        self._latest = latest
        self._limit: asyncio.Timeout | None = None
        self._task: asyncio.Task[Verdict] | None = None

    def start(self, fly: Callable[[], Coroutine[Any, Any, Verdict]]) -> None:
        """Take off."""
        self._task = asyncio.create_task(fly())

    @property
    def task(self) -> asyncio.Task[Verdict]:
        """What everybody aboard waits for."""
        assert self._task is not None
        return self._task

    def limit(self) -> asyncio.Timeout:
        """Get what ends the call."""
        self._limit = asyncio.timeout_at(self._until)
        return self._limit

    def extend(self, until: float) -> None:
        """Let it last as long as one more passenger may wait."""
        if until <= self._until or self._until == self._latest:
            return
        self._until = min(until, self._latest)
        if self._limit is not None and not self._limit.expired() and not self.task.done():
            self._limit.reschedule(self._until)


class Desk:
    """Puts questions to a service, for one event loop.

    A question that somebody else is asking right now is asked once for all, and nobody's giving
    up disturbs the others. What the last questions were answered with is kept as `terms` say.
    """

    def __init__(self, terms: Terms, counters: Counters) -> None:
        self._terms = terms
        self._counters = counters
        self._gate = ServiceGate()
        self._flights: dict[Hashable, _Flight] = {}
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.answers = Answers(
            admit=terms.cache_admit, deny=terms.cache_deny, size=terms.cache_size
        )

    async def answer(
        self, question: Hashable | None, ask: Callable[[], Awaitable[Verdict]], until: float
    ) -> Verdict:
        """Get the answer by the time `until` of the loop; None is a question like no other.

        Raises:
            PolicyFailed: the service did not answer in time, or has not been answering.
        """
        self._under_way += 1
        self._idle.clear()
        try:
            return await self._counters.of(self._answer(question, ask, until), _kinds)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _answer(
        self, question: Hashable | None, ask: Callable[[], Awaitable[Verdict]], until: float
    ) -> Verdict:
        now = asyncio.get_running_loop().time()
        if now >= until:
            raise TimedOut("no time was left to ask")
        if question is None:
            limit = asyncio.timeout_at(min(until, now + self._terms.timeout))
            return await self._call(ask, lambda: limit, now)
        kept = self.answers.get(question)
        if kept is not None:
            self._counters.count("cached")
            return kept
        flight = self._flights.get(question)
        if flight is None:
            flight = self._take_off(question, ask, now, until)
        else:
            self._counters.count("shared")
            flight.extend(until)
        return await self._join(question, flight, until)

    def _take_off(
        self,
        question: Hashable,
        ask: Callable[[], Awaitable[Verdict]],
        now: float,
        until: float,
    ) -> _Flight:
        flight = _Flight(until, now + self._terms.timeout)

        async def fly() -> Verdict:
            try:
                verdict = await self._call(ask, flight.limit, now)
            finally:
                self._land(question, flight)
            self.answers.put(question, verdict)
            return verdict

        flight.start(fly)
        self._flights[question] = flight
        return flight

    def _land(self, question: Hashable, flight: _Flight) -> None:
        if self._flights.get(question) is flight:
            del self._flights[question]

    async def _join(self, question: Hashable, flight: _Flight, until: float) -> Verdict:
        flight.waiting += 1
        # A little later than the flight itself, whose own end says more.
        limit = asyncio.timeout_at(until + 0.001)
        try:
            async with limit:
                return await asyncio.shield(flight.task)
        except TimeoutError:
            if limit.expired():
                raise TimedOut("no answer within the deadline") from None
            raise
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                # Nobody else wants to know; whoever asks next starts anew.
                self._land(question, flight)
                flight.task.cancel()
            raise
        finally:
            flight.waiting -= 1

    async def _call(
        self,
        ask: Callable[[], Awaitable[Verdict]],
        limits: Callable[[], asyncio.Timeout],
        since: float,
    ) -> Verdict:
        try:
            entered = self._gate.enter()
        except PolicyFailed as error:
            raise Refused(str(error), retry_after=error.retry_after) from None
        began = time.monotonic()
        limit = limits()
        try:
            async with limit:
                verdict = await ask()
        except TimeoutError as error:
            if not limit.expired():
                self._gate.failed(type(error).__name__, entered)
                raise
            given = (limit.when() or 0.0) - since
            told = f"no answer within {given:.2g} s"
            if given >= self._terms.timeout * _TELLING:
                self._gate.failed(told, entered)
            else:
                self._gate.abandoned(entered)
            raise TimedOut(told) from None
        except PolicyFailed as error:
            self._gate.failed(str(error), entered, error.retry_after)
            raise
        except (ConfigError, asyncio.CancelledError):
            self._gate.abandoned(entered)
            raise
        except Exception as error:
            self._gate.failed(type(error).__name__, entered)
            raise
        finally:
            self._counters.called(time.monotonic() - began)
        self._gate.succeeded()
        return verdict

    async def close(self) -> None:
        """Wait until nothing is being asked any more, which is not long after the timeout."""
        await self._idle.wait()
