"""Asking a chain of policies about one event, and giving back what a later veto makes void."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from stanchion.charging import (
    Charging,
    Round,
    Taken,
    held,
    held_of_all,
    take,
    told,
    told_of_all,
)
from stanchion.consulting import Consulting
from stanchion.decisions import Decision, Reason, Signal
from stanchion.errors import StoreUnavailable, Vetoed
from stanchion.permit import Permit
from stanchion.policies import BuiltInPolicy, Run
from stanchion.policies.base import luck
from stanchion.store.protocol import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stanchion.chain import Chain, Segment
    from stanchion.denials import Denials
    from stanchion.events import Event
    from stanchion.local import LocalShares
    from stanchion.policies import Panel
    from stanchion.prefetching import Prefetching
    from stanchion.store.protocol import Store
    from stanchion.waiting import Waiter


class Asking:
    """Decides events against a chain and a store.

    `failed` is told of every policy that could not be asked, as (policy, event, error).
    """

    def __init__(
        self,
        chain: Chain,
        store: Store,
        local: LocalShares,
        prefetching: Prefetching,
        denials: Denials | None,
        *,
        namespace: str,
        deadline: float,
        permits: Callable[[], str],
        failed: Callable[[str, Event, BaseException], None],
    ) -> None:
        self._chain = chain
        self._prefetching = prefetching
        self._denials = denials
        self._permits = permits
        self._store = store
        self._local = local
        self._namespace = namespace
        self._deadline = deadline
        self._charging = Charging(store, local, failed)
        self._consulting = Consulting(deadline=deadline, failed=failed)

    async def check(self, event: Event) -> Decision:
        """Ask in order until the first veto; charge if there is none."""
        plan = self._chain.plan(event)
        if len(plan) != 1 or not isinstance(run := plan[0], Run):
            return await self._along(plan, event)
        # The common case, in which an answer makes nothing that nobody looks at.
        question, denials = self._charging.question(run, event), self._denials
        first = None
        try:
            if run.prefetched:
                decision = self._prefetching.spend(run, question)
                decision = decision or await self._prefetching.decide(run, question)
                if decision is not None:
                    return decision
            else:
                if denials is not None and (known := denials.find(question)) is not None:
                    place, denial = known
                    return denials.again(run.bindings[place], denial)
                asked, permit = time.monotonic(), self._permits()
                chance = luck() if run.chancy else 0
                request = Request(
                    permit, question.operations, None, chance, question.weight, run.copies
                )
                answer = self._store.asking(request)
                try:
                    reply = await answer
                except asyncio.CancelledError:
                    self._store.forsake(request, answer)
                    raise
                if reply.admitted:
                    source = told, held, run, question, reply, permit, self._namespace
                    return Decision.drawn(Signal.PROCEED, source)
                if denials is not None:
                    denials.learn(question.operations, reply, asked)
                first = question, reply
        except StoreUnavailable as error:
            first = error
        return await self._in_order(plan, event, self._round(self._permits()), first)

    async def _along(self, plan: Sequence[Segment], event: Event) -> Decision:
        """Ask what begins a plan, in as many calls as there are shards, and then the rest of it."""
        permit, denials, until = self._permits(), self._denials, self._until()
        if not plan or not isinstance(plan[0], Run):
            return await self.decide(event, permit)
        taken: list[Taken] = []
        first = None
        try:
            for run in plan:
                if not isinstance(run, Run):
                    break
                question = self._charging.question(run, event)
                if denials is not None and (known := denials.find(question)) is not None:
                    round_ = self._gathered(taken, permit, until)
                    # Nothing is ever undone twice, also where this is cancelled meanwhile.
                    taken.clear()
                    await self._given_back(event, round_)
                    place, denial = known
                    return denials.again(run.bindings[place], denial)
                asked = time.monotonic()
                reply = await self._charging.answer(
                    run, question, permit, until if taken else None, last=run is plan[-1]
                )
                if not reply.admitted:
                    if denials is not None:
                        denials.learn(question.operations, reply, asked)
                    first = question, reply
                    break
                taken.append(Taken(run, question, reply))
            else:
                return Decision.drawn(
                    Signal.PROCEED, (told_of_all, held_of_all, taken, permit, self._namespace)
                )
        except StoreUnavailable as error:
            first = error
        except BaseException:
            self._give_back(event, self._gathered(taken, permit, until))
            raise
        round_ = self._gathered(taken, permit, until)
        return await self._in_order(plan[len(taken) :], event, round_, first)

    @staticmethod
    def _gathered(taken: Sequence[Taken], permit: str, until: float) -> Round:
        """Get what was taken so far in the form in which the rest of a plan is asked."""
        asked = Round(permit, until)
        for one in taken:
            take(one, asked)
        return asked

    async def decide(self, event: Event, permit: str, waiter: Waiter | None = None) -> Decision:
        """Do as `check` does, and ask everybody; the admission is named `permit`.

        A `waiter` takes or keeps its place in the line of every subject that refused it.
        """
        plan = self._chain.plan(event)
        if not plan:
            return Decision(allowed=True, permit=Permit(permit, self._namespace))
        return await self._in_order(plan, event, self._round(permit, waiter))

    def _round(self, permit: str, waiter: Waiter | None = None) -> Round:
        return Round(permit, self._until(), waiter=waiter)

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline

    async def _in_order(
        self,
        plan: Sequence[Segment],
        event: Event,
        asked: Round,
        first: Any = None,
    ) -> Decision:
        try:
            for segment in plan:
                now = asked.rewritten or event
                if isinstance(segment, Run):
                    last = segment is plan[-1]
                    await self._charging.ask(
                        segment, now, asked, charge=True, last=last, first=first
                    )
                    first = None
                else:
                    await self._consult(segment, now, asked)
                if asked.vetoed:
                    break
        except BaseException:
            self._give_back(event, asked)
            raise
        return await self._concluded(event, asked)

    async def _concluded(self, event: Event, asked: Round) -> Decision:
        verdicts = tuple(asked.verdicts)
        if asked.vetoed:
            if asked.waiter is not None:
                asked.waiter.spent |= bool(asked.parts)
            await self._given_back(event, asked)
            return Decision(
                allowed=False,
                signal=asked.signal,
                verdicts=verdicts,
                decided_at=asked.decided_at,
            )
        names = tuple(policy.name for policy in asked.customs)
        kept = (asked.rewritten or event) if names else asked.rewritten
        return Decision(
            allowed=True,
            verdicts=verdicts,
            permit=Permit(
                asked.permit,
                self._namespace,
                tuple(asked.holds),
                policies=names,
                event=kept.to_cloudevent() if kept is not None else None,
                admitted_us=asked.now_us,
            ),
            decided_at=asked.decided_at,
            event=asked.rewritten,
        )

    async def foresee(self, event: Event, permit: str) -> Decision:
        """Ask what `decide` would answer now, and keep nothing."""
        asked = self._round(permit)
        for segment in self._chain.plan(event):
            now = asked.rewritten or event
            if isinstance(segment, Run):
                await self._charging.ask(segment, now, asked, charge=False)
            else:
                await self._consult(segment, now, asked)
            if asked.vetoed:
                break
        await self._given_back(event, asked)
        return Decision(
            allowed=not asked.vetoed,
            signal=asked.signal,
            verdicts=tuple(asked.verdicts),
            decided_at=asked.decided_at,
            event=None if asked.vetoed else asked.rewritten,
        )

    def dismiss(self, policy: object) -> None:
        """Have a policy that is not asked any more let go of what it holds."""
        self._consulting.dismiss(policy)

    async def close(self) -> None:
        """Wait, within the deadline, for what is still being given back; let policies go."""
        await self._consulting.close(self._chain.policies)

    async def _consult(self, panel: Panel, event: Event, asked: Round) -> None:
        answers = await self._consulting.ask(panel, event, asked.deadline, asked.customs)
        for answer in answers:
            asked.add(answer.verdict, answer.advice)
            if answer.verdict.allowed and answer.verdict.event is not None:
                asked.rewritten = answer.verdict.event

    async def _given_back(self, event: Event, asked: Round) -> None:
        """Give back and see it done, as far as the deadline allows: a veto has cost nothing."""
        if pending := self._give_back(event, asked):
            left = asked.deadline - asyncio.get_running_loop().time()
            await asyncio.wait(pending, timeout=max(0.0, left))

    def _give_back(self, event: Event, asked: Round) -> list[asyncio.Future[Any]]:
        pending: list[asyncio.Future[Any]] = []
        if asked.parts:
            pending.append(self._store.give_back(asked.permit, tuple(asked.parts)))
        if asked.local_parts:
            pending.append(self._local.store.give_back(asked.permit, tuple(asked.local_parts)))
        pending.extend(self._consulting.undo(asked.customs, asked.rewritten or event))
        asked.parts, asked.local_parts, asked.customs, asked.holds = [], [], [], []
        return pending


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
