"""Numbers that a process keeps of itself: counts, levels and distributions, by the values of labels.

The values of labels come from outside now and then, and each set of them is a series: past `SERIES` of them a measure
counts all further ones as `other`.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

SERIES = 200
OTHER = "other"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of what usually takes milliseconds."""

Labels = tuple[str, ...]


@dataclass(slots=True)
class Distribution:
    """How many values were at most each bound, with their sum; the last count is of those above every bound."""

    counts: list[int]
    total: float = 0.0


@dataclass(slots=True, kw_only=True)
class Measure:
    """What is measured: its name and its meaning for people, and the names of its labels."""

    name: str
    meaning: str
    labels: Labels = ()

    def _bounded(self, values: Labels, known: Collection[Labels]) -> Labels:
        return values if len(known) < SERIES or values in known else (OTHER,) * len(values)


@dataclass(slots=True, kw_only=True)
class Counter(Measure):
    """Things that happened."""

    series: dict[Labels, float] = field(default_factory=dict)

    def add(self, *values: str, by: float = 1) -> None:
        """Count `by` more under these values of the labels."""
        values = self._bounded(values, self.series)
        self.series[values] = self.series.get(values, 0) + by


class Level(Counter):
    """Things that are there at this moment: what comes is added, what goes is added as a negative number."""


@dataclass(slots=True, kw_only=True)
class Histogram(Measure):
    """How large or how long things were."""

    bounds: Sequence[float]
    series: dict[Labels, Distribution] = field(default_factory=dict)

    def observe(self, value: float, *values: str) -> None:
        """One more thing of this size under these values of the labels."""
        values = self._bounded(values, self.series)
        known = self.series.get(values)
        if known is None:
            known = self.series[values] = Distribution([0] * (len(self.bounds) + 1))
        known.counts[bisect_left(self.bounds, value)] += 1
        known.total += value

    def cumulative(self, known: Distribution) -> Iterator[tuple[float, int]]:
        """(bound, how many were at most that), the last for infinity."""
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), known.counts, strict=True):
            seen += count
            yield bound, seen
