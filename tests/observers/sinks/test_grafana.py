"""The Grafana dashboard: made by its script, and every query answered by a live Prometheus."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest

from stanchion.observers import ObserverManager
from stanchion.observers.sinks.prometheus import PrometheusSink
from tests.observers.sinks.prometheus_server import Prometheus, prometheus, scraped
from tests.observers.sinks.runs import control_events, failed_run, run_events
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Pool

FOLDER = Path(__file__).parents[3] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "stanchion.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What Grafana puts in their place.
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}


def queries() -> dict[str, str]:
    """Get every query with the panel that asks it."""
    found: dict[str, str] = {}
    for panel in PANELS:
        for target in panel["targets"]:
            expression: str = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def test_the_dashboard_is_what_its_script_makes():
    made = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / "dashboard.py", "--print"],
        capture_output=True,
        text=True,
        check=True,
    )
    hint = "make it anew: python deploy/grafana/dashboard.py"
    assert made.stdout == (FOLDER / "stanchion.json").read_text(encoding="utf-8"), hint


@pytest.mark.parametrize("title", queries())
def test_a_query_is_promql_and_leaves_no_variable_open(title: str):
    expression = queries()[title]
    assert "$" not in expression
    promql_parser.parse(expression)


def test_panels_have_titles_of_their_own_and_do_not_overlap():
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles)) > 20
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_every_query_finds_numbers_in_a_live_prometheus(pool: Pool):
    sink = PrometheusSink(port=0, max_values=4)
    async with ObserverManager() as manager:
        manager.register(sink, name="metrics")
        sink.watch(manager)

        def happen(number: int) -> None:
            for event in run_events(f"r{number}"):
                manager.notify(event)
            for event in failed_run(f"f{number}", pipeline=f"p{number}"):
                manager.notify(event)
            for event in control_events():
                manager.notify(event)

        # More pipelines than there is room for, so that some are folded.
        for number in range(6):
            happen(number)
        await eventually(lambda: sink.url)
        assert sink.url is not None
        target = sink.url.removeprefix("http://").removesuffix("/metrics")
        with prometheus(target, pool.reaper) as server:
            await asyncio.to_thread(scraped, server, "stanchion_labels_folded_total")
            happen(6)
            assert await manager.drain(5)
            await eventually(lambda: not unanswered(server), 10, interval=0.2)


def unanswered(server: Prometheus) -> list[str]:
    """Get the queries without a number; a quantile of nothing is none."""
    return [
        title
        for title, expression in queries().items()
        if not any(not math.isnan(float(result["value"][1])) for result in server.query(expression))
    ]
