"""A store that numbers its calls: in which order the server ran what many processes asked for."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tests.properties.rig import Call, RecordingCarrier, RecordingStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Part, Reply, Request


@dataclass(frozen=True, order=True)
class Landed:
    """One operation in the order in which the server ran it: by call, then by place in the call."""

    sequence: int
    place: int
    now_us: int


@dataclass(frozen=True)
class Entry:
    """One operation, from when it was begun until its answer was there (monotonic nanoseconds)."""

    landed: Landed
    call: Call
    began: int
    ended: int


class SequencedCarrier(RecordingCarrier):
    """Notes where in the server's order each operation was."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chance = random.Random()
        self.landed: dict[int, tuple[Landed, Call]] = {}
        #: The number of the call that has just been answered, and the server's time.
        self._stamp = 0, 0

    def _launch(
        self, script: Any, keys: Any, args: Any, answered: Any, failed: Any, awaited: Any = None
    ) -> Any:
        def stamp(raw: Any) -> None:
            self._stamp = raw[2], raw[1]
            answered(raw)

        return super()._launch(script, keys, args, stamp, failed, awaited)

    def admissions(self, space: Any, requests: Any, landed: Any, failed: Any) -> Any:
        return super().admissions(space, self._drawn(requests), self._landing(landed), failed)

    def peeks(self, space: Any, requests: Any, landed: Any, failed: Any) -> Any:
        return super().peeks(space, self._drawn(requests), self._landing(landed), failed)

    def settlements(self, space: Any, settlements: Any, landed: Any, failed: Any) -> Any:
        drawn = self._drawn(settlements)
        return super().settlements(space, drawn, self._landing(landed), failed)

    def renewals(self, space: Any, renewals: Any, landed: Any, failed: Any) -> Any:
        return super().renewals(space, renewals, self._landing(landed), failed)

    def _drawn(self, sent: Any) -> Any:
        """Draw the luck of a call."""
        self.luck = self.chance.randrange(1_000_000)
        return sent

    def _landing(self, landed: Any) -> Any:
        def land(answers: Any) -> None:
            # Nothing has run since these calls, and only these, were noted.
            calls, self.calls = self.calls, []
            sequence, now_us = self._stamp
            for place, (call, answer) in enumerate(zip(calls, answers, strict=True)):
                self.landed[id(answer)] = (Landed(sequence, place, now_us), call)
            landed(answers)

        return land


class SequencedStore(RecordingStore):
    """The real store with a clock that counts calls; it logs every operation that it answers."""

    carries = SequencedCarrier

    def __init__(self, url: str, keyspace: Keyspace, chance: random.Random) -> None:
        super().__init__(url, keyspace, clock="include/sequenced_clock")
        self.log: list[Entry] = []
        carrier = cast("SequencedCarrier", self._carrier)
        carrier.chance = chance
        self._landed = carrier.landed

    def asking(self, request: Request) -> Any:
        return self._watched(super().asking(request))

    async def peek(self, request: Request) -> Reply:
        began = time.monotonic_ns()
        return self._logged(began, await super().peek(request))

    def settling(self, permit: str, outcome: str, parts: Sequence[Part]) -> Any:
        return self._watched(super().settling(permit, outcome, parts))

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        began = time.monotonic_ns()
        return self._logged(began, await super().renew(permit, parts))

    def _watched(self, answer: Any) -> Any:
        began = time.monotonic_ns()

        def log(done: Any) -> None:
            if not done.cancelled() and done.exception() is None:
                self._logged(began, done.result())

        answer.add_done_callback(log)
        return answer

    def _logged(self, began: int, answer: Any) -> Any:
        landed, call = self._landed.pop(id(answer))
        self.log.append(Entry(landed, call, began, time.monotonic_ns()))
        return answer
