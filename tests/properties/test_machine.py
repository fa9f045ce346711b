"""The machine, for each kind of limit alone and for all together, on every kind of store.

Ordinary runs take the same examples each time, deep ones others.
"""

import pytest

from tests.properties.driving import DECKS, PATIENCE, drive
from tests.servers import RealServer

pytestmark = pytest.mark.timeout(PATIENCE)
each_deck = pytest.mark.parametrize("deck", DECKS)


@each_deck
def test_scripts_and_model_agree_in_memory(deck: str) -> None:
    drive(deck, examples=6, steps=20)


def test_scripts_and_model_agree_on_real_servers(server: RealServer) -> None:
    for deck in DECKS:
        drive(deck, url=server.url, examples=3, steps=20)


@pytest.mark.deep
@each_deck
def test_scripts_and_model_agree_in_memory_for_long(deck: str) -> None:
    drive(deck, examples=25, steps=50, deep=True)


@pytest.mark.deep
@each_deck
def test_scripts_and_model_agree_on_a_real_server_for_long(deck: str, valkey: RealServer) -> None:
    drive(deck, url=valkey.url, examples=60, steps=50, deep=True)
