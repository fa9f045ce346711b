"""The queue beside the plainest thing that it could be: a list, searched from the front."""

from __future__ import annotations

import random
from contextvars import Context

import pytest

from stanchion.observers import Overflow
from stanchion.observers.inbox import Inbox, Taken
from stanchion.observers.notice import Notice
from stanchion.observers.stats import Tally
from tests.observers.doubles import call


class Model:
    """Does with a list what an `Inbox` does, and says where the two differ."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)
        self.capacity = self.chance.randint(1, 8)
        self.overflow = self.chance.choice(list(Overflow))
        self.by_run = self.chance.random() < 0.7
        self.tally = Tally()
        self.inbox = Inbox(self.capacity, self.overflow, self.tally, by_run=self.by_run)
        self.waiting: list[Notice] = []
        self.urgent: set[Notice] = set()
        self.held: list[Taken] = []
        self.told = 0

    def step(self) -> None:
        dice = self.chance.random()
        if dice < 0.5:
            self.put()
        elif dice < 0.8:
            self.take(self.chance.randint(1, 4))
        elif self.held:
            self.inbox.release(self.held.pop(self.chance.randrange(len(self.held))).runs)
        assert len(self.inbox) == len(self.waiting)
        oldest = self.inbox.oldest()
        assert (oldest and oldest.at) == (self.waiting[0].at if self.waiting else None)
        assert self.tally.received == self.told
        assert self.told == self.tally.in_hand + self.tally.dropped + len(self.waiting)

    def put(self) -> None:
        notice = Notice(call(self.told, self.chance.choice(["a", "b", "c", None])), Context())
        self.told += 1
        if self.chance.random() < 0.2:
            self.urgent.add(notice)
        if len(self.waiting) < self.capacity:
            self.waiting.append(notice)
        elif (gone := self.gives_way(notice)) is not notice:
            self.waiting.remove(gone)
            self.waiting.append(notice)
        self.inbox.put(notice, urgent=notice in self.urgent)

    def gives_way(self, notice: Notice) -> Notice:
        ordinary = [one for one in self.waiting if one not in self.urgent]
        urgent = notice in self.urgent
        if self.overflow is Overflow.DROP_OLDEST:
            return [*ordinary, *(self.waiting if urgent else ()), notice][0]
        return ordinary[-1] if urgent and ordinary else notice

    def take(self, most: int) -> None:
        busy = {run for taken in self.held for run in taken.runs}
        may = [one for one in self.waiting if not self.by_run or one.event.run_id not in busy]
        taken = self.inbox.take(most)
        assert len(taken.notices) == min(most, len(may))
        for notice in taken.notices:
            run = notice.event.run_id
            # The oldest of all, or of its run.
            assert notice is next(one for one in may if not self.by_run or one.event.run_id == run)
            assert not self.by_run or run is None or run in taken.runs
            may.remove(notice)
            self.waiting.remove(notice)
        self.held.append(taken)


@pytest.mark.parametrize("part", range(5))
def test_the_queue_does_what_a_list_would(part):
    for seed in range(100 * part, 100 * part + 100):
        model = Model(seed)
        for _ in range(200):
            model.step()
        while model.held:
            model.inbox.release(model.held.pop().runs)
        while model.waiting:
            model.take(3)
            model.inbox.release(model.held.pop().runs)
        assert not model.inbox.take(1).notices
        assert not model.inbox.ready
