"""A bounded queue that any thread may fill; what gives way, and who is next."""

from __future__ import annotations

from collections import OrderedDict, deque
from concurrent.futures import Future
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stanchion.observers.notice import Notice
    from stanchion.observers.stats import Tally


class Overflow(StrEnum):
    """Which event gives way when an observer's queue is full.

    With `BLOCK` whoever can wait does so for as long as `block_for` says; then, and for those who
    cannot, it is the newest.
    """

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    BLOCK = "block"


class Taken(NamedTuple):
    """Events to be handled now, and the runs of which nothing else is handed out meanwhile."""

    notices: list[Notice]
    runs: tuple[str, ...]


_Queue = OrderedDict["Notice", bool]  # whether it is urgent
_NONE: Final[tuple[str, ...]] = ()


class Inbox:
    """Events that wait for one observer. Whoever calls holds the manager's lock.

    With `by_run`, the events of one run are handed out one after another: those that come while one
    is being handled are parked until it is released. The lock is reentrant and a finalizer may
    notify anywhere, so each step leaves the queues such that another may begin.
    """

    def __init__(self, capacity: int, overflow: Overflow, tally: Tally, *, by_run: bool) -> None:
        self.capacity = capacity
        self.overflow = overflow
        self.blocks = overflow is Overflow.BLOCK
        self.refused = 0
        self._tally = tally
        self._by_run = by_run
        self._line: _Queue = OrderedDict()
        self._parked: dict[str, _Queue] = {}  # by the runs that are being handled
        self._resumed: deque[str] = deque()  # runs that are free again and have something parked
        self._ordinary: _Queue = OrderedDict()  # all that may give way, wherever they wait
        self._urgent: _Queue = OrderedDict()
        self._size = 0
        self._waiters: deque[Future[None]] = deque()
        self._in_burst = False
        self._first_dropped: str | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def full(self) -> bool:
        """Whether the next event needs another one to give way."""
        return self._size >= self.capacity

    @property
    def ready(self) -> bool:
        """Whether there is something that may be handed out."""
        return bool(self._line or self._resumed)

    def ripe(self, size: int) -> bool:
        """Get whether a batch need not wait any longer to fill."""
        # A full one gets no fuller, and what comes next would cost an event.
        return len(self._line) >= size or self.full or bool(self._urgent or self._resumed)

    # --------------------------------------------------------------------------------- filling

    def put(self, notice: Notice, *, urgent: bool) -> bool:
        """Add an event, dropping one if need be; True when that begins a burst of drops."""
        self._tally.received += 1
        if self._size < self.capacity:
            self._add(notice, urgent)
            return False
        gone = self._gives_way(notice, urgent)
        if gone is not notice:
            self._remove(gone)
            self._add(notice, urgent)
        self._tally.dropped += 1
        if self._in_burst:
            return False
        self._in_burst = True
        self._first_dropped = gone.event.event_type
        return True

    def refuse(self) -> None:
        """Count an event that will not be delivered although there was room."""
        self._tally.received += 1
        self._tally.dropped += 1
        self.refused += 1

    def room(self) -> Future[None]:
        """Get what is done as soon as there may be room."""
        while self._waiters and self._waiters[0].cancelled():
            self._waiters.popleft()
        waiter: Future[None] = Future()
        self._waiters.append(waiter)
        return waiter

    def let_go(self) -> None:
        """Wake everybody who waits for room: there is some, or there will be none."""
        while self._waiters:
            self._wake(self._waiters.popleft())

    def _add(self, notice: Notice, urgent: bool) -> None:  # noqa: FBT001 - on the caller's path
        self._size += 1
        self._line[notice] = urgent
        if urgent:
            self._urgent[notice] = True
        else:
            self._ordinary[notice] = False

    def _gives_way(self, notice: Notice, urgent: bool) -> Notice:  # noqa: FBT001 - see _add
        if self.overflow is Overflow.DROP_OLDEST:
            return next(iter(self._ordinary or (urgent and self._urgent) or (notice,)))
        return next(reversed(self._ordinary)) if urgent and self._ordinary else notice

    def _remove(self, notice: Notice) -> None:
        self._size -= 1
        self._ordinary.pop(notice, None)
        self._urgent.pop(notice, None)
        if notice in self._line:
            del self._line[notice]
            return
        run = notice.event.run_id
        if run is not None and run in self._parked:
            self._parked[run].pop(notice, None)

    # -------------------------------------------------------------------------------- emptying

    def take(self, most: int) -> Taken:
        """Get the oldest events that may be handled now.

        What is taken counts as in hand. Its runs must be given to `release`.
        """
        taken: list[Notice] = []
        runs = self._take_by_run(taken, most) if self._by_run else _NONE
        while not self._by_run and self._line and len(taken) < most:
            self._hand_out(next(iter(self._line)), self._line, taken)
        self._tally.in_hand += len(taken)
        for _ in range(min(self.capacity - self._size, len(self._waiters))):
            self._wake(self._waiters.popleft())
        return Taken(taken, runs)

    def _take_by_run(self, taken: list[Notice], most: int) -> tuple[str, ...]:
        mine: dict[str, None] = {}  # in their order, which is that of their release
        while self._resumed and len(taken) < most:
            run = self._resumed.popleft()
            parked = self._parked[run]
            # Also when they all had to give way meanwhile: it is released all the same.
            mine[run] = None
            while parked and len(taken) < most:
                self._hand_out(next(iter(parked)), parked, taken)
        while self._line and len(taken) < most:
            notice = next(iter(self._line))
            run = notice.event.run_id
            if run is not None:
                parked = self._parked.get(run)
                if parked is None:
                    self._parked[run] = OrderedDict()
                    mine[run] = None
                elif run not in mine:
                    parked[notice] = self._line.pop(notice)
                    continue
            self._hand_out(notice, self._line, taken)
        return tuple(mine)

    def _hand_out(self, notice: Notice, queue: _Queue, taken: list[Notice]) -> None:
        # First where it could be chosen to give way, last where it is found.
        self._ordinary.pop(notice, None)
        self._urgent.pop(notice, None)
        if queue.pop(notice, None) is not None:
            self._size -= 1
            taken.append(notice)

    def release(self, runs: Iterable[str]) -> bool:
        """Allow the next events of these runs; True when some are waiting."""
        resumed = False
        for run in runs:
            if self._parked[run]:
                self._resumed.append(run)
                resumed = True
            else:
                del self._parked[run]
        return resumed

    def caught_up(self) -> None:
        """Note that someone came for more; if nothing waits at all, a burst of drops is over."""
        if not self._size:
            self._in_burst = False

    def clear(self) -> int:
        """Drop everything that waits; how much that was."""
        number = self._size
        for queue in (self._line, *self._parked.values(), self._ordinary, self._urgent):
            queue.clear()
        self._size = 0
        self._tally.dropped += number
        self.let_go()
        return number

    # --------------------------------------------------------------------------------- reports

    def since(self) -> float | None:
        """Get when the first event was notified that may be handed out."""
        return next(iter(self._line)).at if self._line else None

    def oldest(self) -> Notice | None:
        """Get the event that has waited longest, whether or not it may be handed out."""
        queues = (self._line, *self._parked.values())
        return min((next(iter(queue)) for queue in queues if queue), key=_age, default=None)

    def first_dropped(self) -> str | None:
        """Get the type of the event that began a burst, once for each burst."""
        kind, self._first_dropped = self._first_dropped, None
        return kind

    @staticmethod
    def _wake(waiter: Future[None]) -> None:
        if waiter.set_running_or_notify_cancel():
            waiter.set_result(None)


def _age(notice: Notice) -> float:
    return notice.at
