"""What the machine once found, each as the shortest course of events that shows it."""

from collections.abc import Iterator

import pytest

from stanchion import CircuitBreaker, Decision, Mode, OnChange, Outcome, Quota, RateLimit
from stanchion.policies import Algorithm, BuiltInPolicy
from tests.properties.decks import MICROS, Alpha
from tests.properties.rig import Rig

EVENT = Alpha(tenant="t1")


@pytest.fixture
def rig(store_url: str) -> Iterator[Rig]:
    with Rig(store_url) as rig:
        yield rig


def declare(rig: Rig, policy: BuiltInPolicy) -> None:
    if any(known.name == policy.name for known in rig.bus.policies):
        rig.bus.unregister(policy.name)
    rig.bus.register(policy)


def check(rig: Rig) -> Decision:
    decision = rig.run(rig.bus.check(EVENT))
    rig.calls()
    return decision


def test_a_log_whose_window_was_lengthened_keeps_its_entries_until_they_leave(rig: Rig) -> None:
    def log(per: float) -> RateLimit:
        return RateLimit(name="calls", on=Alpha, limit=1, per=per, algorithm=Algorithm.SLIDING_LOG)

    declare(rig, log(1.0))
    assert check(rig)
    # What is refused is entered nowhere, but puts the new declaration into force.
    declare(rig, log(60.0))
    assert not check(rig)
    rig.advance(59 * MICROS)
    assert not check(rig)
    # The set of entries ended with the first window, and its sum never went down again.
    rig.advance(1 * MICROS)
    assert check(rig)


def test_what_is_reserved_in_a_window_that_was_lengthened_can_be_settled(rig: Rig) -> None:
    def quota(per: float) -> Quota:
        return Quota(name="calls", on=Alpha, limit=1, per=per, lease=600.0)

    declare(rig, quota(1.0))
    decision = check(rig)
    assert decision.permit is not None
    declare(rig, quota(3600.0))
    assert not check(rig)
    rig.advance(30 * MICROS)
    assert rig.run(rig.bus.settle(decision.permit, calls=0))
    assert check(rig)


def test_a_quota_that_only_watches_has_nothing_charged_twice_when_clocks_differ(rig: Rig) -> None:
    # The rig's time is not this machine's, so the first request brings windows of another month.
    rig.bus.register(Quota(name="month", on=Alpha, limit=5, per="month", mode=Mode.SHADOW))
    rig.bus.register(RateLimit(name="calls", on=Alpha, limit=2, per=60.0))
    assert check(rig)
    assert check(rig)
    assert not check(rig)


def test_a_limit_that_is_scaled_is_not_a_microsecond_behind_for_rounding(rig: Rig) -> None:
    def rate(limit: int) -> RateLimit:
        return RateLimit(name="calls", on=Alpha, limit=limit, per=3.0, on_change=OnChange.SCALE)

    declare(rig, rate(1))
    assert check(rig)
    rig.advance(1)
    declare(rig, rate(5))
    assert check(rig).retry_after == pytest.approx(0.599_999, abs=1e-7)


def test_a_settlement_is_remembered_as_long_as_it_was_to_be_when_it_was_made(rig: Rig) -> None:
    def rate(per: float) -> RateLimit:
        fixed = Algorithm.FIXED_WINDOW
        return RateLimit(name="calls", on=Alpha, limit=10, per=per, algorithm=fixed)

    def settle(decision: Decision) -> bool:
        assert decision.permit is not None
        done = bool(rig.run(rig.bus.settle(decision.permit, calls=3)))
        rig.calls()
        return done

    # That of a window of an hour lives for two hours, that of one of a second for one.
    declare(rig, rate(3600.0))
    first = check(rig)
    assert settle(first)
    declare(rig, rate(1.0))
    assert settle(check(rig))
    for _ in range(3):
        rig.advance(30 * 60 * MICROS)
        assert check(rig)
    assert not settle(first)


def test_a_reset_does_not_count_a_subject_of_which_only_marks_are_left(rig: Rig) -> None:
    window = Algorithm.SLIDING_WINDOW
    declare(rig, RateLimit(name="calls", on=Alpha, limit=10, per=3600.0, algorithm=window))
    decision = check(rig)
    assert decision.permit is not None
    assert rig.run(rig.bus.settle(decision.permit, calls=0))
    rig.calls()
    # What was settled is remembered for two hours, an empty window for one.
    rig.advance(90 * 60 * MICROS)
    assert rig.run(rig.bus.reset("calls")) == 0
    assert rig.published() == []


def test_a_window_of_calls_that_was_shortened_forgets_the_calls_before(rig: Rig) -> None:
    def breaker(calls: int) -> CircuitBreaker:
        return CircuitBreaker(
            name="calls", on=Alpha, failure_rate=0.5, minimum_calls=2, window=calls
        )

    def work(outcome: Outcome) -> None:
        decision = check(rig)
        assert decision.permit is not None
        rig.run(rig.bus.settle(decision.permit, outcome))
        rig.calls()

    declare(rig, breaker(10))
    for letter in "ssfsss":
        work(Outcome.SUCCESS if letter == "s" else Outcome.FAILURE)
    declare(rig, breaker(2))
    assert check(rig)
    # As long again as it was, it holds two successes, and what comes now.
    declare(rig, breaker(10))
    work(Outcome.FAILURE)
    assert check(rig)
    work(Outcome.FAILURE)
    assert not check(rig)
