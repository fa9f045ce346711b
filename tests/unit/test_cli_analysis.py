"""The demo's arithmetic: stamps, amounts and intervals held against limits."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanchion.cli.demo.analysis.circuits import phases
from stanchion.cli.demo.analysis.clocks import offset_us
from stanchion.cli.demo.analysis.overlap import most_at_once
from stanchion.cli.demo.analysis.quotas import Spent, windows
from stanchion.cli.demo.analysis.rates import fullest_period, measure
from stanchion.cli.demo.analysis.tally import tally, totals
from stanchion.cli.demo.records import Asked, Heard
from stanchion.decisions import CircuitState, Signal

SECOND = 1_000_000


def asked(number=0, **fields):
    known = {
        "call": str(number),
        "event": "llm:prompt",
        "fields": {"tenant": "acme", "model": "large"},
        "policies": ("calls",),
        "before_us": number,
        "after_us": number,
        "at_us": number,
    }
    return Asked(**{**known, **fields})


def heard(seq, state, at_us, received_us):
    return Heard(
        policy="provider",
        subject="large",
        previous=CircuitState.CLOSED,
        state=state,
        seq=seq,
        reason="",
        at_us=at_us,
        received_us=received_us,
    )


# ---------------------------------------------------------------------------------------- rates

arrivals = st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 3)), min_size=1, max_size=25)


@given(arrivals, st.integers(1, 20), st.integers(1, 2_000), st.integers(1, 10))
def test_the_fullest_span_is_the_fullest_of_all_spans(stamps, limit, per_us, burst):
    found = measure(stamps, limit=limit, per_us=per_us, burst=burst)
    stamps = sorted(stamps)
    moments = [at for at, _ in stamps]
    excess = [
        sum(cost for at, cost in stamps if start <= at <= end)
        - Fraction((end - start) * limit, per_us)
        - burst
        for start in moments
        for end in moments
        if start <= end
    ]
    assert found.burst.exceeded == (max(excess) > 0)
    assert found.burst.admitted - found.burst.allowed == pytest.approx(float(max(excess)))


@given(arrivals, st.integers(1, 2_000))
def test_the_fullest_period_is_the_fullest_of_all_periods(stamps, width):
    stamps = sorted(stamps)
    most = max(sum(c for at, c in stamps if start <= at < start + width) for start, _ in stamps)
    assert fullest_period(stamps, width) == most


def test_a_limit_that_is_used_to_the_last_is_not_exceeded_and_one_more_is():
    # A burst of 5, and then one each 100 ms.
    stamps = [(0, 1)] * 5 + [(number * 100_000, 1) for number in range(1, 31)]
    exact = measure(stamps, limit=10, per_us=SECOND, burst=5)
    assert (exact.admitted, exact.burst.admitted, exact.exceeded) == (35, 35, False)
    assert measure([*stamps, (3_000_000, 1)], limit=10, per_us=SECOND, burst=5).exceeded
    early = [*stamps[:-1], (2_999_999, 1)]
    assert measure(early, limit=10, per_us=SECOND, burst=5).exceeded


def test_nothing_admitted_exceeds_nothing():
    found = measure([], limit=1, per_us=SECOND, burst=1)
    assert (found.admitted, found.period, found.exceeded) == (0, 0, False)


# --------------------------------------------------------------------------------------- quotas


def test_a_quota_is_counted_in_the_window_of_the_admission_at_the_real_cost():
    calls = [
        Spent(at_us=SECOND, reserved=100, ended_us=2 * SECOND, real=40, settled_us=2 * SECOND + 9),
        Spent(at_us=2 * SECOND + 1, reserved=100, ended_us=4 * SECOND, real=70),
        Spent(at_us=3 * SECOND, reserved=100, ended_us=4 * SECOND, real=10),
    ]
    first, second = windows(reversed(calls), per_us=3 * SECOND)
    assert (first.start_us, first.calls, first.settled, first.peak) == (0, 2, 110, 140)
    assert (second.start_us, second.settled, second.peak) == (3 * SECOND, 10, 100)
    # What ended after its window stays reserved in it; of what was not seen settled, who knows.
    assert (first.least, first.most) == (140, 140)
    assert (second.least, second.most) == (10, 100)


def test_what_nobody_reported_or_ended_counts_as_reserved():
    calls = [
        Spent(at_us=1, reserved=50, ended_us=2, real=None),
        Spent(at_us=3, reserved=60),
    ]
    (window,) = windows(calls, per_us=SECOND)
    assert (window.settled, window.peak) == (110, 110)


def test_the_peak_counts_what_was_reserved_at_the_same_time():
    calls = [Spent(at_us=at, reserved=100, ended_us=10, real=1) for at in (1, 2, 3)]
    (window,) = windows(calls, per_us=SECOND)
    assert (window.settled, window.peak) == (3, 300)


# -------------------------------------------------------------------------------------- overlap


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=20))
def test_the_most_at_once_is_the_most_at_any_moment(pairs):
    intervals = [(start, start + length) for start, length in pairs]
    most = max((sum(a <= t < b for a, b in intervals) for t in range(71)), default=0)
    assert most_at_once(intervals) == most


def test_one_that_ends_as_another_begins_does_not_overlap_it_and_one_without_an_end_does():
    assert most_at_once([(0, 5), (5, 9)]) == 1
    assert most_at_once([(0, None), (5, 9)]) == 2


# ------------------------------------------------------------------------------------- circuits

OPEN, HALF, CLOSED = CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED
LIFE = [
    (1, OPEN, 1_000),
    (2, HALF, 2_000),
    (3, CLOSED, 3_000),
]


def life(moments, *, late=5, workers=(1, 2), deaf=(), offset_us=0):
    listeners = (0, *workers)
    told = {
        worker: [
            heard(seq, state, at, at - offset_us + late * worker)
            for seq, state, at in LIFE
            if (worker, seq) not in deaf
        ]
        for worker in listeners
    }
    return phases(told, moments, workers=workers, offset_us=offset_us)


def test_a_circuit_has_a_phase_for_each_change_with_what_it_let_through():
    # The last one before it opened may have its very stamp, and so has the first probe.
    opened, half, closed = life([500, 1_000, 2_000, 2_500, 3_001, 3_002, 9_000])
    assert [phase.state for phase in (opened, half, closed)] == [OPEN, HALF, CLOSED]
    assert [phase.admitted for phase in (opened, half, closed)] == [0, 2, 3]
    assert not any(phase.exceeded(2) for phase in (opened, half, closed))


def test_a_call_while_open_and_a_probe_too_many_are_seen():
    opened, half, _ = life([1_001, 2_000, 2_001, 2_002])
    assert opened.exceeded(2)
    assert half.exceeded(2)
    assert not half.exceeded(3)


def test_each_process_learns_after_its_own_time_by_the_servers_clock():
    for offset in (0, -7_000_000, 7_000_000):
        opened, *_ = life([], offset_us=offset)
        assert opened.learned == {0: 0.0, 1: 5e-6, 2: 1e-5}
        assert opened.missed == ()


def test_a_worker_that_never_heard_is_named_even_if_nobody_else_is_missing():
    opened, half, closed = life([], deaf={(2, 1), (1, 3), (2, 3)})
    assert (opened.missed, half.missed, closed.missed) == ((2,), (), (1, 2))
    # Of what nobody at all has heard, nothing can be known here.
    assert len(life([], deaf={(0, 3), (1, 3), (2, 3)})) == 2


def test_a_circuit_of_which_nobody_heard_has_no_phases():
    assert phases({0: [], 1: []}, [1, 2], workers=[1]) == []


# --------------------------------------------------------------------------------------- clocks


@given(
    st.integers(-(10**9), 10**9),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=10),
)
def test_the_clocks_distance_is_found_to_within_the_shortest_call(offset, calls):
    decisions = [
        asked(before_us=10**12, after_us=10**12 + there + back, at_us=10**12 + there + offset)
        for there, back in calls
    ]
    found = offset_us(decisions)
    shortest = min(there + back for there, back in calls)
    assert abs(found - offset) <= max(shortest, 1)


def test_one_clock_for_both_is_no_distance():
    chance = random.Random(1)
    decisions = [
        asked(before_us=at, after_us=at + 500, at_us=at + chance.randrange(500))
        for at in range(0, 100_000, 1_000)
    ]
    assert offset_us(decisions) == 0
    assert offset_us([asked(at_us=None)]) == 0


# ---------------------------------------------------------------------------------------- tally


def test_vetoes_are_counted_for_every_policy_that_refused_and_admissions_for_all_asked():
    both = ("calls", "tokens")
    decisions = [
        asked(1, policies=both),
        asked(2, policies=both, vetoes=(("calls", "limit_reached"),), signal=Signal.RETRY),
        asked(
            3,
            policies=both,
            vetoes=(("calls", "limit_reached"), ("tokens", "quota_exhausted")),
            signal=Signal.RETRY,
            attempt=2,
        ),
        asked(4, policies=both, attempt=3),
    ]
    calls, tokens, other = tally(decisions, [*both, "other"])
    assert (calls.asked, calls.admitted, calls.vetoed) == (4, 2, 2)
    assert (tokens.admitted, tokens.reasons) == (2, {"quota_exhausted": 1})
    assert (other.asked, other.reasons) == (0, {})
    total = totals(decisions)
    assert (total.asked, total.admitted, total.vetoed) == (4, 2, 2)
    assert (total.again, total.again_admitted, total.signals) == (2, 1, {"retry": 2})
