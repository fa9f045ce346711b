"""PrometheusSink: what is counted, how it is served, and what Prometheus itself makes of it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest as generate_plain
from ruamel.yaml import YAML

from stanchion import EventBus, RateLimit
from stanchion.decisions import CircuitState
from stanchion.errors import ConfigError
from stanchion.events import Event, LLMPromptSent, LLMResponseReceived, PipelineStarted
from stanchion.observers import ObserverManager
from stanchion.observers.correlation import trace_id
from stanchion.observers.sinks.prometheus import PrometheusSink
from tests.observers.sinks.prometheus_server import ALERTS, debian, prometheus, scraped
from tests.observers.sinks.runs import circuit, control_events, failed_run, quota, run_events
from tests.observers.sinks.scraping import get, scrape
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Pool

REPORT = {"pipeline": "report"}


@asynccontextmanager
async def served() -> AsyncIterator[PrometheusSink]:
    sink = PrometheusSink(port=0)
    await sink.start()
    try:
        yield sink
    finally:
        await sink.close()


async def test_a_run_is_counted_and_timed():
    sink = PrometheusSink()
    await sink.handle_batch([*run_events("r1"), *failed_run("r2")])
    found = scrape(sink)

    assert found.value("stanchion_runs_started_total", pipeline="report") == 2
    assert found.of("stanchion_runs_total", "pipeline", "outcome") == {
        ("report", "completed"): 1,
        ("report", "failed"): 1,
    }
    assert found.value("stanchion_run_duration_seconds_sum", outcome="completed") == 6
    assert found.value("stanchion_run_duration_seconds_bucket", outcome="failed", le="2.5") == 1
    assert found.value("stanchion_run_duration_seconds_bucket", outcome="failed", le="1.0") == 0
    assert found.value("stanchion_wave_duration_seconds_sum") == 4.5
    assert found.value("stanchion_nodes_started_total", node="ask") == 1
    assert found.of("stanchion_nodes_total", "pipeline", "node", "outcome") == {
        ("report", "ask", "completed"): 1,
        ("report", "look", "failed"): 1,
        ("report", "write", "skipped"): 1,
    }
    assert found.value("stanchion_node_duration_seconds_sum", node="ask") == 3.5
    assert found.value("stanchion_llm_prompts_total", provider="acme", model="m1") == 1
    assert found.value("stanchion_llm_calls_total", model="m1", outcome="completed") == 1
    assert found.value("stanchion_llm_call_duration_seconds_sum", model="m1") == 2.5
    assert found.of("stanchion_llm_tokens_total", "provider", "model", "token_type") == {
        ("acme", "m1", "input"): 100,
        ("acme", "m1", "output"): 150,
    }
    assert found.value("stanchion_llm_cost_dollars_total", model="m1") == 0.25
    assert found.value("stanchion_tool_calls_started_total", tool="search") == 1
    assert found.of("stanchion_tool_calls_total", "tool", "outcome") == {("search", "failed"): 1}
    assert found.value("stanchion_tool_call_duration_seconds_count", tool="search") == 1
    assert found.value("stanchion_events_total", type="node:started") == 2


async def test_tokens_that_have_no_type_are_counted_as_other():
    response = LLMResponseReceived(model="m1", duration=1, tokens=10, prompt_tokens=4)
    sink = PrometheusSink()
    await sink.handle_batch([response])
    found = scrape(sink)
    assert found.of("stanchion_llm_tokens_total", "provider", "model", "token_type") == {
        ("", "m1", "input"): 4,
        ("", "m1", "other"): 6,
    }


async def test_what_the_control_tier_tells_is_counted():
    sink = PrometheusSink()
    await sink.handle_batch([*control_events(), *run_events("r1")])
    found = scrape(sink)

    assert found.of("stanchion_vetoes_total", "policy", "reason", "signal", "mode") == {
        ("trial", "limit", "fail", "shadow"): 1,
        ("calls", "limit", "retry", "enforce"): 1,
    }
    assert found.of("stanchion_policy_failures_total", "policy", "error_type") == {
        ("authz", "TimeoutError"): 1
    }
    assert found.of("stanchion_policy_changes_total", "policy", "change") == {
        ("calls", "registered"): 1
    }
    assert found.of("stanchion_circuit_transitions_total", "policy", "previous", "state") == {
        ("provider", "closed", "open"): 1
    }
    assert found.of("stanchion_circuit_state", "policy", "subject") == {("provider", "m1"): 2}
    assert found.of("stanchion_quota_thresholds_total", "policy", "threshold") == {
        ("tokens", "0.8"): 1
    }
    assert found.of("stanchion_quota_threshold_ratio", "policy", "subject") == {
        ("tokens", "acme"): 0.8
    }


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (CircuitState.DISABLED, -1),
        (CircuitState.CLOSED, 0),
        (CircuitState.HALF_OPEN, 1),
        (CircuitState.OPEN, 2),
        (CircuitState.FORCED_OPEN, 3),
    ],
)
async def test_a_circuits_state_is_its_last_one(state: CircuitState, value: int):
    sink = PrometheusSink()
    await sink.handle_batch([circuit(CircuitState.OPEN), circuit(state)])
    found = scrape(sink)
    assert found.of("stanchion_circuit_state", "policy", "subject") == {("provider", "m1"): value}


async def test_a_quota_has_reached_nothing_once_its_window_has_ended():
    ended = datetime.now(UTC) - timedelta(seconds=1)
    sink = PrometheusSink()
    await sink.handle_batch([quota(1.0, window_end=ended), quota(0.8, subject="zenith")])
    found = scrape(sink)
    assert found.of("stanchion_quota_threshold_ratio", "policy", "subject") == {
        ("tokens", "zenith"): 0.8
    }


async def test_an_event_of_a_type_of_the_users_own_is_counted_by_its_type():
    class Rained(Event, type="weather:rained"):
        pass

    sink = PrometheusSink()
    await sink.handle_batch([Rained(), Rained()])
    found = scrape(sink)
    assert found.of("stanchion_events_total", "type") == {("weather:rained",): 2}


# ---- how many series there can be


async def test_the_values_of_a_label_are_bounded_and_the_rest_is_other():
    events = [LLMPromptSent(model=f"m{number}") for number in range(10)] * 2
    sink = PrometheusSink(max_values=3)
    await sink.handle_batch(events)
    found = scrape(sink)

    assert found.of("stanchion_llm_prompts_total", "provider", "model") == {
        ("", "m0"): 2,
        ("", "m1"): 2,
        ("", "m2"): 2,
        ("", "other"): 14,
    }
    assert found.of("stanchion_labels_folded_total", "label") == {("model",): 14}


async def test_the_combinations_of_a_metric_are_bounded():
    names = [str(number) for number in range(8)]
    events = [LLMPromptSent(provider=p, model=m) for p in names for m in names]
    sink = PrometheusSink(max_values=8, max_series=20)
    await sink.handle_batch(events)
    found = scrape(sink)

    series = found.of("stanchion_llm_prompts_total", "provider", "model")
    assert len(series) == 21
    assert series["other", "other"] == 44
    assert sum(series.values()) == 64
    assert found.value("stanchion_labels_folded_total", label="model") == 44


async def test_the_circuits_without_a_series_of_their_own_show_the_worst_of_them():
    sink = PrometheusSink(max_values=1)
    await sink.handle_batch([circuit(CircuitState.CLOSED, "first")])
    await sink.handle_batch([circuit(CircuitState.OPEN, f"m{number}") for number in range(3)])
    await sink.handle_batch([circuit(CircuitState.CLOSED, f"m{number}") for number in range(2)])
    one_open = scrape(sink)
    await sink.handle_batch([circuit(CircuitState.CLOSED, "m2")])
    none_open = scrape(sink)

    own = ("provider", "first")
    rest = ("provider", "other")
    assert one_open.of("stanchion_circuit_state", "policy", "subject") == {own: 0, rest: 2}
    assert none_open.of("stanchion_circuit_state", "policy", "subject") == {own: 0, rest: 0}
    assert none_open.value("stanchion_labels_folded_total", label="subject") == 6


# ---- exemplars


async def test_exemplars_lead_to_the_run_and_to_its_trace():
    sink = PrometheusSink()
    await sink.handle_batch(run_events("r1"))
    found = scrape(sink)

    exemplars = {sample.name: sample.exemplar for sample in found.samples if sample.exemplar}
    exemplar = exemplars["stanchion_llm_call_duration_seconds_bucket"]
    assert exemplar.labels == {"run_id": "r1", "trace_id": f"{trace_id('r1'):032x}"}
    assert exemplar.value == 2.5
    assert exemplars["stanchion_vetoes_total"].labels["run_id"] == "r1"


async def test_a_run_id_that_is_too_long_for_an_exemplar_is_left_out_of_it():
    run_id = "r" * 100
    sink = PrometheusSink()
    await sink.handle_batch([PipelineStarted(pipeline="p", run_id=run_id)])
    found = scrape(sink)
    (exemplar,) = {
        str(sample.exemplar.labels) for sample in found.samples if sample.exemplar is not None
    }
    assert exemplar == str({"trace_id": f"{trace_id(run_id):032x}"})


# ---- the manager's own counters


async def test_what_becomes_of_each_observers_events_is_shown():
    async def broken(event: Event) -> None:
        raise RuntimeError("out of order")

    sink = PrometheusSink()
    async with ObserverManager() as manager:
        sink.watch(manager)
        manager.register(sink, name="metrics")
        manager.register(broken, name="broken")
        for event in run_events("r1"):
            manager.notify(event)

        def quarantined() -> float:
            return scrape(sink).value("stanchion_observer_quarantined", observer="broken")

        await eventually(quarantined)
        await eventually(lambda: manager.stats()["metrics"].delivered == 14)
        found = scrape(sink)
        stats = manager.stats()

    def shown(name: str, observer: str) -> float:
        return found.value(f"stanchion_observer_{name}", observer=observer)

    assert shown("received_total", "metrics") == shown("delivered_total", "metrics") == 14
    assert shown("failed_total", "metrics") == shown("dropped_total", "metrics") == 0
    assert shown("queue_depth", "metrics") == shown("in_hand", "metrics") == 0
    assert shown("lag_seconds", "metrics") == 0
    assert shown("failed_total", "broken") == stats["broken"].failed > 0
    assert shown("retried_total", "broken") == stats["broken"].retried
    assert shown("queue_depth", "broken") == stats["broken"].queued > 0
    assert shown("lag_seconds", "broken") > 0


async def test_a_bus_with_the_sink_counts_its_own_vetoes():
    sink = PrometheusSink()
    limit = RateLimit(name="calls", on=LLMPromptSent, limit=1, per="1h")
    async with EventBus.from_url("memory://", policies=[limit], observers=[sink]) as bus:
        sink.watch(bus.observers)
        decisions = [await bus.check(LLMPromptSent(model="m1")) for _ in range(3)]
        assert await bus.observers.drain(5)
        found = scrape(sink)
    vetoes = sum(not decision for decision in decisions)
    assert found.value("stanchion_vetoes_total", policy="calls", mode="enforce") == vetoes == 2


# ---- the endpoint


async def test_it_serves_on_the_loopback_interface_until_it_is_closed():
    sink = PrometheusSink(port=0)
    assert sink.url is None
    await sink.start()
    await sink.start()
    url = sink.url
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    text = await asyncio.to_thread(get, url, "text/plain")
    assert "# TYPE stanchion_events_total counter" in text
    await sink.close()
    await sink.close()
    assert sink.url is None
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(get, url)


async def test_without_a_port_the_registry_can_be_served_by_other_means():
    sink = PrometheusSink()
    await sink.start()
    await sink.handle_batch(run_events("r1"))
    assert sink.url is None
    assert (
        sink.registry.get_sample_value("stanchion_runs_started_total", {"pipeline": "report"}) == 1
    )
    await sink.close()


async def test_a_port_that_is_taken_is_an_error_of_the_start():
    async with served() as first:
        assert first.url is not None
        port = int(first.url.split(":")[2].split("/")[0])
        second = PrometheusSink(port=port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        await second.close()


async def test_nothing_reaches_the_clients_own_registry_and_two_sinks_do_not_meet():
    before = {family.name for family in REGISTRY.collect()}
    one, two = PrometheusSink(), PrometheusSink()
    await one.handle_batch(run_events("r1"))
    assert {family.name for family in REGISTRY.collect()} == before
    assert (
        two.registry.get_sample_value("stanchion_runs_started_total", {"pipeline": "report"})
        is None
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": -1}, "port=-1"),
        ({"port": "80"}, "port='80'"),
        ({"max_values": 0}, "max_values=0"),
        ({"max_series": True}, "max_series=True"),
        ({"buckets": (1, 1)}, r"buckets=\(1, 1\)"),
        ({"buckets": ()}, r"buckets=\(\)"),
        ({"buckets": (0, 1)}, r"buckets=\(0, 1\)"),
        ({"on": 7}, "on=7"),
    ],
)
def test_an_argument_that_cannot_work_is_named(settings: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        PrometheusSink(**settings)


def test_without_the_client_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from stanchion.observers.sinks.prometheus import PrometheusSink\n"
        "try: PrometheusSink()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigError")
    assert "pip install 'stanchion[prometheus]'" in done.stdout


# ---- Prometheus itself


async def test_prometheus_scrapes_it_keeps_the_exemplars_and_sounds_the_alarm(pool: Pool):
    async with served() as sink:
        sink.watch(manager := ObserverManager())
        manager.register(lambda event: None, name="idle")
        now = datetime.now(UTC)
        await sink.handle_batch([*run_events("r1", now), *control_events(now), quota(1.0)])
        assert sink.url is not None
        target = sink.url.removeprefix("http://").removesuffix("/metrics")
        with prometheus(target, pool.reaper) as server:
            await asyncio.to_thread(scraped, server, "stanchion_runs_total")
            value = server.value('sum(stanchion_llm_tokens_total{token_type="input"})')
            assert value == 100
            assert server.value("stanchion_circuit_state") == 2
            assert server.value("stanchion_observer_queue_depth") == 0
            metadata = server.get("/api/v1/metadata", metric="stanchion_node_duration_seconds")
            assert metadata["data"]["stanchion_node_duration_seconds"][0]["type"] == "histogram"

            # Once more, so that the exemplars are of now and there is a rate.
            await sink.handle_batch(run_events("r2", datetime.now(UTC)))

            def exemplars() -> list[str]:
                found = server.get(
                    "/api/v1/query_exemplars",
                    query="stanchion_node_duration_seconds_bucket",
                    start=now.timestamp() - 60,
                    end=now.timestamp() + 60,
                )
                return [
                    exemplar["labels"]["run_id"]
                    for series in found["data"]
                    for exemplar in series["exemplars"]
                ]

            await eventually(lambda: "r2" in exemplars(), 10)

            def firing() -> set[str]:
                alerts = server.get("/api/v1/alerts")["data"]["alerts"]
                return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

            await eventually(lambda: "StanchionQuotaUsed" in firing(), 10)


def test_promtool_finds_the_exposition_in_order():
    promtool = debian("promtool")
    sink = PrometheusSink()
    asyncio.run(sink.handle_batch([*run_events("r1"), *control_events()]))
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_plain(sink.registry),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_alert_rules_do_what_their_tests_say():
    promtool = debian("promtool")
    folder = ALERTS.parent
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_uses_metrics_that_there_are():
    rules = YAML(typ="safe").load(ALERTS)
    tests = YAML(typ="safe").load(ALERTS.with_name("alerts_test.yml"))
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    fired = {
        case["alertname"]
        for one in tests["tests"]
        for case in one["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == set(alerts)

    sink = PrometheusSink(max_values=2)
    manager = ObserverManager()
    manager.register(sink)
    sink.watch(manager)
    asyncio.run(sink.handle_batch([*run_events("r1"), *control_events()]))
    there = {sample.name for sample in scrape(sink).samples}
    asked = set(re.findall(r"stanchion_\w+", " ".join(alerts.values())))
    assert len(asked) > 5
    assert asked <= there
