"""Running a machine as a test."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties import decks
from tests.properties.machine import Machine

DECKS = {**decks.ALONE, "together": decks.TOGETHER}
#: Long enough to shrink what has failed; what passes takes seconds.
PATIENCE = 420


def drive(
    deck: str,
    *,
    examples: int,
    steps: int,
    deep: bool = False,
    shrink: bool = True,
    **fields: Any,
) -> None:
    """Run the machine for a deck: always the same examples, or others each time if `deep`."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate, *((Phase.shrink,) if shrink else ()))
    run_state_machine_as_test(
        type("TestedMachine", (Machine,), {"deck": DECKS[deck], **fields}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=not deep,
            # What is found is told in full; nothing is kept between runs.
            database=None,
            deadline=None,
            phases=phases,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
