"""Denials that are known to last: until then this process need not ask again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from stanchion.decisions import Decision, Reason
from stanchion.store.protocol import Published

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.decisions import Verdict
    from stanchion.policies import Binding, Question
    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Operation, OpReply, Reply, Store

_MICROS = 1_000_000
_SUBJECTS = 10_000
# Seconds that a denial is kept at most. What makes it end sooner is published, but at most once: a
# message that is lost, or state that was deleted by hand, is made up for after this long.
LONGEST = 5.0
# Below this, asking again takes as long as waiting.
_SHORTEST = 0.001
# What these deny stays denied until they say, unless somebody is told otherwise. A slot or a probe
# may be free again at any moment.
_LASTING = frozenset(
    {
        *(Reason.LIMIT_REACHED, Reason.QUOTA_EXHAUSTED),
        *(Reason.CIRCUIT_OPEN, Reason.FORCED_OPEN),
    }
)


class Denial(NamedTuple):
    """What a policy said when it denied, and until when that holds.

    `asked` and `ends` are in seconds of the process's own clock.
    """

    operation: Operation
    answer: OpReply
    asked: float
    ends: float


class Denials:
    """Answers what has been denied and cannot have changed, without asking the store.

    Only denials are kept, never admissions, and for a cost no lower than the one that was denied.
    Refunds, resets, limits set for one subject and changes of circuits end them at once: scripts
    publish these for keys of which a denial is kept somewhere. While this process is not
    subscribed, nothing is kept.
    """

    def __init__(self, store: Store, keyspace: Keyspace) -> None:
        self._store = store
        self._channel = keyspace.wake
        self._known: dict[str, Denial] = {}
        self._listener: asyncio.Task[None] | None = None
        # Since when every message is heard; nothing that was asked before may be kept.
        self._since: float | None = None
        # When each key's denial was last ended; one that was asked before that is not kept.
        self._ended: dict[str, float] = {}
        self._closed = False

    def find(self, question: Question) -> tuple[int, Denial] | None:
        """Get which policy is known to deny this question and how, None where none is."""
        if self._known:
            for place, operation in enumerate(question.operations):
                denial = self.of(operation, operation.cost)
                if denial is not None:
                    return place, denial
        return None

    def of(self, operation: Operation, cost: int) -> Denial | None:
        """Get what is known to deny an operation at this cost, None where nothing is."""
        denial = self._known.get(operation.key)
        if denial is None or operation.shadow:
            return None
        # Of a smaller cost, and of another declaration, it says nothing.
        if cost < denial.operation.cost or operation.spec != denial.operation.spec:
            return None
        if time.monotonic() >= denial.ends:
            del self._known[operation.key]
            return None
        return denial

    def learn(self, operations: Sequence[Operation], reply: Reply, asked: float) -> None:
        """Keep what a refusal says, if it is one that lasts; `asked` is when it was asked for."""
        if self._closed:
            return
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        if self._since is None or asked <= self._since:
            return
        for operation, answer in zip(operations, reply.operations, strict=True):
            key = operation.key
            if operation.shadow or answer.reason not in _LASTING:
                continue
            if asked <= self._ended.get(key, 0.0):
                continue
            wait = LONGEST if answer.wait_us < 0 else min(LONGEST, answer.wait_us / _MICROS)
            if wait >= _SHORTEST:
                if len(self._known) >= _SUBJECTS:
                    del self._known[next(iter(self._known))]
                # From when it was asked, which was before it was answered: never too long.
                denial = Denial(operation, answer, asked, asked + wait)
                self._known[key] = denial

    @staticmethod
    def again(binding: Binding, denial: Denial) -> Decision:
        """Get the decision that a known denial comes to."""
        source = _told, None, binding, denial, time.monotonic()
        return Decision.drawn(binding.advises, source)

    def forget(self, key: str | None = None) -> None:
        """Forget what is known of one key, or of all."""
        now = time.monotonic()
        if key is not None and len(self._ended) < _SUBJECTS:
            self._ended[key] = now
            self._known.pop(key, None)
            return
        self._known.clear()
        self._ended.clear()
        if self._since is not None:
            self._since = now

    async def close(self) -> None:
        """Stop listening."""
        listener, self._listener = self._listener, None
        self._closed = True
        self._lost()
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    def _lost(self) -> None:
        self._since = None
        self._known.clear()

    async def _listen(self) -> None:
        try:
            async with self._store.subscribe(self._channel, lost=self._lost) as messages:
                async for message in messages:
                    if isinstance(message, Published):
                        self.forget(message.payload.decode("utf-8", "replace"))
                    else:
                        # What was published while nobody listened is lost.
                        self._since = time.monotonic()
                        self.forget()
        finally:
            self._lost()


def _told(binding: Binding, denial: Denial, now: float) -> tuple[tuple[Verdict], None, None]:
    passed = round((now - denial.asked) * _MICROS)
    wait_us, reset_us = denial.answer.wait_us, denial.answer.reset_us
    answer = denial.answer._replace(
        wait_us=wait_us if wait_us < 0 else max(0, wait_us - passed),
        reset_us=reset_us if reset_us < 0 else max(0, reset_us - passed),
    )
    # When that was by the server's clock nobody has asked it.
    return (binding.policy.verdict(answer),), None, None
