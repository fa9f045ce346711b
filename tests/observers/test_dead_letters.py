"""Events that an observer of `stanchion observe --stream` will not take, and where they go."""

from __future__ import annotations

import json
import re
import signal

import pytest

from stanchion import ConfigError
from stanchion.cli.app import run
from stanchion.observers.delivery import Undelivered
from stanchion.observers.registration import Registration
from stanchion.observers.relay import Relay
from stanchion.observers.streams import StreamReader
from stanchion.store.keys import Keyspace
from stanchion.store.redis_store import RedisStore
from tests.observers.commands import running
from tests.observers.relays import (
    FAST,
    KEY,
    Target,
    appended,
    naming,
    pending,
    relaying,
    steps,
)
from tests.waiting import eventually, eventually_sync

POISON = 3


class Picky(Target):
    """Raises over every batch with the poisonous event in it, and takes all others."""

    idempotent = True

    def __init__(self, **options):
        super().__init__(idempotent=True, **options)
        self.took = []

    async def handle_batch(self, events):
        await super().handle_batch(events)
        if any(event.number == POISON for event in events):
            raise RuntimeError("secret text")
        self.took += [event.number for event in events]


def entries(server):
    """The events among the dead letters, as CloudEvents."""
    with server.sync_client() as client:
        return [json.loads(fields[b"event"]) for _, fields in client.xrange(f"{KEY}.dead")]


def numbers(server):
    return [document["data"]["number"] for document in entries(server)]


async def test_an_event_that_is_never_taken_ends_among_the_dead_and_holds_up_no_other(valkey):
    observer = Picky()
    await appended(valkey.url, *steps(6))
    async with relaying(valkey, observer, attempts=3, retry=FAST, quarantine=None) as relay:
        await eventually(lambda: relay.dead == 1)
        await eventually(lambda: pending(valkey, "it") == 0)
        await appended(valkey.url, *steps(2, first=6))
        await eventually(lambda: len(observer.took) == 7)
        assert (relay.stats.delivered, relay.stats.failed) == (7, relay.stats.received - 7)
    assert sorted(observer.took) == [0, 1, 2, 4, 5, 6, 7]
    (document,) = entries(valkey)
    assert document["data"]["number"] == POISON
    assert document["stanchionobserver"] == "it"
    assert re.fullmatch(r"\d+-\d+", document["stanchionentry"])
    assert document["stanchionreason"].startswith("RuntimeError at test_dead_letters.py:")
    assert "secret" not in json.dumps(document)


async def test_a_poisonous_event_all_alone_waits_until_another_shows_that_the_observer_works(
    valkey,
):
    observer = Picky()
    await appended(valkey.url, *steps(1, first=POISON))
    async with relaying(valkey, observer, attempts=3, retry=FAST, quarantine=None) as relay:
        await eventually(lambda: len(observer.calls) > 12)
        assert (relay.dead, pending(valkey, "it")) == (0, 1)
        await appended(valkey.url, *steps(1))
        await eventually(lambda: pending(valkey, "it") == 0)
    assert (observer.took, numbers(valkey)) == ([0], [POISON])


async def test_an_observer_that_is_away_loses_nothing_however_often_it_was_called(valkey):
    observer = Target(*[ConnectionError("away")] * 40, idempotent=True)
    await appended(valkey.url, *steps(5))
    async with relaying(valkey, observer, attempts=2, retry=FAST, quarantine=None) as relay:
        await eventually(lambda: len(observer.calls) > 40 and pending(valkey, "it") == 0)
        assert relay.dead == 0
    taken = [number for call in observer.calls[40:] for number in call]
    assert sorted(taken) == list(range(5))
    assert entries(valkey) == []


async def test_what_is_refused_for_good_and_what_may_not_be_sent_twice_is_kept_too(valkey):
    observer = Target(naming(1, permanent=True), RuntimeError("who knows"))
    await appended(valkey.url, *steps(2))
    async with relaying(valkey, observer) as relay:
        await eventually(lambda: relay.dead == 1)
        await appended(valkey.url, *steps(1, first=2))
        await eventually(lambda: relay.dead == 2 and pending(valkey, "it") == 0)
    assert [*observer.calls] == [[0, 1], [2]]
    reasons = [document["stanchionreason"] for document in entries(valkey)]
    assert reasons[0] == "'busy'"
    assert reasons[1].startswith("RuntimeError at ")


async def test_dead_letters_can_be_handed_over_again(valkey):
    async def refuse(events):
        raise Undelivered(events, "too large", permanent=True)

    await appended(valkey.url, *steps(2))
    async with relaying(valkey, Target(refuse)) as relay:
        await eventually(lambda: relay.dead == 2)
    async with StreamReader(valkey.url, key=f"{KEY}.dead", start="0") as reader:
        found = [vars(delivery.event)["number"] for delivery in await reader.take(10)]
    assert found == [0, 1]


async def test_the_command_counts_them_and_tail_shows_them_with_the_reason(
    valkey, tmp_path, monkeypatch, capsys
):
    config = tmp_path / "observers.yaml"
    grumpy = {"factory": "tests.observers.test_observe:Grumpy", "terms": {"name": "grumpy"}}
    config.write_text(json.dumps({"url": valkey.url, "observers": [grumpy]}))
    await appended(valkey.url, *steps(4))
    options = ("--stream", "--every", "0.1", "--json")
    with running(tmp_path, "observe", "--config", str(config), *options) as command:
        eventually_sync(lambda: '"dead": 2' in command.out)
        assert command.signalled(signal.SIGTERM) == 0
    with running(tmp_path, "tail", valkey.url, "--dead", "--count", "2") as command:
        assert command.ended() == 0
    assert len(command.lines) == 2
    assert command.lines[0].endswith("observed:step number=1 | grumpy: 'odd'")
    monkeypatch.setattr("sys.argv", ["stanchion", "observe", "--config", "x", "--attempts", "0"])
    assert run() == 2
    assert "attempts" in capsys.readouterr().err


def test_how_often_is_checked():
    url = "redis://localhost"
    store = RedisStore(url, Keyspace("default"))
    with pytest.raises(ConfigError, match="attempts=0"):
        Relay(
            Registration.of(Target()),
            StreamReader(url, group="g"),
            channel=store,
            namespace="default",
            attempts=0,
        )
