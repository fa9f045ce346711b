"""Deciding by what this process has taken ahead, where every policy that is asked allows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stanchion.decisions import Decision, Reason, Signal
from stanchion.errors import StoreUnavailable
from stanchion.permit import Hold, Permit
from stanchion.pools import Pool
from stanchion.store.keys import tag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stanchion.decisions import Verdict
    from stanchion.denials import Denials
    from stanchion.policies import Question, Run
    from stanchion.pools import Chunk, Refill
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Operation, Store

    Spent = tuple[Pool, Chunk]

_SUBJECTS = 10_000
# What these refuse has to do with what was asked, which those who ask in full know how to mend.
_UNCLEAR = frozenset({"window_unknown", Reason.COST_ABOVE_LIMIT, Reason.STATE_CORRUPT})


class Prefetching:
    """Pools of units by subject, and decisions out of them."""

    def __init__(
        self,
        store: Store,
        keyspace: Keyspace,
        denials: Denials | None,
        permits: Callable[[], str],
        *,
        deadline: float,
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._namespace = keyspace.namespace
        self._denials = denials
        self._permits = permits
        # By key and declaration: events of one subject may have limits of their own.
        self._pools: dict[tuple[str, str], Pool] = {}
        self._chunks: dict[int, Spent] = {}
        self._closed = False

    def spend(self, run: Run, question: Question) -> Decision | None:
        """Get an admission out of what is at hand, None where that does not suffice."""
        spent: list[Spent] = []
        for operation in question.operations:
            pool = self._pools.get((operation.key, operation.spec))
            chunk = None if pool is None else pool.spend(operation.cost)
            if pool is None or chunk is None:
                _take_back(spent, question)
                return None
            spent.append((pool, chunk))
        if run.settles:
            for (_, chunk), terms in zip(spent, run.prefetched, strict=True):
                chunk.settling += terms.settles
        source = _told, _held, run, question, spent, self._permits(), self._namespace
        return Decision.drawn(Signal.PROCEED, source)

    async def decide(self, run: Run, question: Question) -> Decision | None:
        """Take more of what does not suffice; get the decision, None where the store must say more.

        Raises:
            StoreUnavailable: there was no answer, or none that left enough, within the deadline.
        """
        try:
            async with asyncio.timeout(self._deadline):
                return await self._fetched(run, question)
        except TimeoutError:
            raise StoreUnavailable(f"no answer within {self._deadline:g} s") from None

    async def _fetched(self, run: Run, question: Question) -> Decision | None:
        """Take more, as often as others have spent it meanwhile."""
        while (decision := self.spend(run, question)) is None:
            if (denial := self._denied(run, question)) is not None:
                return denial
            asked = False
            for place, operation in enumerate(question.operations):
                pool = self._pool(operation, run, place)
                if pool is None:
                    return None
                missing = operation.cost - pool.at_hand
                if missing <= 0:
                    continue
                asked = True
                refill = await pool.fetch(operation.cost)
                if not refill.reply.admitted and refill.operation.cost <= missing:
                    return self._refused(run, place, refill)
            if not asked:
                # What costs nothing is not worth taking anything ahead.
                return None
        return decision

    def _denied(self, run: Run, question: Question) -> Decision | None:
        if self._denials is None:
            return None
        for place, operation in enumerate(question.operations):
            pool = self._pools.get((operation.key, operation.spec))
            missing = operation.cost - (0 if pool is None else pool.at_hand)
            if missing > 0 and (denial := self._denials.of(operation, missing)):
                return self._denials.again(run.bindings[place], denial)
        return None

    def _refused(self, run: Run, place: int, refill: Refill) -> Decision | None:
        answer = refill.reply.operations[0]
        if answer.reason in _UNCLEAR:
            return None
        if self._denials is not None:
            self._denials.learn((refill.operation,), refill.reply, refill.asked)
        policy = run.bindings[place].policy
        return Decision(allowed=False, signal=policy.advises, verdicts=(policy.verdict(answer),))

    def _pool(self, operation: Operation, run: Run, place: int) -> Pool | None:
        name = operation.key, operation.spec
        pool = self._pools.get(name)
        if pool is None:
            if self._closed or len(self._pools) >= _SUBJECTS:
                return None
            pool = self._pools[name] = Pool(
                self._store,
                operation,
                run.prefetched[place],
                self._permits,
                self._chunks,
                self._emptied,
            )
        # Calendar windows come with the question.
        pool.operation = operation
        return pool

    def _emptied(self, pool: Pool) -> None:
        name = pool.operation.key, pool.operation.spec
        if self._pools.get(name) is pool:
            del self._pools[name]

    async def settle(self, permit: str, hold: Hold, actual: int) -> str:
        """True up a spending of a reservation; get "settled", or "stale" where it is too late."""
        found = self._chunks.get(hold.chunk)
        if found is None:
            return "settled" if hold.reserved == actual else "stale"
        pool, chunk = found
        return "settled" if await pool.settle(chunk, permit, hold.reserved - actual) else "stale"

    def drop(self, tag: str) -> None:
        """Spend no more of what was taken ahead under a hash tag, whose state has been lost."""
        for pool in [pool for (key, _), pool in self._pools.items() if tag_of(key) == tag]:
            pool.drop()

    async def close(self) -> None:
        """Give back what was not spent."""
        self._closed = True
        pools = list(self._pools.values())
        self._pools.clear()
        await asyncio.gather(*(pool.close() for pool in pools))


def _take_back(spent: Sequence[Spent], question: Question) -> None:
    for (pool, chunk), operation in zip(spent, question.operations, strict=False):
        pool.unspend(chunk, operation.cost)


def _told(
    run: Run, question: Question, spent: Sequence[Spent], permit: str, namespace: str
) -> tuple[tuple[Verdict, ...], None, None]:
    del question, permit, namespace
    verdicts: list[Verdict] = []
    for binding, (pool, _) in zip(run.bindings, spent, strict=True):
        if pool.answer is not None:
            left = max(0, pool.answer.remaining) + pool.at_hand
            answer = pool.answer._replace(reason=Reason.OK, remaining=left, wait_us=0)
            verdicts.append(binding.policy.verdict(answer))
    return tuple(verdicts), None, None


def _held(
    run: Run, question: Question, spent: Sequence[Spent], permit: str, namespace: str
) -> Permit:
    holds: list[Hold] = []
    for binding, part, (_, chunk) in zip(run.bindings, question.parts, spent, strict=True):
        kind, cost = part.operation.kind, part.operation.cost
        name, subject, hold = binding.policy.name, part.subject, chunk.part.hold
        held = Hold(name, kind, subject, cost, part.amounts, hold)
        bounded = bool(part.operation.subjects)
        holds.append(held._replace(chunk=chunk.serial, shard=part.shard, bounded=bounded))
    return Permit(permit, namespace, tuple(holds))
