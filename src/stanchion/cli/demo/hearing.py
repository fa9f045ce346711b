"""What a process of the demo hears: every event counted, each circuit's change kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from stanchion.cli.demo.records import Heard, micros_of, now_us
from stanchion.events import CircuitChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion import Event

_PATIENCE = 3.0  # seconds that news may take to arrive at the end


class Ears:
    """An observer of everything; `note` is given each change of a circuit as it arrives.

    `observed` counts events by type, and `learned` has the seconds that the last news of each
    circuit's states took.
    """

    on = "*"

    def __init__(self, note: Callable[[Heard], None]) -> None:
        self.observed: Counter[str] = Counter()
        self.learned: dict[str, float] = {}
        self._note = note
        self._seqs: dict[str, int] = {}
        self._news = asyncio.Event()

    async def handle(self, event: Event) -> None:
        """Take one event."""
        self.observed[event.event_type] += 1
        if not isinstance(event, CircuitChanged):
            return
        heard = Heard(
            policy=event.policy,
            subject=event.subject,
            previous=event.previous,
            state=event.state,
            seq=event.seq,
            reason=event.reason,
            at_us=micros_of(event.timestamp),
            received_us=now_us(),
        )
        self._note(heard)
        self._seqs[heard.circuit] = heard.seq
        news = f"{heard.circuit} {heard.state}".replace("_", " ")
        # Taken out first, so that the last news stands last.
        self.learned.pop(news, None)
        self.learned[news] = (heard.received_us - heard.at_us) / 1e6
        self._news.set()

    async def wait_for(self, seqs: Mapping[str, int]) -> bool:
        """Wait until these changes have been heard of; False if they are not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while any(self._seqs.get(circuit, 0) < seq for circuit, seq in seqs.items()):
                    self._news.clear()
                    await self._news.wait()
                return True
        return False
