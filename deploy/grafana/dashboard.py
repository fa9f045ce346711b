"""Write `stanchion.json`, the Grafana dashboard over the metrics of `PrometheusSink`.

    python deploy/grafana/dashboard.py            writes it anew
    python deploy/grafana/dashboard.py --print    prints it

Grafana: Dashboards, New, Import, and choose the Prometheus data source.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

TARGET: Final = Path(__file__).with_name("stanchion.json")
SOURCE: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${source}")
ENFORCED: Final = 'mode="enforce"'
STATES: Final = {
    "-1": ("disabled", "blue"),
    "0": ("closed", "green"),
    "1": ("half open", "yellow"),
    "2": ("open", "red"),
    "3": ("forced open", "dark-red"),
}


@dataclass(frozen=True)
class Panel:
    """A graph: what it is called, its queries with their legends, and its unit."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    stacked: bool = False
    exemplars: bool = False


def rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{_selection(where)}}}[$__rate_interval]))"


def total(metric: str, where: str = "") -> str:
    return f"sum(rate({metric}{{{_selection(where)}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str) -> str:
    buckets = f"sum by (le, {by}) (rate({metric}_bucket{{{_selection()}}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


def _selection(where: str = "") -> str:
    return ", ".join(filter(None, ('instance=~"$instance"', where)))


LIMITS: Final = (
    Panel(
        "Vetoes by policy and reason",
        {rate("stanchion_vetoes_total", "policy, reason", ENFORCED): "{{policy}}: {{reason}}"},
        unit="cps",
        stacked=True,
        exemplars=True,
    ),
    Panel(
        "Vetoes in shadow mode",
        {rate("stanchion_vetoes_total", "policy", 'mode="shadow"'): "{{policy}}"},
        unit="cps",
        text="What would have been refused.",
    ),
    Panel(
        "Policies that could not be asked",
        {
            rate(
                "stanchion_policy_failures_total", "policy, error_type"
            ): "{{policy}} {{error_type}}"
        },
        unit="cps",
    ),
    Panel(
        "Quota thresholds reached in the present window",
        {
            f"max by (policy, subject) (stanchion_quota_threshold_ratio{{{_selection()}}})": (
                "{{policy}}: {{subject}}"
            )
        },
        unit="percentunit",
    ),
)

RUNS: Final = (
    Panel(
        "Runs that end",
        {rate("stanchion_runs_total", "pipeline, outcome"): "{{pipeline}} {{outcome}}"},
        unit="cps",
        stacked=True,
    ),
    Panel(
        "Runs under way",
        {
            f"sum by (pipeline) (stanchion_runs_started_total{{{_selection()}}}) - "
            f"sum by (pipeline) (stanchion_runs_total{{{_selection()}}})": "{{pipeline}}"
        },
        text="Began and have not ended; runs that a lost process had begun stay in it.",
    ),
    Panel(
        "Duration of runs",
        {
            quantile(0.5, "stanchion_run_duration_seconds", "pipeline"): "{{pipeline}} p50",
            quantile(0.95, "stanchion_run_duration_seconds", "pipeline"): "{{pipeline}} p95",
        },
        unit="s",
        exemplars=True,
    ),
    Panel(
        "Nodes that fail or are skipped",
        {
            rate("stanchion_nodes_total", "node, outcome", 'outcome!="completed"'): (
                "{{node}} {{outcome}}"
            )
        },
        unit="cps",
    ),
    Panel(
        "Duration of nodes, p95",
        {quantile(0.95, "stanchion_node_duration_seconds", "node"): "{{node}}"},
        unit="s",
        exemplars=True,
    ),
    Panel(
        "Duration of waves, p95",
        {quantile(0.95, "stanchion_wave_duration_seconds", "pipeline"): "{{pipeline}}"},
        unit="s",
    ),
)

CALLS: Final = (
    Panel(
        "Calls of models",
        {rate("stanchion_llm_calls_total", "model, outcome"): "{{model}} {{outcome}}"},
        unit="cps",
        stacked=True,
    ),
    Panel(
        "Duration of calls of models",
        {
            quantile(0.5, "stanchion_llm_call_duration_seconds", "model"): "{{model}} p50",
            quantile(0.95, "stanchion_llm_call_duration_seconds", "model"): "{{model}} p95",
        },
        unit="s",
        exemplars=True,
    ),
    Panel(
        "Tokens",
        {rate("stanchion_llm_tokens_total", "model, token_type"): "{{model}} {{token_type}}"},
        unit="cps",
        stacked=True,
    ),
    Panel(
        "Dollars an hour",
        {f"3600 * {rate('stanchion_llm_cost_dollars_total', 'model')}": "{{model}}"},
        unit="currencyUSD",
        stacked=True,
    ),
    Panel(
        "Calls of tools",
        {rate("stanchion_tool_calls_total", "tool, outcome"): "{{tool}} {{outcome}}"},
        unit="cps",
        stacked=True,
    ),
    Panel(
        "Duration of calls of tools, p95",
        {quantile(0.95, "stanchion_tool_call_duration_seconds", "tool"): "{{tool}}"},
        unit="s",
        exemplars=True,
    ),
)

OBSERVERS: Final = (
    Panel(
        "Events received and delivered",
        {
            rate("stanchion_observer_received_total", "observer"): "{{observer}} received",
            rate("stanchion_observer_delivered_total", "observer"): "{{observer}} delivered",
        },
        unit="cps",
    ),
    Panel(
        "Events dropped, failed and retried",
        {
            rate("stanchion_observer_dropped_total", "observer"): "{{observer}} dropped",
            rate("stanchion_observer_failed_total", "observer"): "{{observer}} failed",
            rate("stanchion_observer_retried_total", "observer"): "{{observer}} retried",
        },
        unit="cps",
    ),
    Panel(
        "Queue depth",
        {
            f"max by (observer) (stanchion_observer_queue_depth{{{_selection()}}})": "{{observer}}",
        },
    ),
    Panel(
        "Lag",
        {f"max by (observer) (stanchion_observer_lag_seconds{{{_selection()}}})": "{{observer}}"},
        unit="s",
        text="How long the event that waits longest has waited.",
    ),
    Panel(
        "Events by type",
        {rate("stanchion_events_total", "type"): "{{type}}"},
        unit="cps",
        stacked=True,
    ),
    Panel(
        "Label values counted as `other`",
        {rate("stanchion_labels_folded_total", "label"): "{{label}}"},
        unit="cps",
    ),
)

HEADLINES: Final = (
    Panel(
        "Open circuits",
        {
            f"count(max by (policy, subject) (stanchion_circuit_state{{{_selection()}}}) >= 2) "
            f"or vector(0)": ""
        },
    ),
    Panel("Vetoes a second", {total("stanchion_vetoes_total", ENFORCED): ""}, unit="cps"),
    Panel("Runs a second", {total("stanchion_runs_total"): ""}, unit="cps"),
    Panel("Calls of models a second", {total("stanchion_llm_calls_total"): ""}, unit="cps"),
    Panel("Tokens a second", {total("stanchion_llm_tokens_total"): ""}, unit="cps"),
    Panel("Events lost a second", {total("stanchion_observer_dropped_total"): ""}, unit="cps"),
)


def targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .expr(expression)
        .legend_format(legend or "__auto")
        .range()
        .exemplar(panel.exemplars)
        .ref_id(chr(ord("A") + number))
        for number, (expression, legend) in enumerate(panel.queries.items())
    ]


def legend() -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions()
        .show_legend(show_legend=True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
    )


def graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .height(8)
        .span(12)
        .fill_opacity(20 if panel.stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .legend(legend())
    )
    if panel.stacked:
        made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    for target in targets(panel):
        made.with_target(target)
    return made


def headline(panel: Panel) -> stat.Panel:
    last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    made = (
        stat.Panel()
        .title(panel.title)
        .datasource(SOURCE)
        .unit(panel.unit)
        .height(4)
        .span(4)
        .reduce_options(last)
    )
    for target in targets(panel):
        made.with_target(target)
    return made


def circuits() -> statetimeline.Panel:
    mapping = dashboard.ValueMap(
        options={
            value: dashboard.ValueMappingResult(text=text, color=color)
            for value, (text, color) in STATES.items()
        }
    )
    state = f"max by (policy, subject) (stanchion_circuit_state{{{_selection()}}})"
    query = prometheus.Dataquery().expr(state).legend_format("{{policy}}: {{subject}}").range()
    return (
        statetimeline.Panel()
        .title("Circuits")
        .datasource(SOURCE)
        .height(8)
        .span(24)
        .mappings([mapping])
        .legend(legend())
        .with_target(query.ref_id("A"))
    )


def build() -> str:
    made = (
        builders.Dashboard("Stanchion")
        .uid("stanchion")
        .description("Limits, runs, calls and observers, as PrometheusSink measures them.")
        .tags(["stanchion"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("source").label("Source").type("prometheus"))
        .with_variable(
            builders.QueryVariable("instance")
            .label("Instance")
            .datasource(SOURCE)
            .query("label_values(stanchion_events_total, instance)")
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
        )
    )
    for panel in HEADLINES:
        made.with_panel(headline(panel))
    made.with_row(builders.Row("Limits")).with_panel(circuits())
    for panel in LIMITS:
        made.with_panel(graph(panel))
    for title, panels in (("Runs", RUNS), ("Calls", CALLS), ("Observers", OBSERVERS)):
        made.with_row(builders.Row(title))
        for panel in panels:
            made.with_panel(graph(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(build())
    else:
        TARGET.write_text(build(), encoding="utf-8")
