"""Asking policies that are no scripts in the store, and taking back what they admitted in vain."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from stanchion.decisions import Mode, OnOutage, Outcome, Reason, Signal, Verdict
from stanchion.errors import ConfigError, PolicyFailed
from stanchion.policies import Closing, Policy, Punctual, Settling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stanchion.events import Event
    from stanchion.policies import Panel
    from stanchion.policies.custom import Seat

_log = logging.getLogger("stanchion.bus")
_REPEAT: Final = 10.0


class _PunctualPolicy(Policy, Punctual, Protocol):
    """A policy that keeps to the deadline by itself."""


class Answer(NamedTuple):
    """A policy's verdict, what its veto advises, and whether it is to hear how this ends."""

    verdict: Verdict
    advice: Signal
    holds: bool

    @property
    def vetoes(self) -> bool:
        """Whether it ends the asking."""
        return self.verdict.enforced and not self.verdict.allowed


class Consulting:
    """Asks custom policies about events.

    `failed` is told of every policy that could not be asked, as (policy, event, error).
    """

    def __init__(
        self, *, deadline: float, failed: Callable[[str, Event, BaseException], None]
    ) -> None:
        self._deadline = deadline
        self._failed = failed
        self._background: set[asyncio.Task[object]] = set()
        self._dismissed: list[object] = []
        self._told: dict[str, tuple[str, float]] = {}

    async def ask(
        self, panel: Panel, event: Event, until: float, held: list[Policy]
    ) -> list[Answer]:
        """Get the answers of a panel up to the first veto, by the time `until` of the loop.

        They are asked at the same time, and answer in their own order. Who is to be told if the
        event comes to nothing joins `held`, also when asking ends with an error. A policy that
        raises, takes longer or answers with something else vetoes, or what its `on_outage` says.
        """
        if len(panel.seats) == 1:
            (seat,) = panel.seats
            answer = await self._one(seat, event, until)
            if answer.holds:
                held.append(seat.policy)
            return [answer]
        asked = deque(
            (seat.policy, asyncio.create_task(self._one(seat, event, until)))
            for seat in panel.seats
        )
        answers: list[Answer] = []
        try:
            while asked and not (answers and answers[-1].vetoes):
                policy, task = asked[0]
                answer = await task
                asked.popleft()
                if answer.holds:
                    held.append(policy)
                if answer.verdict.event is not None:
                    # The others were asked about the event as it was, and may rewrite it as well.
                    error = PolicyFailed("rewrites the event, and so cannot be independent")
                    answer = self._unasked(policy, event, error, str(error))
                answers.append(answer)
        finally:
            for policy, task in asked:
                self._discard(policy, task, event, held)
        return answers

    async def _one(self, seat: Seat, event: Event, until: float) -> Answer:
        policy, limit = seat.policy, asyncio.timeout_at(until)
        try:
            if seat.punctual:
                policy = cast("_PunctualPolicy", policy)
                verdict = _checked(await policy.evaluate_by(event, until), event)
            else:
                async with limit:
                    verdict = _checked(await policy.evaluate(event), event)
            advice = verdict.signal or _advice(policy)
            return Answer(verdict, advice, verdict.allowed and seat.settling)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Nobody cancelled us: the policy itself ended so.
            return self._unasked(policy, event, error, "CancelledError")
        # Whatever a policy of somebody else's raises means that it could not be asked.
        except Exception as error:  # noqa: BLE001
            own = isinstance(error, PolicyFailed | ConfigError)
            told = str(error) if own else type(error).__name__
            text = f"no answer within {self._deadline:g} s" if limit.expired() else told
            return self._unasked(policy, event, error, text)

    def _unasked(self, policy: Policy, event: Event, error: BaseException, detail: str) -> Answer:
        self._log(policy.name, detail)
        self._failed(policy.name, event, error)
        # A mistake is no outage: what asks the wrong thing admits nothing.
        admits = getattr(policy, "on_outage", None) == OnOutage.ADMIT
        allowed = admits and not isinstance(error, ConfigError)
        verdict = Verdict(
            policy.name,
            allowed=allowed,
            reason=Reason.POLICY_FAILED,
            retry_after=error.retry_after if isinstance(error, PolicyFailed) else None,
            enforced=getattr(policy, "mode", None) != Mode.SHADOW,
            detail=detail,
            advice=None if allowed else _data(policy),
        )
        return Answer(verdict, _advice(policy), holds=False)

    def _log(self, name: str, detail: str) -> None:
        """Write down what happens to a policy, but not once for each event of an outage."""
        now = time.monotonic()
        told, since = self._told.get(name, ("", 0.0))
        if told == detail and now - since < _REPEAT:
            return
        self._told[name] = detail, now
        _log.warning("policy %s could not be asked: %s", name, detail)

    def _discard(
        self, policy: Policy, task: asyncio.Task[Answer], event: Event, held: list[Policy]
    ) -> None:
        """See that what a policy has admitted, or yet admits, is given back."""
        if not task.done():
            task.cancel()
            task.add_done_callback(partial(self._too_late, policy, event))
            self._keep(task)
        elif not task.cancelled() and task.exception() is None and task.result().holds:
            held.append(policy)

    def _too_late(self, policy: Policy, event: Event, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled() and task.exception() is None and task.result().holds:
            self.undo([policy], event)

    def undo(self, policies: Iterable[Policy], event: Event) -> list[asyncio.Task[None]]:
        """Begin to tell policies that what they admitted comes to nothing; get what is under way.

        Each has the deadline for it, and `close` waits for those that nobody else waits for.
        """
        pending: list[asyncio.Task[None]] = []
        for policy in policies:
            if isinstance(policy, Settling):
                task = asyncio.create_task(self._undo(policy, policy.name, event))
                self._keep(task)
                pending.append(task)
        return pending

    async def close(self, policies: Iterable[object]) -> None:
        """Wait for what is still being undone, then have policies let go of what they hold.

        Both have the deadline.
        """
        ends = asyncio.get_running_loop().time() + self._deadline
        # What is too late may still have something to undo.
        while self._background and (left := ends - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._background, timeout=left)
        leaving, self._dismissed = [*policies, *self._dismissed], []
        await asyncio.gather(*(self._let_go(policy) for policy in leaving))

    def dismiss(self, policy: object) -> None:
        """Have a policy that is not asked any more let go of what it holds, soon or on closing."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._dismissed.append(policy)
        else:
            self._keep(asyncio.create_task(self._let_go(policy)))

    async def _let_go(self, policy: object) -> None:
        if not isinstance(policy, Closing):
            return
        try:
            async with asyncio.timeout(self._deadline):
                closing: object = policy.close()
                if inspect.isawaitable(closing):
                    await closing
        except Exception as error:  # noqa: BLE001 - somebody else's code; told, never raised
            name = getattr(policy, "name", type(policy).__name__)
            _log.warning("policy %s could not be closed: %s", name, type(error).__name__)

    def _keep(self, task: asyncio.Task[object]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _undo(self, policy: Settling, name: str, event: Event) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await policy.settle(event, Outcome.NEUTRAL, {})
        except Exception as error:  # noqa: BLE001 - somebody else's code; told, never raised
            _log.warning("policy %s could not take back: %s", name, type(error).__name__)
            self._failed(name, event, error)


def _advice(policy: Policy) -> Signal:
    advised: object = getattr(policy, "on_veto", Signal.FAIL)
    return advised if isinstance(advised, Signal) else Signal.FAIL


def _data(policy: Policy) -> dict[str, Any] | None:
    data: object = getattr(policy, "advice", None)
    return deepcopy(cast("dict[str, Any]", data)) if isinstance(data, dict) and data else None


def _checked(verdict: object, event: Event) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise PolicyFailed(f"evaluate returned {type(verdict).__name__}, not a Verdict")
    if verdict.event is not None and type(verdict.event) is not type(event):
        other, kind = type(verdict.event).__name__, type(event).__name__
        raise PolicyFailed(f"evaluate made a {other} of a {kind}")
    return verdict
