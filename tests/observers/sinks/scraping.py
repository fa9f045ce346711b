"""Reading what a PrometheusSink shows, as a scraper does."""

from __future__ import annotations

from urllib.request import Request, urlopen

from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from stanchion.observers.sinks.prometheus import PrometheusSink

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(url: str | None, accept: str = OPENMETRICS) -> str:
    assert url is not None
    with urlopen(Request(url, headers={"Accept": accept}), timeout=5) as answer:  # noqa: S310
        return answer.read().decode()


class Scrape:
    """What the endpoint gives, read by the client's own parser of OpenMetrics."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def of(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Get the values of a metric by those of some of its labels, all that tell series apart."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in self.samples
            if sample.name == name
        }

    def value(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no {name} with {labels}"
        return sum(found)


def scrape(sink: PrometheusSink) -> Scrape:
    return Scrape(generate_latest(sink.registry).decode())
