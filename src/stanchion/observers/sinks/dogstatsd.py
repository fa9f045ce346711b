"""Metrics and events for a Datadog agent nearby, over DogStatsD."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, cast

from stanchion.decisions import CircuitState
from stanchion.durations import seconds
from stanchion.errors import ConfigError, StanchionError
from stanchion.events import (
    CircuitChanged,
    PipelineFailed,
    PolicyChanged,
    PolicyFailed,
    QuotaThresholdReached,
    Selector,
    check_selector,
)
from stanchion.observers.arguments import count
from stanchion.observers.cardinality import Cardinality
from stanchion.observers.latest import Latest, Subject
from stanchion.observers.measures import CIRCUIT_STATE, SEVERITY, Kind, samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from stanchion.events import Event

_INSTALL: Final = "DogStatsdSink needs Datadog's client: pip install 'stanchion[datadog]'"
_LONGEST: Final = 1000  # characters of an event's text; one event is one datagram
_NEVER: Final = 10**12  # seconds
_ALERTS: Final[Mapping[CircuitState, str]] = {
    CircuitState.OPEN: "error",
    CircuitState.FORCED_OPEN: "error",
    CircuitState.HALF_OPEN: "info",
    CircuitState.CLOSED: "success",
    CircuitState.DISABLED: "warning",
}


class _Statsd(Protocol):
    """What is used of the client, whose own types are incomplete."""

    @property
    def packets_dropped(self) -> int: ...

    def increment(self, metric: str, value: float, tags: list[str]) -> None: ...

    def distribution(self, metric: str, value: float, tags: list[str]) -> None: ...

    def gauge(self, metric: str, value: float, tags: list[str]) -> None: ...

    def event(
        self,
        title: str,
        message: str,
        *,
        alert_type: str,
        aggregation_key: str,
        date_happened: int,
        tags: list[str],
    ) -> None: ...

    def flush(self) -> object: ...

    def close_socket(self) -> None: ...


class DogStatsdSink:
    """Sends counters, distributions and gauges, and what matters to people as Datadog events.

    Over UDP nobody acknowledges: what is lost on the way is lost unseen. Over a Unix socket a lost
    datagram counts as a failure. The measures are those of `PrometheusSink`, named
    `stanchion.llm.calls` and so on, with a bounded number of tags: every combination of them is
    paid for as a custom metric. Events are sent for circuits that change, quotas that reach a
    threshold, policies that fail or are changed, and runs that fail.

    Without `host`, `port` and `socket` the client's own variables count, such as `DD_AGENT_HOST`
    and `DD_DOGSTATSD_URL`; `DD_ENV`, `DD_SERVICE` and `DD_VERSION` become tags. The client's own
    telemetry is not sent.
    """

    idempotent: ClassVar[bool] = False  # what is counted twice is wrong
    batch_size = 500
    batch_delay = 0.0

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        socket: str | None = None,
        tags: Sequence[str] = (),
        events: bool = True,
        timeout: timedelta | float | str = 1.0,
        max_values: int = 100,
        max_series: int = 1000,
        on: Selector = "*",
    ) -> None:
        """Prepare to send; nothing is opened before the first event.

        Args:
            host: where the agent is; localhost by default.
            port: its UDP port; 8125 by default.
            socket: the path of its Unix socket, instead of host and port.
            tags: for everything that is sent, such as "region:eu".
            events: whether to send Datadog events too.
            timeout: seconds that sending one datagram may take.
            max_values: the most values that a tag has.
            max_series: the most combinations of tags that a metric has.
            on: the events to count.

        Raises:
            ConfigError: an argument cannot work, or Datadog's client is not installed.
        """
        check_selector(on)
        self.on: Selector = on
        if socket is not None and (host is not None or port is not None):
            raise ConfigError.of("socket", socket, "expected without `host` and `port`")
        if port is not None and (type(port) is not int or not 0 < port <= 65535):
            raise ConfigError.of("port", port, "expected a port number from 1 to 65535")
        if isinstance(tags, str) or not all(isinstance(cast("object", tag), str) for tag in tags):
            raise ConfigError.of("tags", tags, 'expected texts such as "region:eu"')
        self._events = events
        self._cardinality = Cardinality(max_values, max_series)
        self._circuits = Latest(count("max_values", max_values))
        self._told: dict[str, int] = {}
        self._lock = asyncio.Lock()
        self._client = _client(host, port, socket, list(tags), seconds(timeout, field="timeout"))

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Send some events.

        Raises:
            StanchionError: the system did not take every datagram.
        """
        async with self._lock:
            lost = await asyncio.to_thread(self._send, events)
        if lost:
            # Not `Undelivered`: it is not known whose, and the others shall not count twice.
            raise StanchionError(f"{lost} datagrams could not be sent")

    async def close(self) -> None:
        """Let go of the socket."""
        async with self._lock:
            await asyncio.to_thread(self._client.close_socket)

    def _send(self, events: Sequence[Event]) -> int:
        lost = self._client.packets_dropped
        for event in events:
            self._measure(event)
        folded = {**self._cardinality.folded, "subject": self._circuits.folded}
        for label, number in folded.items():
            if new := number - self._told.get(label, 0):
                self._client.increment("labels.folded", new, [f"label:{label}"])
            self._told[label] = number
        if self._events:
            for event in events:
                self._tell(event)
        self._client.flush()
        return self._client.packets_dropped - lost

    def _measure(self, event: Event) -> None:
        for sample in samples(event):
            of = sample.measure
            labels = zip(of.labels, self._cardinality.fold(sample), strict=True)
            tags = [f"{label}:{value}" for label, value in labels if value]
            if of.kind is Kind.COUNTER:
                self._client.increment(of.name, sample.amount, tags)
            else:
                self._client.distribution(of.name, sample.amount, tags)
        if isinstance(event, CircuitChanged):
            subject = Subject(event.policy, event.subject)
            (policy, name), state = self._circuits.put(subject, SEVERITY[event.state])
            tags = [f"policy:{policy}", f"subject:{name}"]
            self._client.gauge(CIRCUIT_STATE, state, tags)

    def _tell(self, event: Event) -> None:
        match event:
            case CircuitChanged():
                alert, about = _ALERTS[event.state], f"{event.policy} {event.subject}"
                title = f"Circuit {event.policy} is {event.state}"
                text = f"{event.subject}: {event.reason or 'no reason given'}"
            case QuotaThresholdReached():
                alert, about = "warning", f"{event.policy} {event.subject}"
                title = f"Quota {event.policy} is at {event.threshold:.0%}"
                text = f"{event.subject}: {event.used} of {event.limit}"
            case PolicyFailed():
                alert, about = "error", event.policy
                title = f"Policy {event.policy} could not be asked"
                text = event.error
            case PolicyChanged():
                alert, about = "info", event.policy
                title, text = f"Policy {event.policy} was changed", event.change
            case PipelineFailed():
                alert, about = "error", event.pipeline
                title, text = f"Run of {event.pipeline} failed", event.error
            case _:
                return
        key = f"{event.event_type} {about}"
        self._client.event(
            title[:_LONGEST],
            text[:_LONGEST],
            alert_type=alert,
            # Not escaped by the client, and a bar would end it.
            aggregation_key=key.replace("|", "_").replace("\n", " ")[:100],
            date_happened=max(0, int(event.timestamp.timestamp())),
            tags=[f"event_type:{event.event_type}"],
        )


def _client(
    host: str | None, port: int | None, path: str | None, tags: list[str], timeout: float
) -> _Statsd:
    try:
        from datadog.dogstatsd.base import DogStatsd
    except ImportError as error:
        raise ConfigError(_INSTALL) from error
    made = DogStatsd(
        host=host,
        port=port,
        socket_path=path,
        constant_tags=tags,
        namespace="stanchion",
        socket_timeout=timeout,
        disable_buffering=False,
        # No thread that flushes: every batch is flushed when it has been taken in.
        flush_interval=0,
        # On, and never sent: it is what counts the datagrams that could not be sent.
        disable_telemetry=False,
        telemetry_min_flush_interval=_NEVER,
        track_instance=False,
    )
    return cast("_Statsd", made)
