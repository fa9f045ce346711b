"""The state machine that drives the scripts and the model side by side.

The numbers in comments are those of the invariants that every policy engine on shared state has
to keep:

 1 admitted weight stays within the algorithm's bound    8 nothing passes an open circuit
 2 a refusal or a peek writes nothing                    9 quotas: 0 <= used <= limit, unless in debt
 3 retry_after is sound and minimal                     10 one permit, one charge
 4 generations rise, and only legal edges are taken     11 holders <= limit; releasing twice is a no-op
 5 a ticket settles at most once                        12 every key has a TTL; memory is bounded
 6 live probes <= ration                                13 a veto leaves no trace of those who admitted
 7 a half-open circuit is never stuck                   14 seq has no gaps; listeners agree with the store
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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

from stanchion import CircuitState, Decision, Event, Outcome, Permit, Verdict
from stanchion.policies import BuiltInPolicy
from stanchion.store.scripts import Script, ScriptName
from tests.model.circuit import Circuit
from tests.properties import decks
from tests.properties.ledger import Ledger, within_reason
from tests.properties.replay import Replay, Row, told_row, unknown_window
from tests.properties.rig import Asked, Call, Rig

MICROS = 1_000_000
STEPS = (
    st.integers(0, 5)
    | st.integers(1, 20 * MICROS)
    | st.sampled_from([1_000, 333_333, MICROS, 10 * MICROS, 60 * MICROS, 600 * MICROS])
    | st.sampled_from([3_600 * MICROS, 86_400 * MICROS])
)
LUCK = st.integers(0, MICROS - 1) | st.sampled_from([0, 10, 100_000, 550_000, 999_999])
WORKERS = st.sampled_from(["w1", "w2", "w3"])


class Objector:
    """A policy that is asked last, and vetoes when it is told to."""

    name = "objector"
    on = decks.Alpha.event_type, decks.Beta.event_type, decks.Gamma.event_type
    priority = 1000

    def __init__(self) -> None:
        self.objects = False

    async def evaluate(self, event: Event) -> Verdict:
        del event
        return Verdict(self.name, allowed=not self.objects, reason="objected")


class Machine(RuleBasedStateMachine):
    """Drives one deck of policies on one store. Subclasses say which."""

    deck: ClassVar[decks.Deck]
    url: ClassVar[str] = "memory://"
    scripts: ClassVar[Mapping[ScriptName, Script] | None] = None

    permits = Bundle("permits")

    @initialize(data=st.data())
    def start(self, data: Any) -> None:
        self.rig = Rig(self.url, scripts=self.scripts)
        self.replay = Replay()
        self.ledger = Ledger()
        self.objector = Objector()
        self.rig.bus.register(self.objector)
        self.names = tuple(self.deck)
        for name in self.names:
            self.rig.bus.register(data.draw(self.deck[name], label=name))
        self.forced: set[str] = set()

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
        self.ledger.feed(self.rig.now, calls)
        published = self.rig.published()
        subjects = self.replay.chain.subjects.items()
        self.ledger.hear(published, {key: subject.limit.spec for key, subject in subjects})
        expected = self.replay.chain.drain()
        assert [_read(event) for event in published] == [_read(event) for event in expected]
        return calls

    def _check(self, *events: Event) -> list[Decision]:
        before, kept = self.rig.snapshot(), self.replay.chain.kept
        decisions = self.rig.together(*(self.bus.check(event) for event in events))
        self._absorb()
        if self.replay.chain.kept == kept:
            # B3 2: a refusal leaves every byte as it was, unless a declaration has changed.
            assert self.rig.snapshot() == before, "a refusal was written down"
        for decision in decisions:
            assert decision.allowed == (decision.permit is not None)
        return decisions

    def _peek(self, *events: Event) -> list[Asked]:
        before = self.rig.snapshot()
        self.rig.together(*(self.bus.peek(event) for event in events))
        calls = [call for call in self._absorb() if isinstance(call, Asked)]
        # B3 2: peeking leaves every byte as it was.
        assert self.rig.snapshot() == before, "a peek was written down"
        return [call for call in calls if not unknown_window(call)]

    def _survey(self) -> list[Asked]:
        """Peek with every shape of event for every tenant."""
        return self._peek(
            *(shape(tenant=tenant) for shape in decks.SHAPES for tenant in decks.TENANTS)
        )

    def _circuits(self) -> dict[str, Circuit]:
        return self.replay.chain.circuits()

    # ---- rules: asking

    @rule(target=permits, data=st.data(), luck=LUCK)
    def check(self, data: Any, luck: int) -> Any:
        self.rig.store.luck = luck
        [decision] = self._check(data.draw(self._events()))
        return multiple() if decision.permit is None else decision.permit

    @rule(target=permits, data=st.data(), luck=LUCK)
    def check_several(self, data: Any, luck: int) -> Any:
        """Requests that travel in one call see what those before them took."""
        self.rig.store.luck = luck
        events = data.draw(st.lists(self._events(), min_size=2, max_size=4))
        decisions = self._check(*events)
        return multiple(*(d.permit for d in decisions if d.permit is not None))

    @rule(data=st.data(), luck=LUCK)
    def check_and_veto(self, data: Any, luck: int) -> None:
        """B3 13: what a later policy vetoes has cost nothing."""
        self.rig.store.luck = luck
        event = data.draw(self._events())
        before = self._rows(self._peek(event))
        self.objector.objects = True
        [decision] = self._check(event)
        self.objector.objects = False
        assert not decision.allowed
        self._settle_down()
        after = self._rows(self._peek(event))
        for key, row in before.items():
            # A circuit that was to be probed is half open now; its ration is whole again.
            if "}:circuit:" not in key:
                assert after[key] == row, f"{key}: {row} before the veto, {after[key]} after it"

    def _settle_down(self) -> None:
        """Wait for what is given back in the background."""

        async def returned() -> None:
            import asyncio

            if self.rig.store._returning:
                await asyncio.wait(self.rig.store._returning)

        self.rig.run(returned())
        self._absorb()

    def _rows(self, calls: list[Asked]) -> dict[str, Row]:
        return {
            op.key: told_row(reply)
            for call in calls
            for op, reply in zip(call.request.operations, call.reply.operations, strict=True)
        }

    @rule(data=st.data(), luck=LUCK)
    def retry_exactly(self, data: Any, luck: int) -> None:
        """B3 3: refused until retry_after has passed to the microsecond, admitted then."""
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
        share=st.none() | st.integers(0, 3 * decks.MOST),
        worker=WORKERS,
        luck=LUCK,
    )
    def settle(
        self, permit: Permit, outcome: Outcome, share: int | None, worker: str, luck: int
    ) -> None:
        """Settle, with or without the real cost; again, or late, as often as not."""
        self.rig.store.luck = luck
        self.rig.store.report_as(worker)
        names = sorted({name for hold in permit.holds for name, _, _ in hold.amounts})
        costs = {} if share is None else dict.fromkeys(names, share)
        self.rig.run(self.bus.settle(permit, outcome, **costs))
        self._absorb()

    @rule(permit=permits)
    def give_back(self, permit: Permit) -> None:
        """Undo an admission, settled or not, as a chain does that is vetoed late."""
        parts = tuple(
            self.bus._settler._part(hold, {}, Outcome.NEUTRAL) for hold in permit.holds
        )
        if parts:
            self.rig.run(self.rig.store.settle(permit.id, "undo", parts))
            self._absorb()

    @rule(permit=permits)
    def renew(self, permit: Permit) -> None:
        parts = self.bus._settler.parts(permit)
        if parts:
            self.rig.run(self.rig.store.renew(permit.id, parts))
            self._absorb()

    # ---- rules: time

    def _advance(self, us: int) -> None:
        for moment, key in self.rig.advance(us):
            if key in self.replay.chain.subjects:
                # B3 12: a TTL is never so short that something is forgotten too early.
                assert self.replay.chain.lapse(moment, key), f"{key} ended too early, at {moment}"
                self.ledger.forget(key)

    @rule(us=STEPS)
    def advance(self, us: int) -> None:
        self._advance(us)

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

    @precondition(lambda self: "provider" in self.names)
    @rule(state=st.sampled_from(CircuitState), tenant=st.sampled_from(decks.TENANTS))
    def force(self, state: CircuitState, tenant: str) -> None:
        self.rig.run(self.bus.force("provider", state, tenant=tenant))
        self._absorb()

    @precondition(lambda self: any(c.state == "half_open" for c in self._circuits().values()))
    @rule(luck=LUCK)
    def wait_for_probes(self, luck: int) -> None:
        """B3 7: when every probe has died, the next one is let through after a lease at most."""
        self.rig.store.luck = luck
        leases = [c.spec["lease"] for c in self._circuits().values()]
        self._advance(2 * max(leases))
        for call in self._survey():
            for op, reply in zip(call.request.operations, call.reply.operations, strict=True):
                assert reply.reason != "probes_in_use", f"{op.key} is stuck: {reply}"

    # ---- invariants

    @invariant()
    def agree(self) -> None:
        """Whatever was done, the scripts and the model give the same answers to everybody."""
        self._survey()

    @invariant()
    def keys_end(self) -> None:
        """B3 12: every key has a TTL, and no state grows with traffic."""
        assert not self.rig.immortal, f"{self.rig.immortal} never expire"
        for key, subject in self.replay.chain.subjects.items():
            fields = self.rig.stored(key)
            assert within_reason(fields, subject.limit.spec), f"{key} has grown: {fields}"

    @invariant()
    def quotas_are_whole(self) -> None:
        """B3 9: amounts are never negative."""
        for key in self.replay.chain.subjects:
            if "}:quota:" in key:
                fields = self.rig.stored(key)
                for name in ("used", "held", "carry"):
                    assert int(fields.get(name, "0")) >= 0, f"{key} {name}: {fields}"

    @invariant()
    def listeners_agree(self) -> None:
        """B3 14: whoever has heard everything knows the state."""
        for key, state in self.ledger.circuits():
            fields = self.rig.stored(key)
            assert state == (fields["forced"] or fields["state"]), f"{key}: {fields}"

    @invariant()
    def permits_are_charged_once(self) -> None:
        """B3 10: no permit is admitted twice; what was lost is never asked for again."""
        assert all(count == 1 for count in self.ledger.admitted.values())


def _read(event: Mapping[str, str]) -> dict[str, Any]:
    """Get an event with its shares as numbers: 0.8 has more than one spelling."""
    return {
        name: float(value) if name == "threshold" else value for name, value in event.items()
    }


def machine(deck: decks.Deck, **fields: Any) -> type[Machine]:
    """Get a machine for a deck."""
    return type("TestedMachine", (Machine,), {"deck": deck, **fields})


alone = {name: partial(machine, deck) for name, deck in decks.ALONE.items()}
together = partial(machine, decks.TOGETHER)
__all__ = ["BuiltInPolicy", "Machine", "alone", "machine", "together"]
