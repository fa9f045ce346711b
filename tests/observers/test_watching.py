"""Observers that show what becomes of the others' events, and of the questions to policies."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from stanchion import Event, EventBus, PolicyFailed
from stanchion.config import read_settings
from stanchion.observers import ObserverManager
from stanchion.observers.registration import Registration
from stanchion.observers.sinks.prometheus import PrometheusSink
from stanchion.policies.function import policy
from stanchion.policies.kill_switch import KillSwitch
from stanchion.policies.remote import remote_policy
from stanchion.policies.rules import Rule, RulePolicy
from stanchion.policies.window import WindowPolicy
from tests.observers.commands import running
from tests.observers.relays import appended, steps
from tests.observers.sinks.scraping import get, scrape
from tests.servers import free_port
from tests.waiting import eventually, eventually_sync


class Asked(Event, type="watching:asked"):
    number: int = 0


class Watching:
    """Keeps the managers that it is told of."""

    def __init__(self):
        self.managers = []

    def watch(self, manager) -> None:
        self.managers.append(manager)

    async def handle(self, event) -> None:
        pass


# ---- observers


async def test_an_observer_that_watches_is_given_the_manager_when_that_runs():
    before, after = Watching(), Watching()
    async with ObserverManager() as manager:
        manager.register(after)
        assert set(map(id, after.managers)) == {id(manager)}
    manager = ObserverManager()
    manager.register(before)
    assert before.managers == []
    async with manager:
        assert set(map(id, before.managers)) == {id(manager)}


async def test_one_whose_watch_means_something_else_is_told_of_events_all_the_same(caplog):
    class Odd(Watching):
        def watch(self, manager) -> None:
            raise TypeError("expected a path")

    class Async(Watching):
        async def watch(self, manager) -> None:
            pass

    async with ObserverManager() as manager:
        names = [manager.register(Odd()), manager.register(Async())]
        manager.notify(Asked())
        assert await manager.drain()
        assert [manager.stats()[name].delivered for name in names] == [1, 1]
    (record,) = caplog.records
    assert "'Odd' cannot watch its manager: TypeError" in record.getMessage()
    assert "expected a path" not in record.getMessage()


async def test_what_becomes_of_the_events_is_shown_without_a_word():
    sink = PrometheusSink()
    observers = [Registration.of(sink, name="metrics")]
    async with EventBus.from_url("memory://", observers=observers) as bus:
        bus.observers.register(lambda event: None, name="later")
        bus.notify(Asked())
        assert await bus.observers.drain()
        found = scrape(sink)
        for observer in ("metrics", "later"):
            assert found.value("stanchion_observer_delivered_total", observer=observer) == 1


async def test_from_a_file_only_the_bus_of_the_file_is_watched(tmp_path):
    file = tmp_path / "stanchion.yaml"
    sink = {"factory": f"{__name__}:Watching", "terms": {"name": "mine"}}
    file.write_text(json.dumps({"url": "memory://", "observers": [sink]}))
    (registration,) = read_settings(file).observers
    observer = cast("Watching", registration.observer)
    assert observer.managers == []
    async with EventBus.from_url("memory://", observers=[registration]) as bus:
        assert set(map(id, observer.managers)) == {id(bus.observers)}


@pytest.mark.parametrize("source", ["pub/sub", "stream"])
async def test_the_command_shows_what_becomes_of_every_observers_events(source, valkey, tmp_path):
    port = free_port()
    sinks = [
        {"kind": "prometheus", "port": port, "terms": {"name": "metrics"}},
        {"kind": "jsonl", "path": str(tmp_path / "events.jsonl"), "terms": {"name": "file"}},
    ]
    config = tmp_path / "observers.yaml"
    config.write_text(json.dumps({"url": valkey.url, "observers": sinks}))
    options = ("--stream",) if source == "stream" else ()
    await appended(valkey.url, *steps(3))
    with running(tmp_path, "observe", "--config", str(config), *options) as command:
        command.says("observing ")
        wanted = 'stanchion_observer_delivered_total{observer="%s"}'
        number = 3.0 if source == "stream" else 0.0

        def shown(observer):
            try:
                text = get(f"http://127.0.0.1:{port}/metrics", "text/plain")
            except OSError:  # it serves nothing yet
                return False
            return f"{wanted % observer} {number}" in text

        eventually_sync(lambda: shown("metrics") and shown("file"), 10)


# ---- policies


async def test_what_policies_answer_is_shown_by_policy_and_result():
    @policy(name="even")
    async def even(event: Asked) -> bool:
        return event.number % 2 == 0

    @remote_policy(on=Asked, name="remote", timeout="100ms")
    async def remote(event: Asked) -> bool:
        if event.number == 2:
            await asyncio.Event().wait()
        if event.number == 4:
            raise PolicyFailed("broken")
        return True

    rules = [Rule(name="six", when="number == 6", reason="six")]
    policies = [
        KillSwitch(name="stop"),
        RulePolicy(name="rules", on=Asked, rules=rules),
        WindowPolicy(name="hours", on=Asked, hours={"daily": "00:00-24:00"}),
        even,
        remote,
    ]
    sink = PrometheusSink()
    async with EventBus.from_url("memory://", policies=policies, observers=[sink]) as bus:
        for number in range(8):
            await bus.check(Asked(number=number))
        found = scrape(sink)

    def shown(policy, *results):
        name = "stanchion_policy_answers_total"
        return [found.value(name, policy=policy, result=result) for result in results]

    assert shown("stop", "admitted", "vetoed", "failed") == [8, 0, 0]
    assert shown("rules", "admitted", "vetoed") == [7, 1]
    assert shown("hours", "admitted", "vetoed") == [7, 0]
    assert shown("even", "admitted", "vetoed") == [3, 4]
    assert shown("remote", "admitted", "failed", "timed_out", "refused") == [1, 1, 1, 0]
    assert found.value("stanchion_policy_calls_total", policy="remote") == 3
    assert found.value("stanchion_policy_calls_total", policy="stop") >= 1
    assert 0 < found.value("stanchion_policy_call_seconds_total", policy="remote") < 1


async def test_the_names_of_policies_are_bounded_and_the_rest_is_counted_together():
    sink = PrometheusSink(max_values=2)
    policies = [
        WindowPolicy(name=f"w{n}", on=Asked, hours={"daily": "00:00-24:00"}) for n in "0123"
    ]
    async with EventBus.from_url("memory://", policies=policies, observers=[sink]) as bus:
        await bus.check(Asked())
        found = scrape(sink)
    name = "stanchion_policy_answers_total"
    assert found.value(name, policy="w1", result="admitted") == 1
    assert found.value(name, policy="other", result="admitted") == 2


async def test_what_a_store_that_does_not_answer_leaves_open_is_a_failure(valkey):
    switch = KillSwitch(name="stop", max_age="50ms")
    async with EventBus.from_url(valkey.url, policies=[switch]) as bus:
        await bus.check(Asked())
        valkey.kill()

        async def failed():
            await bus.check(Asked())
            return switch.stats.failed

        await eventually(failed)
    stats = switch.stats
    assert stats.asked == stats.admitted + stats.failed
    assert stats.vetoed == 0
    assert stats.calls >= 2


async def test_a_copy_of_a_policy_begins_to_count_anew():
    window = WindowPolicy(name="hours", on=Asked, hours={"daily": "00:00-24:00"})
    await window.evaluate(Asked())
    other = window.model_copy()
    await other.evaluate(Asked())
    assert (window.stats.asked, other.stats.asked) == (1, 1)
