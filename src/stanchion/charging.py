"""Asking built-in policies: one call of the store, and what they answer while there is none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from stanchion.decisions import OnOutage, Reason, Signal, Verdict
from stanchion.errors import StoreUnavailable
from stanchion.permit import Hold, Permit, moment
from stanchion.policies.base import luck
from stanchion.policies.binding import estimates
from stanchion.store.protocol import Part, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from stanchion.events import Event
    from stanchion.local import LocalShares
    from stanchion.policies import Binding, BuiltInPolicy, Policy, Question, Run
    from stanchion.policies.binding import Asked
    from stanchion.store.protocol import OpReply, Reply, Store
    from stanchion.waiting import Waiter

    Answered = tuple[Question, Reply]

WINDOW_UNKNOWN = "window_unknown"
_LATE = "no answer in what was left of the deadline"


class Taken(NamedTuple):
    """What a run has admitted and charged."""

    run: Run
    question: Question
    reply: Reply


@dataclass(slots=True)
class Round:
    """What one asking has gathered so far."""

    permit: str
    deadline: float
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    holds: list[Hold] = field(default_factory=list[Hold])
    parts: list[Part] = field(default_factory=list[Part])
    local_parts: list[Part] = field(default_factory=list[Part])
    customs: list[Policy] = field(default_factory=list["Policy"])
    vetoed: bool = False
    signal: Signal = Signal.PROCEED
    now_us: int = 0
    waiter: Waiter | None = None
    rewritten: Event | None = None

    @property
    def decided_at(self) -> datetime | None:
        """When the store decided, by its own clock."""
        return moment(self.now_us) if self.now_us else None

    def add(self, verdict: Verdict, on_veto: Signal) -> None:
        """Take a policy's answer, and what it advises if this is the veto."""
        self.verdicts.append(verdict)
        if verdict.enforced and not verdict.allowed and not self.vetoed:
            self.vetoed, self.signal = True, on_veto


class Charging:
    """Asks runs of built-in policies, and charges them where all admit.

    `failed` is told of every policy that could not be asked, as (policy, event, error).
    """

    def __init__(
        self,
        store: Store,
        local: LocalShares,
        failed: Callable[[str, Event, BaseException], None],
    ) -> None:
        self._store = store
        self._local = local
        self._failed = failed
        self._skew_us = 0

    def question(self, run: Run, event: Event) -> Question:
        """Get what a run asks about an event.

        Raises:
            ConfigError: a cost or a `by` field of the event is not of a kind that can be counted.
        """
        return run.question(event, self._now_us() if run.windowed else 0)

    async def answer(
        self,
        run: Run,
        question: Question,
        permit: str,
        until: float | None = None,
        *,
        last: bool = True,
    ) -> Reply:
        """Get the answer to a question; by the time `until` of the loop, where others came before.

        It is the `last` where nobody is asked after it who might veto.

        Raises:
            StoreUnavailable: there was none in time.
        """
        request = _request(run, question, permit, undoable=not last)
        if until is None:
            return await self._store.admit(request)
        try:
            async with asyncio.timeout_at(until):
                return await self._store.admit(request)
        except TimeoutError as error:
            raise StoreUnavailable(_LATE) from error

    async def ask(
        self,
        run: Run,
        event: Event,
        asked: Round,
        *,
        charge: bool,
        last: bool = True,
        first: Answered | StoreUnavailable | None = None,
    ) -> None:
        """Ask a run as part of a round; `first` is what came of asking it already, if anything.

        It is the `last` where nobody is asked after it who might veto.
        """
        waits = asked.waiter is not None
        caps = estimates(run, event)

        async def _put(now_us: int) -> tuple[Question, Reply]:
            question = run.ask(event, now_us, caps, waits=waits)
            request = _request(run, question, asked.permit, undoable=charge and not last)
            # The store keeps the time of the first; whoever is asked later has what that left.
            try:
                async with asyncio.timeout_at(asked.deadline if asked.verdicts else None):
                    return question, await self._sent(request, asked, charge=charge)
            except TimeoutError as error:
                raise StoreUnavailable(_LATE) from error

        try:
            if isinstance(first, StoreUnavailable):
                raise first
            question, reply = first or await _put(self._now_us())
            if any(answer.reason == WINDOW_UNKNOWN for answer in reply.operations):
                # Nothing was charged: our clock names other windows than the server's does.
                self._skew_us = reply.now_us - time.time_ns() // 1000
                question, reply = await _put(reply.now_us)
            if _lower(caps, run, event, reply):
                # Nothing was charged: a subject's own limit is below what was guessed.
                question, reply = await _put(reply.now_us)
        except StoreUnavailable as error:
            if asked.waiter is not None and run.copies:
                # It may have been admitted, not acknowledged, and given back.
                asked.waiter.spent = True
            await self.do_without(run, event, asked, error, charge=charge)
            return
        asked.now_us = reply.now_us
        _take(run, question.parts, reply, asked, charge=charge)

    async def _sent(self, request: Request, asked: Round, *, charge: bool) -> Reply:
        operations, waiter = request.operations, asked.waiter
        if not charge:
            return await self._store.peek(request)
        if waiter is None:
            return await self._store.admit(request)
        waiter.stand_for(operations)
        reply = await self._store.admit(request._replace(place=waiter.place))
        waiter.ticket = reply.ticket or waiter.ticket
        waiter.heed(operations, reply)
        return reply

    async def do_without(
        self, run: Run, event: Event, asked: Round, error: StoreUnavailable, *, charge: bool
    ) -> None:
        """Answer what each policy declares for an outage; local shares last, and together."""
        alone: list[Binding] = []
        for binding in run:
            policy = binding.policy
            self._failed(policy.name, event, error)
            if policy.on_outage is OnOutage.LOCAL:
                alone.append(binding)
                continue
            asked.add(
                policy.unasked(
                    Reason.STORE_UNAVAILABLE,
                    allowed=policy.on_outage is OnOutage.ADMIT,
                    detail=str(error),
                ),
                policy.advises,
            )
        if not alone or asked.vetoed:
            return
        reason = Reason.LOCAL_SHARE
        try:
            answer = await self._local.ask(
                alone, event, asked.permit, self._now_us(), charge=charge
            )
        except StoreUnavailable:
            # Nor has this process itself got to it by the deadline.
            answer, reason = None, Reason.STORE_UNAVAILABLE
        if answer is not None:
            _take(alone, *answer, asked, charge=charge, local=True)
            return
        for binding in alone:
            policy = binding.policy
            asked.add(policy.unasked(reason), policy.advises)

    def _now_us(self) -> int:
        return time.time_ns() // 1000 + self._skew_us


def told(
    run: Run, question: Question, reply: Reply, permit: str, namespace: str
) -> tuple[tuple[Verdict, ...], datetime, None]:
    """Get what a decision tells of an admission: verdicts, time, and no other event."""
    del question, permit, namespace
    answers = zip(run.bindings, reply.operations, strict=True)
    verdicts = tuple([binding.policy.verdict(answer) for binding, answer in answers])
    return verdicts, moment(reply.now_us), None


def held(run: Run, question: Question, reply: Reply, permit: str, namespace: str) -> Permit:
    """Get the permit of an admission."""
    answered = zip(run.bindings, question.parts, reply.operations, strict=True)
    holds = [
        _hold(binding.policy, part, answer, local=False)
        for binding, part, answer in answered
        if answer.hold
    ]
    return Permit(permit, namespace, tuple(holds), admitted_us=reply.now_us)


def told_of_all(
    taken: Sequence[Taken], permit: str, namespace: str
) -> tuple[tuple[Verdict, ...], datetime, None]:
    """Get what a decision tells of the admissions of several runs."""
    each = [told(*one, permit, namespace) for one in taken]
    verdicts = tuple([verdict for verdicts, _, _ in each for verdict in verdicts])
    return verdicts, each[-1][1], None


def held_of_all(taken: Sequence[Taken], permit: str, namespace: str) -> Permit:
    """Get the permit of the admissions of several runs."""
    holds = [hold for one in taken for hold in held(*one, permit, namespace).holds]
    return Permit(permit, namespace, tuple(holds), admitted_us=taken[-1].reply.now_us)


def take(taken: Taken, asked: Round) -> None:
    """Make what a run has taken a part of a round."""
    run, question, reply = taken
    asked.now_us = reply.now_us
    _take(run, question.parts, reply, asked, charge=True)


def _take(
    run: Iterable[Binding],
    parts: Iterable[Asked],
    reply: Reply,
    asked: Round,
    *,
    charge: bool,
    local: bool = False,
) -> None:
    found = reply.found or (b"",) * len(reply.operations)
    for binding, part, answer, was in zip(run, parts, reply.operations, found, strict=True):
        policy = binding.policy
        verdict = policy.verdict(answer)
        if local and verdict.allowed:
            verdict = replace(verdict, reason=Reason.LOCAL_SHARE)
        asked.add(verdict, policy.advises)
        if not (answer.hold and reply.admitted and charge):
            continue
        asked.holds.append(_hold(policy, part, answer, local=local))
        op = part.operation
        took = Part(op.kind, op.key, op.aux, op.cost, answer.hold, found=was, subjects=op.subjects)
        (asked.local_parts if local else asked.parts).append(took)


def _request(run: Run, question: Question, permit: str, *, undoable: bool) -> Request:
    return Request(
        permit,
        question.operations,
        luck=luck() if run.chancy else 0,
        weight=question.weight,
        copies=run.copies,
        undoable=undoable,
    )


def _lower(caps: dict[str, int], run: Run, event: Event, reply: Reply) -> bool:
    """Lower the caps of estimates to limits that only the store knows; whether any fell."""
    before = dict(caps)
    for binding, answer in zip(run, reply.operations, strict=True):
        if answer.reason == Reason.COST_ABOVE_LIMIT and binding.enforced:
            binding.cap_estimates(event, caps, answer.limit)
    return caps != before


def _hold(policy: BuiltInPolicy, asked: Asked, answer: OpReply, *, local: bool) -> Hold:
    return Hold(
        policy.name,
        asked.operation.kind,
        asked.subject,
        asked.operation.cost,
        asked.amounts,
        answer.hold,
        answer.expires_us,
        local,
        shard=asked.shard,
        bounded=bool(asked.operation.subjects),
    )
