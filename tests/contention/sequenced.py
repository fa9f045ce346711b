"""A store that numbers its calls: in which order the server ran what many processes asked for."""

from __future__ import annotations

import random
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.properties.rig import Call, RecordingStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stanchion.store.keys import Keyspace
    from stanchion.store.protocol import Part, Reply, Request

#: The server's time and the number of the call that the current task has just made.
_stamp: ContextVar[tuple[int, int]] = ContextVar("stamp")


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


class SequencedStore(RecordingStore):
    """The real store with a clock that counts calls; it logs every operation that it answers."""

    def __init__(self, url: str, keyspace: Keyspace, chance: random.Random) -> None:
        super().__init__(url, keyspace, clock="include/sequenced_clock")
        self.log: list[Entry] = []
        self._chance = chance
        self._landed: dict[int, tuple[Landed, Call]] = {}

    # ---- operations, one by one

    async def admit(self, request: Request) -> Reply:
        began = time.monotonic_ns()
        return self._logged(began, await super().admit(request))

    async def peek(self, request: Request) -> Reply:
        began = time.monotonic_ns()
        return self._logged(began, await super().peek(request))

    async def settle(self, permit: str, outcome: str, parts: Sequence[Part]) -> tuple[str, ...]:
        began = time.monotonic_ns()
        return self._logged(began, await super().settle(permit, outcome, parts))

    async def renew(self, permit: str, parts: Sequence[Part]) -> tuple[int, ...]:
        began = time.monotonic_ns()
        return self._logged(began, await super().renew(permit, parts))

    def _logged(self, began: int, answer: Any) -> Any:
        landed, call = self._landed.pop(id(answer))
        self.log.append(Entry(landed, call, began, time.monotonic_ns()))
        return answer

    # ---- script calls, of many operations each

    async def _call(self, *arguments: Any) -> list[object]:
        raw: Any = await super()._call(*arguments)
        _stamp.set((raw[2], raw[1]))
        return raw

    async def _send_admissions(self, requests: Sequence[Request], *rest: Any) -> Any:
        return self._land(await super()._send_admissions(self._drawn(requests), *rest))

    async def _send_peeks(self, requests: Sequence[Request], *rest: Any) -> Any:
        return self._land(await super()._send_peeks(self._drawn(requests), *rest))

    async def _send_settlements(self, settlements: Any, *rest: Any) -> Any:
        return self._land(await super()._send_settlements(self._drawn(settlements), *rest))

    async def _send_renewals(self, renewals: Any, *rest: Any) -> Any:
        return self._land(await super()._send_renewals(renewals, *rest))

    def _drawn(self, sent: Any) -> Any:
        """Draw the luck of a call."""
        self.luck = self._chance.randrange(1_000_000)
        return sent

    def _land(self, answers: Any) -> Any:
        # Nothing has run since the recording store noted these calls, and only these.
        calls, self.calls = self.calls, []
        sequence, now_us = _stamp.get()
        for place, (call, answer) in enumerate(zip(calls, answers, strict=True)):
            self._landed[id(answer)] = (Landed(sequence, place, now_us), call)
        return answers
