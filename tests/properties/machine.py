"""The state machine that drives the scripts and the model side by side.

Whatever is asked, the scripts and the model have to give the same answers. Beyond that, these hold,
checked without the model where that can be; the numbers are those in comments here and in ledger:

 1 what is admitted stays within the bound that its algorithm states
 2 a refusal writes nothing, unless a declaration has changed or it is what notices that everything
   has been lost; a peek never does
 3 retry_after is sound and minimal: refused 1 us before it, admitted at it
 4 generations rise by one with each transition, and only legal edges are taken
 5 a ticket settles at most once; one of another generation changes nothing
 6 live probes are within the ration; granted = settled + given back + expired + live
 7 a half-open circuit is never stuck: at the latest when every lease has ended, a probe may pass
 8 nothing passes an open circuit; its pause is at least what was asked for, and at most the cap
 9 no amount that is stored is ever negative; quotas admit no more than is left
10 one permit is charged once; settling it again in the same way changes not a byte
11 holders of slots are within the limit; releasing twice changes nothing
12 every key has a TTL, none too short; states are as large as their declaration, not their traffic
13 a veto leaves no trace of those who admitted, and their order is of no account
14 seq has no gaps; whoever listened, or looks into the index, agrees with the store
15 a policy has state of no more subjects than it says, and an index of just these
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from stanchion import CircuitState, Decision, Event, Outcome, Permit
from stanchion.store.scripts import Scripts
from tests.properties import decks
from tests.properties.ledger import Ledger, within_reason
from tests.properties.replay import Replay, Row, told_row, unknown_window
from tests.properties.rig import Asked, Call, Forced, Rig, Settled, Snapshot

MICROS = 1_000_000
HOUR = 3_600 * MICROS
DAY = 24 * HOUR


class Machine(RuleBasedStateMachine):
    """Drives one deck of policies on one store. Subclasses say which."""

    deck: ClassVar[decks.Deck]
    url: ClassVar[str] = "memory://"
    scripts: ClassVar[Scripts | None] = None

    permits = Bundle("permits")

    @initialize(data=st.data())
    def start(self, data: Any) -> None:
        self.rig = Rig(self.url, scripts=self.scripts)
        self.replay = Replay()
        self.ledger = Ledger()
        self.objector = decks.Objector()
        self.rig.bus.register(self.objector)
        self.names = tuple(self.deck)
        self.rig.greet()
        for name in data.draw(st.permutations(self.names), label="order"):
            self.rig.bus.register(data.draw(self.deck[name], label=name))

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()

    # ---- helpers

    @property
    def bus(self) -> Any:
        return self.rig.bus

    def _events(self) -> Any:
        return decks.events(self.names)

    def _absorb(self) -> list[Call]:
        """Hold what was just asked, and what was published, against the model and the ledger."""
        calls = self.rig.calls()
        self.replay.feed(self.rig.now, calls)
        self.ledger.feed(calls, self.rig.written_at)
        published = self.rig.published()
        subjects = self.replay.chain.subjects.items()
        specs = {key: subject.limit.spec for key, subject in subjects}
        forced = {call.key for call in calls if isinstance(call, Forced)}
        self.ledger.hear(published, specs, forced)
        self.replay.hear(published)
        return calls

    def _states(self) -> Snapshot:
        epoch = self.rig.keyspace.epoch
        return {key: value for key, value in self.rig.snapshot().items() if key != epoch}

    def _check(self, *events: Event) -> list[Decision]:
        before, kept = self._states(), self.replay.chain.kept
        decisions = self.rig.together(*(self.bus.check(event) for event in events))
        self._absorb()
        if self.replay.chain.kept == kept:
            # 2: a refusal leaves every byte as it was, unless a declaration has changed; but that
            # everything has been lost is written down by whoever meets it first.
            assert self._states() == before, "a refusal was written down"
        for decision in decisions:
            assert decision.allowed == (decision.permit is not None)
        return decisions

    def _peek(self, *events: Event) -> list[Asked]:
        before = self.rig.snapshot()
        self.rig.together(*(self.bus.peek(event) for event in events))
        calls = [call for call in self._absorb() if isinstance(call, Asked)]
        # 2: peeking leaves every byte as it was.
        assert self.rig.snapshot() == before, "a peek was written down"
        return [call for call in calls if not unknown_window(call)]

    def _survey(self) -> list[Asked]:
        """Peek with every shape of event for every tenant."""
        return self._peek(
            *(shape(tenant=tenant) for shape in decks.SHAPES for tenant in decks.TENANTS)
        )

    # ---- rules: asking

    @rule(target=permits, data=st.data(), luck=decks.LUCK)
    def check(self, data: Any, luck: int) -> Any:
        self.rig.store.luck = luck
        [decision] = self._check(data.draw(self._events()))
        return multiple() if decision.permit is None else decision.permit

    @rule(target=permits, data=st.data(), luck=decks.LUCK)
    def check_several(self, data: Any, luck: int) -> Any:
        """Requests that travel in one call see what those before them took."""
        self.rig.store.luck = luck
        events = data.draw(st.lists(self._events(), min_size=2, max_size=4))
        decisions = self._check(*events)
        return multiple(*(d.permit for d in decisions if d.permit is not None))

    @rule(data=st.data(), luck=decks.LUCK)
    def check_and_veto(self, data: Any, luck: int) -> None:
        """(13) What a later policy vetoes has cost nothing."""
        self.rig.store.luck = luck
        event = data.draw(self._events())
        before = self._rows(self._peek(event))
        self._veto([event], {event.id})
        after = self._rows(self._peek(event))
        for key, row in before.items():
            # A circuit that was to be probed is half open now; its ration is whole again.
            if "}:circuit:" not in key:
                assert after[key] == row, f"{key}: {row} before the veto, {after[key]} after it"

    @rule(
        target=permits,
        data=st.data(),
        objects=st.lists(st.booleans(), min_size=2, max_size=4),
        luck=decks.LUCK,
    )
    def check_several_and_veto(self, data: Any, objects: list[bool], luck: int) -> Any:
        """(13) Not either where it travels with others, whatever becomes of them."""
        self.rig.store.luck = luck
        self._advance(1)
        events = [data.draw(self._events()) for _ in objects]
        pairs = zip(events, objects, strict=True)
        decisions = self._veto(events, {event.id for event, objected in pairs if objected})
        return multiple(*(d.permit for d in decisions if d.permit is not None))

    def _veto(self, events: list[Event], objects: set[str]) -> list[Decision]:
        before, final = self._contents(), self.replay.final
        stopped = any(s.written_at >= self.rig.now for s in self.replay.chain.subjects.values())
        self.objector.objects, self.replay.in_vain = frozenset(objects), True
        try:
            decisions = self.rig.together(*(self.bus.check(event) for event in events))
            self._settle_down()
            vetoed = [call for call in self._absorb() if isinstance(call, Settled)]
            in_vain = not any(decisions) and self.replay.final == final
            if in_vain:
                after = self._contents()
                differ = {
                    key: (before.get(key), after.get(key))
                    for key in before.keys() | after.keys()
                    if before.get(key) != after.get(key)
                }
                assert not differ, f"what was vetoed is left behind: {differ}"
            # 10: what is undone is undone; an undo that leaves no mark, until others write, and
            # where they have before, only if time has passed between.
            for call in vetoed if len(events) == 1 or (in_vain and not stopped) else ():
                settle = self.rig.store.settle(call.permit, call.outcome, call.parts)
                undone = self.rig.snapshot()
                self.rig.run(settle)
                self._absorb()
                assert self.rig.snapshot() == undone, "a second undo was written down"
        finally:
            self.objector.objects, self.replay.in_vain = frozenset(), False
        return decisions

    def _contents(self) -> dict[str, bytes]:
        contents = {key: found for key, (found, _) in self._states().items()}
        # A state that stays keeps the life that the admission gave it, and its index says so.
        for policy, subjects in self.rig.indexed().items():
            names = sorted(subject for subject, end in subjects.items() if end > self.rig.now)
            del contents[self.rig.keyspace.subjects(policy)]
            if names:
                contents[policy] = repr(names).encode()
        return contents

    def _settle_down(self) -> None:
        """Wait for what is given back in the background."""

        async def returned() -> None:
            if self.rig.store._returning:
                await asyncio.wait(self.rig.store._returning)

        self.rig.run(returned())

    def _rows(self, calls: list[Asked]) -> dict[str, Row]:
        return {
            op.key: told_row(reply)
            for call in calls
            for op, reply in zip(call.request.operations, call.reply.operations, strict=True)
        }

    @rule(data=st.data(), luck=decks.LUCK)
    def retry_exactly(self, data: Any, luck: int) -> None:
        """(3) Refused until retry_after has passed to the microsecond, admitted then."""
        self.rig.store.luck = luck
        event = data.draw(self._events())
        # Peeking alone would not put a changed declaration into force.
        [decision] = self._check(event)
        if decision.allowed:
            return
        [call] = self._peek(event) or [None]
        if call is None:
            return
        wait = self._wait(call)
        if wait is None:
            return
        us, exact = wait
        if us > 1:
            self._advance(us - 1)
            [early] = self._peek(event)
            assert not early.reply.admitted, f"admitted 1 us before retry_after of {us} us"
            us = 1
        self._advance(us)
        [late] = self._peek(event)
        assert late.reply.admitted or not exact, f"refused after retry_after of {us} us"

    def _wait(self, call: Asked) -> tuple[int, bool] | None:
        """Get how long the scripts said to wait, and whether the model holds that to be exact."""
        outcomes = self.replay.asked(self.rig.now, call)
        longest, exact = 0, True
        for op, reply, outcome in zip(
            call.request.operations, call.reply.operations, outcomes, strict=True
        ):
            if not outcome.answer.ok and not op.shadow:
                if reply.wait_us < 0:
                    return None
                longest, exact = max(longest, reply.wait_us), exact and outcome.answer.exact
        return longest, exact

    # ---- rules: settling

    @rule(
        permit=permits,
        outcome=st.sampled_from(Outcome),
        share=decks.SHARES,
        worker=decks.WORKERS,
        luck=decks.LUCK,
    )
    def settle(
        self, permit: Permit, outcome: Outcome, share: int | None, worker: str, luck: int
    ) -> None:
        """Settle, with or without the real cost; again, or long after, as often as not."""
        self.rig.store.luck = luck
        self.rig.store.report_as(worker)
        names = sorted({name for hold in permit.holds for name, _, _ in hold.amounts})
        costs = {} if share is None else dict.fromkeys(names, share)
        self._twice(lambda: self.bus.settle(permit, outcome, **costs))

    @rule(
        target=permits,
        data=st.data(),
        ends=st.lists(st.tuples(st.sampled_from(Outcome), decks.SHARES), min_size=1, max_size=4),
        worker=decks.WORKERS,
        luck=decks.LUCK,
    )
    def work(
        self, data: Any, ends: list[tuple[Outcome, int | None]], worker: str, luck: int
    ) -> Any:
        """Run one piece of work after the other, each from its admission to its settlement."""
        permits: list[Permit] = []
        for outcome, share in ends:
            self.rig.store.luck = luck
            event = data.draw(self._events())
            [decision] = self._check(event)
            self._pass_in_part(event, data.draw(st.sampled_from([0, 1, 2, 4, 8, 9])))
            if decision.permit is not None:
                self.settle(decision.permit, outcome, share, worker, luck)
                permits.append(decision.permit)
        return multiple(*permits)

    @rule(permit=permits, late=decks.SELDOM)
    def give_back(self, permit: Permit, late: bool) -> None:
        """Undo an admission, settled or not, as a chain does that is vetoed late."""
        if late:
            self._outlast(permit)
        settler = self.bus._parts.settler
        parts = tuple(settler._part(hold, {}, Outcome.NEUTRAL) for hold in permit.holds)
        if parts:
            self._twice(lambda: self.rig.store.settle(permit.id, "undo", parts))

    def _outlast(self, permit: Permit) -> None:
        """Let time pass until the moment at which the first lease ends that is held."""
        ends = [hold.expires_us for hold in permit.holds if hold.expires_us > self.rig.now]
        if ends:
            self._advance(min(ends) - self.rig.now)

    def _twice(self, settle: Callable[[], Awaitable[Any]]) -> None:
        self.rig.run(settle())
        self._absorb()
        settled = self.rig.snapshot()
        self.rig.run(settle())
        self._absorb()
        # 5, 10, 11: what is settled is settled.
        assert self.rig.snapshot() == settled, "a second settlement was written down"

    @rule(permit=permits, late=decks.SELDOM)
    def renew(self, permit: Permit, late: bool) -> None:
        if late:
            self._outlast(permit)
        parts = self.bus._parts.settler.parts(permit)
        if parts:
            self.rig.run(self.rig.store.renew(permit.id, parts))
            self._absorb()

    # ---- rules: time

    def _advance(self, us: int) -> None:
        for moment, key in self.rig.advance(us):
            if key in self.replay.chain.subjects:
                # 12: a TTL is never so short that something is forgotten too early.
                assert self.replay.chain.lapse(moment, key), f"{key} ended too early, at {moment}"
                self.ledger.forget(key)

    @rule(us=decks.STEPS)
    def advance(self, us: int) -> None:
        self._advance(us)

    @rule(data=st.data(), eighths=st.integers(1, 9))
    def advance_in_part(self, data: Any, eighths: int) -> None:
        """Let a part of the time pass after which nothing that is used now counts any more."""
        self._pass_in_part(data.draw(self._events()), eighths)

    def _pass_in_part(self, event: Event, eighths: int) -> None:
        calls = self._peek(event)
        longest = max(
            (reply.reset_us for call in calls for reply in call.reply.operations), default=0
        )
        self._advance(max(0, longest) * eighths // 8)

    @rule(us=st.integers(1, 5 * MICROS))
    def step_back(self, us: int) -> None:
        """A replica whose clock is behind takes over."""
        self.rig.step_back(us)

    # ---- rules: operating

    @rule(data=st.data())
    def reconfigure(self, data: Any) -> None:
        """Declare a policy anew, its name the same."""
        # States are told apart by the moment at which they were made.
        self._advance(1)
        name = data.draw(st.sampled_from(self.names))
        policy = data.draw(self.deck[name], label=name)
        self.bus.unregister(name)
        self.bus.register(policy)

    @rule(data=st.data(), tenant=st.sampled_from(decks.TENANTS))
    def reset(self, data: Any, tenant: str) -> None:
        self._advance(1)
        name = data.draw(st.sampled_from(self.names))
        self.rig.run(self.bus.reset(name, tenant=tenant))
        self._absorb()

    @rule(really=decks.SELDOM)
    def lose_everything(self, really: bool) -> None:
        """Be a server that comes back empty; all are as their declarations say for that."""
        if not really:
            return
        # States are told apart by the moment at which they were made.
        self._advance(1)
        for key in list(self.replay.chain.subjects):
            self.ledger.forget(key)
        self.rig.lose_everything()
        self.replay.chain.lose_everything()

    @rule()
    def greet(self) -> None:
        """Find out, beside all decisions, whether anything was lost."""
        self.rig.greet()
        self.replay.chain.greet(self.rig.now)

    @precondition(lambda self: "provider" in self.names)
    @rule(state=st.sampled_from(CircuitState), tenant=st.sampled_from(decks.TENANTS))
    def force(self, state: CircuitState, tenant: str) -> None:
        self.rig.run(self.bus.force("provider", state, tenant=tenant))
        self._absorb()

    @precondition(lambda self: self._probes())
    @rule(luck=decks.LUCK)
    def wait_for_probes(self, luck: int) -> None:
        """(7) When every probe has died, the next one is let through as the last lease ends."""
        self.rig.store.luck = luck
        self._advance(max(0, max(self._probes()) - self.rig.now))
        for call in self._survey():
            for op, reply in zip(call.request.operations, call.reply.operations, strict=True):
                assert reply.reason != "probes_in_use", f"{op.key} is stuck: {reply}"

    def _probes(self) -> list[int]:
        """Get when the leases of probes end."""
        circuits = self.replay.chain.circuits().values()
        half_open = [circuit for circuit in circuits if circuit.state == "half_open"]
        return [ticket.until for circuit in half_open for ticket in circuit.tickets.values()]

    # ---- invariants

    @invariant()
    def agree(self) -> None:
        """Whatever was done, the scripts and the model give the same answers to everybody."""
        self._survey()

    @invariant()
    def states_are_sound(self) -> None:
        """(9, 12) No amount is below zero, no key without an end, no state grows with traffic."""
        assert not self.rig.immortal, f"{self.rig.immortal} never expire"
        for key, subject in self.replay.chain.subjects.items():
            fields = self.rig.stored(key)
            below = {name: value for name, value in fields.items() if value.startswith("-")}
            assert not below, f"{key}: {below}"
            assert within_reason(fields, subject.limit.spec), f"{key} has grown: {fields}"

    @invariant()
    def indexes_are_complete(self) -> None:
        """(15) Who has state where a policy says how many may is in its index, and nobody else."""
        subjects = self.replay.chain.subjects
        bounded = [key for key, one in subjects.items() if "max_subjects" in one.limit.spec]
        stored = {self.rig.policy_of(key) for key in bounded}
        listed = {
            (policy, subject)
            for policy, ends in self.rig.indexed().items()
            for subject, end in ends.items()
            if end > self.rig.now
        }
        assert listed == stored, f"{listed} in the index, {stored} in the store"

    @invariant()
    def leases_add_up(self) -> None:
        """(6, 11) What was granted and neither settled, given back nor expired is what is live."""
        for key, subject in self.replay.chain.subjects.items():
            leases = subject.limit.leases_at(max(self.rig.now, subject.written_at))
            if leases is not None:
                live = self.rig.live(key, max(self.rig.now, subject.written_at))
                assert live == leases, f"{key}: {live} are live, not {leases}"

    @invariant()
    def listeners_agree(self) -> None:
        """(14) Whoever has heard everything knows the state; whoever has not can look it up."""
        circuits = dict(self.ledger.circuits())
        index = self.rig.changed_circuits() if circuits else {}
        for key, view in circuits.items():
            fields = self.rig.stored(key)
            assert view.state == (fields["forced"] or fields["state"]), f"{key}: {fields}"
            recent = view.at > self.rig.now - DAY + HOUR
            assert index.get(key) == view.at or not recent, f"{key}: {view}, {index}"

    @invariant()
    def permits_are_charged_once(self) -> None:
        """(10) No permit is admitted twice; what was lost is never asked for again."""
        twice = [permit for permit, count in self.ledger.admitted.items() if count > 1]
        assert not twice, f"admitted more than once: {twice}"
