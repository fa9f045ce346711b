"""A circuit's life from the logs: its changes of state, what it let through, who learned when."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanchion import CircuitState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stanchion.cli.demo.records import Heard

_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Phase:
    """One state of a circuit, from its beginning until the next, and what was admitted in it.

    `learned` has, for each process that heard of the change, the seconds that it took; `missed`
    are those that never did.
    """

    state: CircuitState
    reason: str
    seq: int
    at_us: int
    admitted: int
    learned: Mapping[int, float]
    missed: tuple[int, ...]

    def exceeded(self, half_open_calls: int) -> bool:
        """Whether more was admitted than an open or half-open circuit lets through."""
        if self.state is CircuitState.OPEN:
            return self.admitted > 0
        return self.state is CircuitState.HALF_OPEN and self.admitted > half_open_calls


def phases(
    heard: Mapping[int, Iterable[Heard]],
    admissions: Iterable[int],
    *,
    workers: Sequence[int],
    offset_us: int = 0,
) -> list[Phase]:
    """Get the phases of one circuit in order.

    `heard` is what each process heard of this circuit, `admissions` are the moments at which calls
    were admitted, and `workers` the processes that must hear of each change. `offset_us` is how far
    the server's clock is ahead of the one by which receipts are stamped.
    """
    changes: dict[int, Heard] = {}
    received: dict[int, dict[int, int]] = {}
    for process, events in heard.items():
        for event in events:
            changes.setdefault(event.seq, event)
            received.setdefault(event.seq, {}).setdefault(process, event.received_us)
    ordered = [changes[seq] for seq in sorted(changes)]
    moments = sorted(admissions)
    found: list[Phase] = []
    followers: list[Heard | None] = [*ordered[1:], None]
    for change, following in zip(ordered, followers, strict=False):
        delays = {
            process: max(0, at + offset_us - change.at_us) / _MICROS
            for process, at in sorted(received[change.seq].items())
        }
        found.append(
            Phase(
                change.state,
                change.reason,
                change.seq,
                change.at_us,
                _admitted(change, following, moments),
                delays,
                tuple(worker for worker in workers if worker not in delays),
            )
        )
    return found


def _admitted(change: Heard, following: Heard | None, moments: list[int]) -> int:
    # The admission that ends the open time is the first probe, and has the same stamp as the
    # change; one with the stamp of an opening was decided before it.
    find = bisect_left if change.state is CircuitState.HALF_OPEN else bisect_right
    end = len(moments)
    if following is not None:
        to_half_open = following.state is CircuitState.HALF_OPEN
        end = (bisect_left if to_half_open else bisect_right)(moments, following.at_us)
    return max(0, end - find(moments, change.at_us))
