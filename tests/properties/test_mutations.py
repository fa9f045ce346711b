"""The machine finds every fault that is put into the scripts."""

from typing import Any

import pytest

from tests.properties.driving import PATIENCE, drive
from tests.properties.mutations import Mutation, mutated
from tests.properties.mutations_limits import LIMITS
from tests.properties.mutations_losses import LOSSES
from tests.properties.mutations_states import STATES
from tests.properties.mutations_subjects import SUBJECTS_FAULTS
from tests.properties.mutations_undoing import UNDOING_FAULTS
from tests.servers import RealServer

MUTATIONS = (*LIMITS, *LOSSES, *STATES, *SUBJECTS_FAULTS, *UNDOING_FAULTS)
each_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
each_common = pytest.mark.parametrize("mutation", [m for m in MUTATIONS if not m.rare], ids=str)


@pytest.mark.timeout(PATIENCE)
@each_common
def test_the_machine_finds_that(mutation: Mutation, valkey: RealServer) -> None:
    _caught(mutation, valkey, examples=400)


@pytest.mark.deep
@pytest.mark.timeout(PATIENCE)
@each_mutation
def test_the_machine_finds_that_with_other_examples(mutation: Mutation, valkey: RealServer) -> None:
    _caught(mutation, valkey, examples=2000, deep=True)


def _caught(mutation: Mutation, valkey: RealServer, **options: Any) -> None:
    scripts = mutated(mutation)
    with pytest.raises(AssertionError):
        drive(mutation.deck, steps=30, shrink=False, url=valkey.url, scripts=scripts, **options)
