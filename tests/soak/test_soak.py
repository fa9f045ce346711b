"""The soak itself, for seconds instead of minutes, and the checks that it rests on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from tests.soak import bounds, trend
from tests.soak.plan import Fault, plan

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_breaks_or_leaks_in_a_short_soak(tmp_path: Path):
    """As `make soak` runs it, with faults in quick succession; the report says what happened."""
    report = tmp_path / "report.json"
    command = (sys.executable, "-m", "tests.soak", "--minutes", "0.17", "--pace", "0.3")
    ended = subprocess.run(
        [*command, "--workers", "3", "--seed", "11", "--json", report],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert "Everything held." in ended.stdout
    told = json.loads(report.read_text())
    assert told["passed"]
    assert told["admitted"] > 100
    assert sum(row["times"] for row in told["faults"]) == len(told["plan"]) >= 3
    assert all(row["answers"] for row in told["faults"])
    assert all(one["holds"] and not one["broken"] for one in told["invariants"])
    assert all(" by the journals " in line for line in told["counters"])


def test_a_seed_repeats_its_plan_and_each_fault_comes_before_any_comes_again():
    first = list(islice(plan(7), 100))
    assert first == list(islice(plan(7), 100))
    assert first != list(islice(plan(8), 100))
    round_ = {step.fault for step in first[: len(Fault)]}
    assert round_ == set(Fault)
    assert all(2 <= step.after <= 5 for step in first)


S = 1_000_000


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        # Two a second with a burst of three: five in the first second are none too many.
        (bounds.gcra([(0, 3), (S // 2, 1), (S, 1)], 2, S, 3), 3),
        (bounds.gcra([(0, 3), (S // 4, 1)], 2, S, 3), 3.5),
        (bounds.fixed_window([(S - 1, 4), (S, 4)], 4, S), 4),
        (bounds.fixed_window([(S, 4), (2 * S - 1, 1)], 4, S), 5),
        (bounds.sliding_log([(1, 4), (S + 1, 4)], 4, S), 4),
        (bounds.sliding_log([(1, 4), (S, 1)], 4, S), 5),
        (bounds.sliced([(0, 4), (S, 4)], 4, S, 10), 4),
        (bounds.sliced([(0, 4), (S - 1, 1)], 4, S, 10), 5),
        (bounds.overlap([(0, 5, 1), (5, 9, 1), (1, 9, 1)], 2), 2),
        (bounds.overlap([(0, 6, 1), (5, 9, 1), (1, 9, 1)], 2), 3),
    ],
)
def test_bounds_tell_what_is_within_a_limit_from_what_is_beyond(
    reached: tuple[float, int], expected: float
):
    assert reached[0] == pytest.approx(expected)


def test_a_trend_sees_what_grows_and_not_what_was_filled_once():
    filled = trend.of([(t, min(t, 20) * 1000.0) for t in range(90)])
    grows = trend.of([(t, t * 1000.0) for t in range(90)])
    assert filled.growth == pytest.approx(0)
    assert grows.growth == pytest.approx(1000 * 59)
    assert grows.tells
    assert not trend.of([(t, 0.0) for t in range(30)]).tells
