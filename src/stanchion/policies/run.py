"""Built-in policies that are asked together, and what they ask about an event."""

from __future__ import annotations

import time
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from stanchion.policies.binding import estimates
from stanchion.policies.fields import given
from stanchion.store.keys import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stanchion.events import Event
    from stanchion.policies.base import Prefetched
    from stanchion.policies.binding import Asked, Binding
    from stanchion.store.protocol import Operation

# Questions that are kept at hand, for each class of events.
_REMEMBERED = 4096
_LONGEST_REMEMBERED = 256
# Of these, no value equals another that would make another question, as True equals 1.
_PLAIN = frozenset({str, int, type(None)})
_ALWAYS = 2**63


class Question(NamedTuple):
    """What a run of policies asks about an event.

    `weight` is about how many bytes it adds to a call. With calendar windows it can be asked from
    `begins` until `ends`, in microseconds.
    """

    parts: tuple[Asked, ...]
    operations: tuple[Operation, ...]
    weight: int
    begins: int = 0
    ends: int = _ALWAYS

    @classmethod
    def of(cls, parts: Sequence[Asked]) -> Question:
        """Get the question that these operations are together."""
        operations = tuple(part.operation for part in parts)
        windows = [op.windows[2:4] for op in operations if op.windows]
        return cls(
            tuple(parts),
            operations,
            sum(len(op.key) + len(op.aux) + 40 for op in operations),
            max((begins for begins, _ in windows), default=0),
            min((ends for _, ends in windows), default=_ALWAYS),
        )


class Run:
    """Built-in policies that stand next to each other, bound to one class of events.

    All of them are asked in one call. Events that make the same question get the same object, so
    that nothing of it is made twice, and a batch of them is written as one.
    """

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self.bindings = tuple(bindings)
        #: The field that says in which shard all of them are asked, None for the namespace's own.
        self.sharded_by = bindings[0].sharded_by
        ahead = [binding.policy.prefetched for binding in bindings if binding.enforced]
        #: What is taken ahead for each policy; empty where one of them is asked every time.
        self.prefetched: tuple[Prefetched, ...] = ()
        if len(ahead) == len(bindings):
            each = tuple(terms for terms in ahead if terms is not None)
            self.prefetched = each if len(each) == len(ahead) else ()
        self.settles = any(terms.settles for terms in self.prefetched)
        #: How many replicas must have what is charged; what is only watched waits for none.
        self.copies = max((one.policy.copies for one in bindings if one.enforced), default=0)
        self.chancy = any(binding.policy.kind is Kind.CIRCUIT for binding in bindings)
        readers = {path: read for binding in bindings for path, read in binding.readers}
        simple = not any("." in path for path in readers)
        # One value as it is, any other number of them as a tuple.
        self._read: Callable[[Event], Any] = (
            attrgetter(*readers)
            if simple and readers
            else lambda event: tuple([read(event) for read in readers.values()])
        )
        self._single = simple and len(readers) == 1
        # Costs that an event may leave to its default, which is a guess: see Binding.
        self._guesses = tuple({name for binding in bindings for name in binding.guesses})
        now_us = time.time_ns() // 1000
        self.windowed = any(binding.policy.windows(now_us) for binding in bindings)
        self._known: dict[object, Question] = {}

    def __iter__(self) -> Iterator[Binding]:
        return iter(self.bindings)

    def question(self, event: Event, now_us: int) -> Question:
        """Get what is to be asked about an event, by a clock that may differ from the server's.

        Raises:
            ConfigError: a cost or a `by` field of the event is not of a kind that can be counted.
        """
        values = self._read(event)
        plain = type(values) in _PLAIN if self._single else _PLAIN.issuperset(map(type, values))
        if not plain or (self._guesses and not all(given(event, name) for name in self._guesses)):
            return self.ask(event, now_us, estimates(self.bindings, event))
        question = self._known.get(values)
        if question is None or (self.windowed and not question.begins <= now_us < question.ends):
            question = self.ask(event, now_us, estimates(self.bindings, event))
            self._remember(values, question)
        return question

    def ask(
        self, event: Event, now_us: int, caps: Mapping[str, int], *, waits: bool = False
    ) -> Question:
        """Get a question made anew, with these caps on estimated costs; see `question`."""
        return Question.of([b.ask(event, now_us, caps, waits=waits) for b in self.bindings])

    def _remember(self, values: Any, question: Question) -> None:
        each: tuple[object, ...] = (values,) if self._single else values
        if any(isinstance(value, str) and len(value) > _LONGEST_REMEMBERED for value in each):
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[values] = question
