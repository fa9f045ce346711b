"""Asking a chain of policies about one event, and giving back what a later veto makes void."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stanchion.decisions import Decision, Mode, OnOutage, Outcome, Reason, Signal, Verdict
from stanchion.errors import PolicyFailed, StoreUnavailable, Vetoed
from stanchion.permit import Hold, Permit, moment
from stanchion.policies import Binding, BuiltInPolicy, Policy, Settling
from stanchion.policies.base import estimates
from stanchion.store.protocol import Part, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from stanchion.chain import Chain, Segment
    from stanchion.events import Event
    from stanchion.local import LocalShares
    from stanchion.policies.base import Asked
    from stanchion.store.protocol import OpReply, Reply, Store
    from stanchion.waiting import Waiter

_log = logging.getLogger("stanchion.bus")
WINDOW_UNKNOWN = "window_unknown"


@dataclass(slots=True)
class _Round:
    """What one asking has gathered so far."""

    permit: str
    deadline: float
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    holds: list[Hold] = field(default_factory=list[Hold])
    parts: list[Part] = field(default_factory=list[Part])
    local_parts: list[Part] = field(default_factory=list[Part])
    customs: list[Policy] = field(default_factory=list[Policy])
    vetoed: bool = False
    signal: Signal = Signal.PROCEED
    now_us: int = 0
    waiter: Waiter | None = None

    @property
    def decided_at(self) -> datetime | None:
        return moment(self.now_us) if self.now_us else None

    def add(self, verdict: Verdict, on_veto: Signal) -> None:
        self.verdicts.append(verdict)
        if verdict.enforced and not verdict.allowed and not self.vetoed:
            self.vetoed, self.signal = True, on_veto


class Asking:
    """Decides events against a chain and a store.

    `failed` is told of every policy that could not be asked, as (policy, event, error).
    """

    def __init__(
        self,
        chain: Chain,
        store: Store,
        local: LocalShares,
        *,
        namespace: str,
        deadline: float,
        failed: Callable[[str, Event, BaseException], None],
    ) -> None:
        self._chain = chain
        self._store = store
        self._local = local
        self._namespace = namespace
        self._deadline = deadline
        self._failed = failed
        self._skew_us = 0
        self._background: set[asyncio.Task[None]] = set()

    async def decide(self, event: Event, permit: str, waiter: Waiter | None = None) -> Decision:
        """Ask in order until the first veto; charge if there is none.

        A `waiter` takes or keeps its place in the line of every subject that refused it.
        """
        plan = self._chain.plan(event)
        if not plan:
            return Decision(allowed=True, permit=Permit(permit, self._namespace))
        asked = _Round(permit, asyncio.get_running_loop().time() + self._deadline, waiter=waiter)
        try:
            for segment in plan:
                await self._ask(segment, event, asked)
                if asked.vetoed:
                    break
        except BaseException:
            self._give_back(event, asked)
            raise
        verdicts = tuple(asked.verdicts)
        if asked.vetoed:
            if waiter is not None:
                waiter.spent |= bool(asked.parts)
            await self._given_back(event, asked)
            return Decision(
                allowed=False,
                signal=asked.signal,
                verdicts=verdicts,
                decided_at=asked.decided_at,
            )
        names = tuple(policy.name for policy in asked.customs)
        return Decision(
            allowed=True,
            verdicts=verdicts,
            permit=Permit(
                permit,
                self._namespace,
                tuple(asked.holds),
                policies=names,
                event=event.to_cloudevent() if names else None,
                admitted_us=asked.now_us,
            ),
            decided_at=asked.decided_at,
        )

    async def foresee(self, event: Event, permit: str) -> Decision:
        """Ask what `decide` would answer now, and keep nothing."""
        asked = _Round(permit, asyncio.get_running_loop().time() + self._deadline)
        for segment in self._chain.plan(event):
            if isinstance(segment, tuple):
                await self._ask_built_in(segment, event, asked, charge=False)
            else:
                await self._ask_custom(segment, event, asked)
            if asked.vetoed:
                break
        await self._given_back(event, asked)
        return Decision(
            allowed=not asked.vetoed,
            signal=asked.signal,
            verdicts=tuple(asked.verdicts),
            decided_at=asked.decided_at,
        )

    async def close(self) -> None:
        """Wait, within the deadline, for what is still being given back."""
        if self._background:
            await asyncio.wait(self._background, timeout=self._deadline)

    async def _ask(self, segment: Segment, event: Event, asked: _Round) -> None:
        if isinstance(segment, tuple):
            await self._ask_built_in(segment, event, asked, charge=True)
        else:
            await self._ask_custom(segment, event, asked)

    async def _ask_built_in(
        self, run: Sequence[Binding], event: Event, asked: _Round, *, charge: bool
    ) -> None:
        waits = asked.waiter is not None
        caps = estimates(run, event)

        async def ask(now_us: int) -> tuple[Sequence[Asked], Reply]:
            parts = [binding.ask(event, now_us, caps, waits=waits) for binding in run]
            return parts, await self._request(parts, asked, charge=charge)

        try:
            operations, reply = await ask(self._now_us())
            if any(answer.reason == WINDOW_UNKNOWN for answer in reply.operations):
                # Nothing was charged: our clock names other windows than the server's does.
                self._skew_us = reply.now_us - time.time_ns() // 1000
                operations, reply = await ask(reply.now_us)
            if _lower(caps, run, event, reply):
                # Nothing was charged: a subject's own limit is below what was guessed.
                operations, reply = await ask(reply.now_us)
        except StoreUnavailable as error:
            await self._without_store(run, event, asked, error, charge=charge)
            return
        asked.now_us = reply.now_us
        self._take(run, operations, reply, asked, charge=charge)

    def _take(
        self,
        run: Sequence[Binding],
        parts: Sequence[Asked],
        reply: Reply,
        asked: _Round,
        *,
        charge: bool,
        local: bool = False,
    ) -> None:
        for binding, part, answer in zip(run, parts, reply.operations, strict=True):
            policy = binding.policy
            verdict = policy.verdict(answer)
            if local and verdict.allowed:
                verdict = replace(verdict, reason=Reason.LOCAL_SHARE)
            asked.add(verdict, policy.advice)
            if not (answer.hold and reply.admitted and charge):
                continue
            asked.holds.append(_hold(policy, part, answer, local=local))
            held = part.operation
            took = Part(held.kind, held.key, held.aux, held.cost, answer.hold)
            (asked.local_parts if local else asked.parts).append(took)

    async def _request(self, parts: Sequence[Asked], asked: _Round, *, charge: bool) -> Reply:
        operations = tuple(part.operation for part in parts)
        if not charge:
            return await self._store.peek(Request(asked.permit, operations))
        waiter = asked.waiter
        if waiter is None:
            return await self._store.admit(Request(asked.permit, operations))
        waiter.stand_for(operations)
        reply = await self._store.admit(Request(asked.permit, operations, waiter.place))
        waiter.ticket = reply.ticket or waiter.ticket
        waiter.heed(operations, reply)
        return reply

    async def _without_store(
        self,
        run: Sequence[Binding],
        event: Event,
        asked: _Round,
        error: StoreUnavailable,
        *,
        charge: bool,
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
                Verdict(
                    policy.name,
                    allowed=policy.on_outage is OnOutage.ADMIT,
                    reason=Reason.STORE_UNAVAILABLE,
                    enforced=policy.mode is Mode.ENFORCE,
                ),
                policy.advice,
            )
        if not alone or asked.vetoed:
            return
        answer = await self._local.ask(alone, event, asked.permit, self._now_us(), charge=charge)
        if answer is not None:
            self._take(alone, *answer, asked, charge=charge, local=True)
            return
        for binding in alone:
            name, enforced = binding.policy.name, binding.policy.mode is Mode.ENFORCE
            none = Verdict(name, allowed=False, reason=Reason.LOCAL_SHARE, enforced=enforced)
            asked.add(none, binding.policy.advice)

    async def _ask_custom(self, policy: Policy, event: Event, asked: _Round) -> None:
        try:
            async with asyncio.timeout_at(asked.deadline):
                verdict = _checked(await policy.evaluate(event))
        # Whatever a policy of somebody else's raises means that it could not be asked.
        except Exception as error:  # noqa: BLE001
            _log.warning("policy %s could not be asked: %s", policy.name, type(error).__name__)
            self._failed(policy.name, event, error)
            verdict = Verdict(policy.name, allowed=False, reason=Reason.POLICY_FAILED)
        asked.add(verdict, _signal(policy))
        if verdict.allowed and isinstance(policy, Settling):
            asked.customs.append(policy)

    async def _given_back(self, event: Event, asked: _Round) -> None:
        """Give back and see it done, as far as the deadline allows: a veto has cost nothing."""
        if pending := self._give_back(event, asked):
            left = asked.deadline - asyncio.get_running_loop().time()
            await asyncio.wait(pending, timeout=max(0.0, left))

    def _give_back(self, event: Event, asked: _Round) -> list[asyncio.Future[Any]]:
        pending: list[asyncio.Future[Any]] = []
        if asked.parts:
            pending.append(self._store.give_back(asked.permit, tuple(asked.parts)))
        if asked.local_parts:
            pending.append(self._local.store.give_back(asked.permit, tuple(asked.local_parts)))
        for policy in asked.customs:
            if isinstance(policy, Settling):
                task = asyncio.create_task(self._undo(policy, policy.name, event))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
                pending.append(task)
        asked.parts, asked.local_parts, asked.customs, asked.holds = [], [], [], []
        return pending

    async def _undo(self, policy: Settling, name: str, event: Event) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await policy.settle(event, Outcome.NEUTRAL, {})
        except Exception as error:  # noqa: BLE001 - somebody else's code; told, never raised
            _log.warning("policy %s could not take back: %s", name, type(error).__name__)
            self._failed(name, event, error)

    def _now_us(self) -> int:
        return time.time_ns() // 1000 + self._skew_us


def veto_error(decision: Decision, policy: object) -> Vetoed:
    """Get the exception for a veto: of the vetoing policy's own class, if it could be asked."""
    reason = decision.reason
    if isinstance(policy, BuiltInPolicy) and reason not in {
        Reason.STORE_UNAVAILABLE,
        Reason.STATE_CORRUPT,
        Reason.POLICY_FAILED,
    }:
        return policy.vetoed(decision)
    return Vetoed(decision)


def _lower(caps: dict[str, int], run: Sequence[Binding], event: Event, reply: Reply) -> bool:
    """Lower the caps of estimates to limits that only the store knows; whether any fell."""
    before = dict(caps)
    for binding, answer in zip(run, reply.operations, strict=True):
        if answer.reason == Reason.COST_ABOVE_LIMIT and binding.enforced:
            binding.cap_estimates(event, caps, answer.limit)
    return caps != before


def _checked(verdict: object) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise PolicyFailed(f"evaluate returned {type(verdict).__name__}, not a Verdict")
    return verdict


def _signal(policy: Policy) -> Signal:
    advice: object = getattr(policy, "on_veto", Signal.FAIL)
    return advice if isinstance(advice, Signal) else Signal.FAIL


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
    )
