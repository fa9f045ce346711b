"""Metrics for Prometheus: counters, histograms and gauges, and an endpoint to scrape them from."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from stanchion.errors import ConfigError
from stanchion.events import CircuitChanged, QuotaThresholdReached, Selector, check_selector
from stanchion.observers.arguments import count
from stanchion.observers.cardinality import Cardinality
from stanchion.observers.correlation import trace_id
from stanchion.observers.counted import HasPolicies, counted
from stanchion.observers.latest import Latest, Subject
from stanchion.observers.measures import (
    BUCKETS,
    CIRCUIT_STATE,
    CIRCUIT_STATE_HELP,
    MEASURES,
    SEVERITY,
    Kind,
    Measure,
    Unit,
    samples,
)
from stanchion.observers.stats import ObserverState, ObserverStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry, Counter, Histogram
    from prometheus_client.core import Metric

    from stanchion.events import Event

_PREFIX: Final = "stanchion"
_UNITS: Final[Mapping[Unit, str]] = {Unit.SECONDS: "_seconds", Unit.DOLLARS: "_dollars"}
_SLICE: Final = 20  # events counted, in about a millisecond, before the loop has a turn
_EXEMPLAR: Final = 128  # characters of all names and values in one exemplar, by OpenMetrics
_INSTALL: Final = "PrometheusSink needs prometheus-client: pip install 'stanchion[prometheus]'"
_COUNTS: Final = {
    "received": "Events for the observer.",
    "delivered": "Events that the observer took.",
    "dropped": "Events that had to give way, or were given up.",
    "failed": "Events that the observer did not take.",
    "retried": "Events that were sent to the observer again.",
    "timed_out": "Events whose call was cancelled.",
}
_LEVELS: Final[Mapping[str, tuple[str, Callable[[ObserverStats], float]]]] = {
    "queue_depth": ("Events that wait for the observer.", lambda of: of.queued),
    "in_hand": ("Events that the observer is handling.", lambda of: of.in_hand),
    "lag_seconds": ("Age of the oldest event that is not delivered yet.", lambda of: of.lag),
    "quarantined": (
        "1 while the observer is called only to see whether it works again.",
        lambda of: of.state is ObserverState.QUARANTINED,
    ),
}
_ANSWERS: Final = (
    ("answers", "Answers of policies that are not decided in the store.", "policy", "result"),
    ("calls", "Questions that a policy put to its service, or to the store.", "policy"),
    ("call_seconds", "Seconds that these took.", "policy"),
)
_STATE: Final = f"{_PREFIX}_{CIRCUIT_STATE.replace('.', '_')}"
_THRESHOLD: Final = f"{_PREFIX}_quota_threshold_ratio"


class HasStats(Protocol):
    """Whatever counts for each observer what became of its events; an `ObserverManager` does."""

    def stats(self) -> Mapping[str, ObserverStats]:
        """Get the counters by the observer's name."""
        ...


class PrometheusSink:
    """Counts and times the built-in events, and lets Prometheus scrape the result.

    With a `port` it serves `/metrics` itself, on the loopback interface unless `host` says
    otherwise; without one, put `registry` behind an endpoint of your own. The registry is the
    sink's own, so nothing else's metrics are in it. Exemplars (OpenMetrics only) lead from a metric
    to the run, and to the trace that `OtlpSink` makes of it.

    The number of series is bounded: of each label the first `max_values` values are kept, of each
    metric the first `max_series` combinations, and what comes after them is counted under `other`;
    `stanchion_labels_folded_total` tells how often.
    """

    idempotent: ClassVar[bool] = False  # what is counted twice is wrong
    batch_size = 500
    batch_delay = 0.0

    def __init__(
        self,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        max_values: int = 100,
        max_series: int = 1000,
        buckets: Sequence[float] = BUCKETS,
        on: Selector = "*",
    ) -> None:
        """Prepare the metrics; nothing is served before `start`.

        Args:
            port: where to serve them, 0 for any free port; None: nowhere.
            host: the address to serve them on.
            max_values: the most values that a label has, `other` apart.
            max_series: the most combinations of labels that a metric has.
            buckets: upper bounds of the histograms, in seconds, rising.
            on: the events to count.

        Raises:
            ConfigError: an argument cannot work, or prometheus-client is not installed.
        """
        if port is not None and (type(port) is not int or not 0 <= port <= 65535):
            raise ConfigError.of("port", port, "expected a port number from 0 to 65535, or None")
        check_selector(on)
        self.on: Selector = on
        self._host, self._port = host, port
        self._lock = threading.Lock()
        self._cardinality = Cardinality(max_values, max_series)
        self._circuits = Latest(count("max_values", max_values))
        self._quotas = Latest(max_values)
        self._most = max_values
        self._managers: list[HasStats] = []
        self._policies: list[HasPolicies] = []
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._registry = _own_registry()
        self._counters, self._histograms = _metrics(self._registry, _bounds(buckets))
        self._registry.register(_AtScrape(self._worked_out))

    @property
    def registry(self) -> CollectorRegistry:
        """The registry with these metrics, for an endpoint of your own."""
        return self._registry

    @property
    def url(self) -> str | None:
        """Where the metrics are served now; None before the start and after the end."""
        if self._server is None:
            return None
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server[0].server_port}/metrics"

    def watch(self, manager: HasStats) -> None:
        """Show what becomes of the events of each observer of `manager` as well.

        A manager that the sink is registered with does so by itself when it starts.
        """
        with self._lock:
            if all(known is not manager for known in self._managers):
                self._managers.append(manager)

    def watch_policies(self, of: HasPolicies) -> None:
        """Show what the policies of a bus answer that are not decided in the store.

        A bus that is made with the sink does so by itself.
        """
        with self._lock:
            if all(known is not of for known in self._policies):
                self._policies.append(of)

    # -------------------------------------------------------------------------------- the observer

    async def start(self) -> None:
        """Begin to serve; raises OSError if the port is taken."""
        if self._port is not None and self._server is None:
            from prometheus_client import start_http_server

            self._server = start_http_server(self._port, self._host, self._registry)

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Count some events."""
        for number, event in enumerate(events, 1):
            with self._lock:
                self._take(event)
            if number % _SLICE == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop serving; the registry keeps the values."""
        if self._server is None:
            return
        (server, thread), self._server = self._server, None
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)

    def _take(self, event: Event) -> None:
        exemplar = _exemplar(event)
        for sample in samples(event):
            name, values = sample.measure.name, self._cardinality.fold(sample)
            if sample.measure.kind is Kind.COUNTER:
                self._counters[name].labels(*values).inc(sample.amount, exemplar)
            else:
                self._histograms[name].labels(*values).observe(sample.amount, exemplar)
        if isinstance(event, CircuitChanged):
            self._circuits.put(Subject(event.policy, event.subject), SEVERITY[event.state])
        elif isinstance(event, QuotaThresholdReached):
            subject = Subject(event.policy, event.subject)
            self._quotas.put(subject, event.threshold, event.window_end)

    # ------------------------------------------------------------------------------- the collector

    def _worked_out(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ("policy", "subject")
        states = GaugeMetricFamily(_STATE, CIRCUIT_STATE_HELP, labels=labels)
        reached = GaugeMetricFamily(
            _THRESHOLD, "Threshold that a quota has reached in its present window.", labels=labels
        )
        folded = CounterMetricFamily(
            f"{_PREFIX}_labels_folded",
            "Values of labels that were counted as `other`.",
            labels=("label",),
        )
        now = datetime.now(UTC)
        with self._lock:
            for family, latest in ((states, self._circuits), (reached, self._quotas)):
                for subject, value in latest.series(now):
                    family.add_metric(subject, value)
            counts = dict(self._cardinality.folded)
            if subjects := self._circuits.folded + self._quotas.folded:
                counts["subject"] = subjects
        for label, number in counts.items():
            folded.add_metric((label,), number)
        return (states, reached, folded, *self._observers(), *self._answers())

    def _observers(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = {name: of for manager in self._managers for name, of in manager.stats().items()}
        for field, text in _COUNTS.items():
            counter = CounterMetricFamily(f"{_PREFIX}_observer_{field}", text, labels=("observer",))
            for name, of in stats.items():
                counter.add_metric((name,), getattr(of, field))
            yield counter
        for suffix, (text, level) in _LEVELS.items():
            gauge = GaugeMetricFamily(f"{_PREFIX}_observer_{suffix}", text, labels=("observer",))
            for name, of in stats.items():
                gauge.add_metric((name,), level(of))
            yield gauge

    def _answers(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily

        answers, calls, spent = (
            CounterMetricFamily(f"{_PREFIX}_policy_{suffix}", text, labels=labels)
            for suffix, text, *labels in _ANSWERS
        )
        for name, one in counted(self._policies, self._most).items():
            for result, number in one.results.items():
                answers.add_metric((name, result), number)
            calls.add_metric((name,), one.calls)
            spent.add_metric((name,), one.seconds)
        return answers, calls, spent


def _name(measure: Measure) -> str:
    # The client adds `_total` to the name of a counter.
    return f"{_PREFIX}_{measure.name.replace('.', '_')}{_UNITS.get(measure.unit, '')}"


def _exemplar(event: Event) -> dict[str, str] | None:
    if not event.run_id:
        return None
    exemplar = {"trace_id": f"{trace_id(event.run_id):032x}", "run_id": event.run_id}
    if sum(len(name) + len(value) for name, value in exemplar.items()) > _EXEMPLAR:
        del exemplar["run_id"]
    return exemplar


def _bounds(buckets: Sequence[float]) -> tuple[float, ...]:
    bounds = tuple(buckets)
    if not bounds or bounds[0] <= 0 or any(a >= b for a, b in pairwise(bounds)):
        raise ConfigError.of("buckets", buckets, "expected rising bounds above 0, in seconds")
    return bounds


def _metrics(
    registry: CollectorRegistry, buckets: tuple[float, ...]
) -> tuple[dict[str, Counter], dict[str, Histogram]]:
    from prometheus_client import Counter, Histogram

    counters: dict[str, Counter] = {}
    histograms: dict[str, Histogram] = {}
    for of in MEASURES:
        name = _name(of)
        if of.kind is Kind.COUNTER:
            counters[of.name] = Counter(name, of.help, of.labels, registry=registry)
        else:
            histograms[of.name] = Histogram(
                name, of.help, of.labels, registry=registry, buckets=buckets
            )
    return counters, histograms


@dataclass(frozen=True)
class _AtScrape:
    """A collector of what is worked out when it is asked for."""

    families: Callable[[], Iterable[Metric]]

    def collect(self) -> Iterable[Metric]:
        return self.families()


def _own_registry() -> CollectorRegistry:
    try:
        from prometheus_client import CollectorRegistry
    except ImportError as error:
        raise ConfigError(_INSTALL) from error
    # Nothing is described beforehand: two collectors of ours cannot clash.
    return CollectorRegistry(auto_describe=False)
