"""The gate around Redis, with a clock of its own."""

from __future__ import annotations

import pytest

from stanchion import StoreUnavailable
from stanchion.store.outage import OutageGate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def shut_gate() -> tuple[OutageGate, Clock]:
    clock = Clock()
    gate = OutageGate(clock)
    for _ in range(3):
        gate.failed("away", gate.enter())
    return gate, clock


def is_open(gate: OutageGate) -> bool:
    try:
        gate.abandoned(gate.enter())
    except StoreUnavailable:
        return False
    return True


def test_three_failures_in_a_row_shut_it():
    gate = OutageGate(Clock())
    for _ in range(2):
        gate.failed("away", gate.enter())
        assert is_open(gate)
    gate.succeeded()
    for _ in range(2):
        gate.failed("away", gate.enter())
    assert is_open(gate)
    gate.failed("gone", gate.enter())
    with pytest.raises(StoreUnavailable, match="gone"):
        gate.enter()


def test_calls_that_fail_together_are_one_failure():
    gate = OutageGate(Clock())
    together = [gate.enter() for _ in range(50)]
    for entered in together:
        gate.failed("connection lost", entered)
    assert is_open(gate)


def test_after_a_pause_one_probe_is_let_through_at_a_time():
    gate, clock = shut_gate()
    clock.now += 0.24
    assert not is_open(gate)
    clock.now += 0.02
    probe = gate.enter()
    with pytest.raises(StoreUnavailable):
        gate.enter()
    gate.abandoned(probe)
    second = gate.enter()
    gate.failed("still away", second)
    assert not is_open(gate)


def test_pauses_double_up_to_two_seconds_with_each_probe_that_fails():
    gate, clock = shut_gate()
    for pause in (0.25, 0.5, 1.0, 2.0, 2.0):
        clock.now += pause - 0.01
        assert not is_open(gate)
        clock.now += 0.02
        gate.failed("away", gate.enter())


def test_calls_that_were_under_way_when_it_shut_lengthen_no_pause():
    clock = Clock()
    gate = OutageGate(clock)
    stragglers = [gate.enter() for _ in range(9)]
    for _ in range(3):
        gate.failed("away", gate.enter())
    for entered in stragglers:
        gate.failed("away", entered)
    clock.now += 0.26
    probe = gate.enter()
    # Nor do they end the turn of the probe.
    gate.abandoned(stragglers[0])
    with pytest.raises(StoreUnavailable):
        gate.enter()
    gate.failed("away", probe)


def test_an_answer_opens_it_wherever_it_comes_from():
    gate, clock = shut_gate()
    gate.succeeded()
    assert is_open(gate)
    for _ in range(3):
        gate.failed("away", gate.enter())
    clock.now += 0.26
    assert is_open(gate), "the pause begins anew"
