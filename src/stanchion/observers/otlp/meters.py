"""The measures as OpenTelemetry's instruments, collected when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    Counter,
    Histogram,
    MeterProvider,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from stanchion.events import CircuitChanged
from stanchion.observers.cardinality import Cardinality
from stanchion.observers.latest import Latest, Subject
from stanchion.observers.measures import (
    BUCKETS,
    CIRCUIT_STATE,
    CIRCUIT_STATE_HELP,
    LLM_DURATION,
    MEASURES,
    SEVERITY,
    Kind,
    samples,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.metrics import Counter as CounterInstrument
    from opentelemetry.metrics import Histogram as HistogramInstrument
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

    from stanchion.events import Event

_ATTRIBUTES: Final[Mapping[str, str]] = {
    "error_type": "error.type",
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
    "token_type": "gen_ai.token.type",
    "tool": "gen_ai.tool.name",
    "type": "cloudevents.event_type",
}
# Where the conventions have a metric that means the same, it is that one.
_NAMES: Final[Mapping[str, str]] = {LLM_DURATION.name: "gen_ai.client.operation.duration"}
_FIXED: Final[Mapping[str, Mapping[str, str]]] = {
    LLM_DURATION.name: {"gen_ai.operation.name": "chat"}
}


class Meters:
    """Adds events up; the instruments belong to a provider of their own, not to the global one."""

    def __init__(
        self, resource: Resource, scope: str, *, delta: bool, max_values: int, max_series: int
    ) -> None:
        """Make the instruments.

        Raises:
            ConfigError: a bound is no integer of at least 1.
        """
        self._cardinality = Cardinality(max_values, max_series)
        self._circuits = Latest(max_values)
        temporality = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
        self._reader = InMemoryMetricReader(
            preferred_temporality={Counter: temporality, Histogram: temporality}
        )
        self._provider = MeterProvider(
            (self._reader,), resource, AlwaysOffExemplarFilter(), shutdown_on_exit=False
        )
        meter = self._provider.get_meter(scope)
        self._counters: dict[str, CounterInstrument] = {}
        self._histograms: dict[str, HistogramInstrument] = {}
        for of in MEASURES:
            name = _NAMES.get(of.name, f"stanchion.{of.name}")
            if of.kind is Kind.COUNTER:
                self._counters[of.name] = meter.create_counter(name, of.unit, of.help)
            else:
                self._histograms[of.name] = meter.create_histogram(
                    name, of.unit, of.help, explicit_bucket_boundaries_advisory=BUCKETS
                )
        self._state = meter.create_gauge(f"stanchion.{CIRCUIT_STATE}", "1", CIRCUIT_STATE_HELP)
        self._folded = meter.create_counter(
            "stanchion.labels.folded", "1", "Values of labels that were counted as `other`."
        )
        self._told: dict[str, int] = {}

    def take(self, event: Event) -> None:
        """Add an event."""
        for sample in samples(event):
            of = sample.measure
            labels = zip(of.labels, self._cardinality.fold(sample), strict=True)
            said = {_attribute(label): value for label, value in labels if value}
            said.update(_FIXED.get(of.name, {}))
            if of.kind is Kind.COUNTER:
                self._counters[of.name].add(sample.amount, said)
            else:
                self._histograms[of.name].record(sample.amount, said)
        if isinstance(event, CircuitChanged):
            subject = Subject(event.policy, event.subject)
            (policy, name), state = self._circuits.put(subject, SEVERITY[event.state])
            self._state.set(state, {"stanchion.policy": policy, "stanchion.subject": name})

    def collect(self) -> MetricsData | None:
        """Get what there is to tell; with delta temporality, what came since the last call."""
        folded = {**self._cardinality.folded, "subject": self._circuits.folded}
        for label, number in folded.items():
            if new := number - self._told.get(label, 0):
                self._folded.add(new, {"stanchion.label": label})
            self._told[label] = number
        return self._reader.get_metrics_data()

    def close(self) -> None:
        """Let go of the instruments."""
        self._provider.shutdown()


def _attribute(label: str) -> str:
    return _ATTRIBUTES.get(label, f"stanchion.{label}")
