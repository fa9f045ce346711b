"""What a worker does: every verb of a bus, over and over, each written down."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from stanchion import Decision, Outcome, Permit, StoreUnavailable, Vetoed
from tests.soak.journal import Line, now_us
from tests.soak.load import (
    DEADLINE,
    KINDS,
    LEASE,
    MICROS,
    SUBJECTS,
    UNDER,
    UNWANTED,
    VICTIM,
    Asked,
    Noted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime
    from random import Random

    from stanchion import EventBus
    from tests.soak.journal import Journal

TYPES = (*KINDS, *["soak:plenty"] * 6, *["soak:chain"] * 3, *["soak:held"] * 2)
#: The provider of the circuits fails for a while in every so many seconds.
FAILS_FOR, FAILS_EVERY = 2, 6
#: Longest hold: over twice the lease, so that it has to be renewed.
LONG = 2.2 * LEASE


def micros_of(moment: datetime | None) -> int:
    return round(moment.timestamp() * MICROS) if moment else 0


class Player:
    """Does deeds, one after another in each of several tasks."""

    def __init__(
        self, bus: EventBus, journal: Journal, rng: Random, late_since: Callable[[int], int]
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._rng = rng
        self._late_since = late_since
        self._numbers = itertools.count()
        self._under_way: set[asyncio.Task[None]] = set()
        self._over = False
        self.calls = 0

    def cancel_all(self) -> None:
        """Cancel everything that is under way."""
        for task in self._under_way:
            task.cancel()

    async def play(self, over: asyncio.Event, pause: float) -> None:
        """Do one deed after another until it is over; what is under way then is finished."""
        deeds = (
            *[self._check_and_settle] * 12,
            *[self._guard] * 3,
            *[self._wait_in_line] * 2,
            *[self._hold_long] * 1,
            *[self._cancelled] * 2,
            *(self._peek, self._notify, self._garbled, self._walk),
        )
        while not over.is_set():
            deed = self._rng.choice(deeds)
            task = asyncio.create_task(deed())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                self._journal.wrong(f"{deed.__name__} raised {error!r}")
            self._over = over.is_set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rng.expovariate(1 / pause)):
                    await over.wait()

    # ------------------------------------------------------------------------------- deeds

    async def _check_and_settle(self) -> None:
        event = self._event()
        number, decision = await self._check(event)
        if decision.permit is not None:
            await self._work(short=True)
            await self._settle(number, decision.permit, event)

    async def _guard(self) -> None:
        """A block under a guard, which sometimes fails."""
        event = self._event()
        number, fails = self._ask(event), self._fails(event)
        permit, began = None, now_us()
        with contextlib.suppress(ZeroDivisionError):
            async with self._admitted(number, event, 0.0) as permit:
                if permit is None:
                    return
                await self._work(short=True)
                actual = self._rng.randint(0, event.tokens)
                if any(name == "tokens" for hold in permit.holds for name, _, _ in hold.amounts):
                    permit.charge(tokens=actual)
                self._journal.write(Line.SETTLES, number, began := now_us(), actual)
                if fails:
                    raise ZeroDivisionError
        self._journal.write(Line.SETTLED, number, now_us(), None)
        self._answered("guard's exit", began, DEADLINE)

    async def _wait_in_line(self) -> None:
        event = self._event(self._rng.choice(["soak:held", "soak:held", "soak:chain", "soak:gcra"]))
        wait, number = self._rng.choice([0.2, 1.0, 2.0]), self._ask(event)
        async with self._admitted(number, event, wait) as permit:
            if permit is not None:
                await self._work(short=True)
                self._journal.write(Line.SETTLES, number, now_us(), event.tokens)
        if permit is not None:
            self._journal.write(Line.SETTLED, number, now_us(), None)

    async def _hold_long(self) -> None:
        """Hold a slot for longer than its lease, and renew it by hand."""
        event = self._event("soak:held")
        number, decision = await self._check(event)
        if decision.permit is None:
            return
        permit, ends = decision.permit, now_us() + int(self._rng.random() * LONG * MICROS)
        while now_us() < ends and not permit.lost and not self._over:
            await asyncio.sleep(min(LEASE / 4, max(0.0, (ends - now_us()) / MICROS)))
            began = now_us()
            try:
                kept = await self._bus.renew(permit)
            except StoreUnavailable:
                kept = False
            self._answered("renew", began, DEADLINE)
            if kept:
                self._journal.write(Line.RENEWED, number, began)
        await self._settle(number, permit, event)

    async def _cancelled(self) -> None:
        """Cancel a call of any kind at any moment."""
        deed = self._rng.choice([self._check_and_settle, self._guard, self._wait_in_line])
        task = asyncio.create_task(deed())
        self._under_way.add(task)
        await asyncio.wait([task], timeout=self._rng.choice([0, 0.0005, 0.001, 0.003, 0.01, 0.1]))
        task.cancel()
        await asyncio.wait([task])
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._journal.wrong(f"{deed.__name__}, cancelled, raised {error!r}")

    async def _peek(self) -> None:
        event = self._event()
        began = now_us()
        decision = await self._bus.peek(event)
        self._answered("peek", began, DEADLINE)
        self._judge(event, decision)

    async def _notify(self) -> None:
        began = now_us()
        for number in range(20):
            self._bus.notify(Noted(number=number))
        self._answered("notify", began, 0.0)

    async def _garbled(self) -> None:
        """Ask about the subject whose state a fault breaks; it may be vetoed for that."""
        event = KINDS["soak:plenty"](who=VICTIM)
        began = now_us()
        decision = await self._bus.check(event)
        self._answered("check", began, DEADLINE, decision.reason)
        if decision.permit is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._bus.settle(decision.permit)

    async def _walk(self) -> None:
        """Look at the state of one policy."""
        began = now_us()
        try:
            async for state in self._bus.inspect(self._rng.choice(["p-budget", "held", "gcra"])):
                self._answered("inspect", began, 2 * DEADLINE)
                if state.error is not None and state.subject != VICTIM:
                    self._journal.write(Line.CORRUPT, now_us(), f"{state.key}: {state.error}")
                began = now_us()
        except StoreUnavailable:
            self._answered("inspect", began, 2 * DEADLINE)

    # ------------------------------------------------------------------------------- verbs

    def _event(self, kind: str = "") -> Asked:
        made = KINDS[kind or self._rng.choice(TYPES)]
        return made(
            who=self._rng.choice(SUBJECTS),
            tokens=self._rng.randint(1, 3),
            unwanted=self._rng.random() < 0.15,
        )

    def _ask(self, event: Asked) -> int:
        number = next(self._numbers)
        self._journal.write(
            *(Line.ASKS, number, now_us(), event.id, event.event_type),
            *(event.who, event.tokens, event.unwanted),
        )
        self.calls += 1
        return number

    async def _check(self, event: Asked) -> tuple[int, Decision]:
        number, began = self._ask(event), now_us()
        try:
            decision = await self._bus.check(event)
        except BaseException as error:
            self._journal.write(Line.DOUBT, number, now_us(), type(error).__name__)
            raise
        self._decided(number, decision)
        self._answered("check", began, DEADLINE, decision.reason, number)
        self._judge(event, decision)
        return number, decision

    @contextlib.asynccontextmanager
    async def _admitted(
        self, number: int, event: Asked, wait: float
    ) -> AsyncIterator[Permit | None]:
        """Enter a guard, or get None where it was vetoed."""
        verb = "admit, waiting" if wait else "guard"
        guard, began = self._bus.guard(event, wait), now_us()
        try:
            permit = await guard.__aenter__()
        except Vetoed as veto:
            self._decided(number, veto.decision)
            self._answered(verb, began, wait + DEADLINE, veto.decision.reason, number)
            self._judge(event, veto.decision)
            yield None
            return
        except BaseException as error:
            self._journal.write(Line.DOUBT, number, now_us(), type(error).__name__)
            raise
        self._journal.write(
            *(Line.DECIDED, number, now_us(), True, None, None),
            *(permit.admitted_us, permit.id, _holds(permit)),
        )
        self._answered(verb, began, wait + DEADLINE)
        if event.unwanted and self._is_whimsical(event):
            self._journal.wrong(f"what the custom policy vetoes was admitted: {event!r}")
        try:
            yield permit
        except BaseException as error:
            # From here on nothing is certain of it, and it may be another's.
            charged = permit.charges.get("tokens", 0)
            self._journal.write(Line.SETTLES, number, now_us(), charged)
            if not await guard.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await guard.__aexit__(None, None, None)

    async def _settle(self, number: int, permit: Permit, event: Asked) -> None:
        """Settle, and where nobody answered once more: it is idempotent."""
        actual = self._rng.randint(0, event.tokens)
        outcome = Outcome.FAILURE if self._fails(event) else Outcome.SUCCESS
        counted = any(name == "tokens" for hold in permit.holds for name, _, _ in hold.amounts)
        costs = {"tokens": actual} if counted else {}
        for _ in range(3):
            began = now_us()
            self._journal.write(Line.SETTLES, number, began, actual)
            try:
                settlement = await self._bus.settle(permit, outcome, **costs)
            except StoreUnavailable:
                self._journal.write(Line.SETTLED, number, now_us(), None)
                self._answered("settle", began, DEADLINE)
                await asyncio.sleep(0.05)
                continue
            self._journal.write(Line.SETTLED, number, now_us(), dict(settlement.statuses))
            self._answered("settle", began, DEADLINE)
            break
        else:
            return
        if self._rng.random() < 0.2:
            await self._settle_again(permit, costs, settlement.statuses)

    async def _settle_again(
        self, permit: Permit, costs: Mapping[str, int], before: Mapping[str, str]
    ) -> None:
        with contextlib.suppress(StoreUnavailable):
            again = await self._bus.settle(permit, Outcome.SUCCESS, **costs)
            # A rate forgets what changed nothing; of a reservation or a lease nothing may be left.
            held = [hold for hold in permit.holds if hold.expires_us and not hold.chunk]
            for hold in held:
                if before.get(hold.policy) == again.statuses.get(hold.policy) == "settled":
                    self._journal.wrong(f"{hold.policy} settled {permit.id} twice")

    def _fails(self, event: Asked) -> bool:
        moment = now_us() / MICROS
        phase = 0 if event.who == SUBJECTS[0] else FAILS_EVERY / 2
        failing = (moment + phase) % FAILS_EVERY < FAILS_FOR
        return failing and event.event_type in {"soak:provider", "soak:chain"}

    async def _work(self, *, short: bool) -> None:
        await asyncio.sleep(self._rng.expovariate(20) if short else self._rng.random() * LONG)

    # ------------------------------------------------------------------------- writing down

    def _decided(self, number: int, decision: Decision) -> None:
        permit = decision.permit
        at = micros_of(decision.decided_at) if permit is None else permit.admitted_us
        self._journal.write(
            *(Line.DECIDED, number, now_us(), decision.allowed, decision.reason, decision.policy),
            *(at, permit.id if permit else None, _holds(permit) if permit else []),
        )

    def _answered(
        self,
        verb: str,
        began: int,
        bound: float,
        reason: str | None = None,
        number: int | None = None,
    ) -> None:
        took, late = now_us() - began, self._late_since(began)
        self._journal.write(
            *(Line.ANSWERED, verb, began, took, int(bound * MICROS), late, reason, number)
        )

    @staticmethod
    def _is_whimsical(event: Asked) -> bool:
        return "whim" in UNDER[event.event_type]

    def _judge(self, event: Asked, decision: Decision) -> None:
        """See that the answer is one to this event."""
        strangers = {verdict.policy for verdict in decision.verdicts} - UNDER[event.event_type]
        if strangers:
            self._journal.wrong(f"{event!r} was answered by {sorted(strangers)}")
        if decision.allowed and event.unwanted and self._is_whimsical(event):
            self._journal.wrong(f"what the custom policy vetoes was admitted: {event!r}")
        if decision.reason == UNWANTED and not event.unwanted:
            self._journal.wrong(f"vetoed for a whim that nobody has: {event!r}")


def _holds(permit: Permit) -> list[Any]:
    return [
        (
            *(hold.policy, hold.subject, hold.reserved, hold.expires_us),
            *(hold.local, hold.chunk, hold.numbers[0] if hold.numbers else 0),
        )
        for hold in permit.holds
    ]
