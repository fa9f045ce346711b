"""Keeping the number of time series bounded, whatever the events carry."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from stanchion.observers.arguments import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stanchion.observers.measures import Sample

OTHER: Final = "other"
_LONGEST: Final = 128  # characters of a label's value
# What these may be is written down in the library; they cannot grow.
_CLOSED: Final = frozenset({"signal", "mode", "outcome", "token_type", "previous", "state"})


class Cardinality:
    """Folds label values into `other` once a label, or a metric, has as many as it may have.

    The first `max_values` values of each label are kept, and of each metric the first `max_series`
    combinations. `folded` counts by label how often a value had to give way. Not safe to be called
    from several threads at once.
    """

    def __init__(self, max_values: int = 100, max_series: int = 1000) -> None:
        """Make one that has seen nothing.

        Raises:
            ConfigError: a bound is no integer of at least 1.
        """
        self._max_values = count("max_values", max_values)
        self._max_series = count("max_series", max_series)
        self._values: dict[str, set[str]] = {}
        self._series: dict[str, set[tuple[str, ...]]] = {}
        self._folded: Counter[str] = Counter()

    @property
    def folded(self) -> Mapping[str, int]:
        """How often a value of each label was counted as `other`."""
        return dict(self._folded)

    def fold(self, sample: Sample) -> tuple[str, ...]:
        """Get the label values under which to count a sample, in the order of its labels."""
        labels = sample.measure.labels
        kept = tuple(map(self.value, labels, sample.values))
        series = self._series.setdefault(sample.measure.name, set())
        if kept in series:
            return kept
        if len(series) < self._max_series:
            series.add(kept)
            return kept
        for label in labels:
            if label not in _CLOSED:
                self._folded[label] += 1
        return tuple(
            value if label in _CLOSED else OTHER for label, value in zip(labels, kept, strict=True)
        )

    def value(self, label: str, value: str) -> str:
        """Get the value to show for one label: itself while there is room, or else `other`."""
        if label in _CLOSED or not value:
            return value
        value = value[:_LONGEST]
        known = self._values.setdefault(label, set())
        if value in known:
            return value
        if len(known) < self._max_values:
            known.add(value)
            return value
        self._folded[label] += 1
        return OTHER
