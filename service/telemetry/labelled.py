"""Counters and histograms of ``prometheus_client`` that find a series by its labels at once, and count in one step.

Theirs makes texts of the labels and takes a lock for each look, a dozen times for each request; at each count it asks
whether the series has its labels, and it goes through a histogram's buckets in turn. Here a metric whose labels are
missing has no value to be counted in, which raises ``AttributeError``.
"""

from bisect import bisect_left
from typing import Any, Self

import prometheus_client
from typing_extensions import override


class _Remembers(prometheus_client.metrics.MetricWrapperBase):
    """Gives the same child for the same labels for ever: such series are never removed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what ``prometheus_client`` takes."""
        super().__init__(*args, **kwargs)
        self._children: dict[tuple[object, ...], Self] = {}

    @override
    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return the child; raise ``ValueError`` where the labels are not those that the metric has."""
        child = self._children.get(labelvalues)
        if child is None or labelkwargs:
            child = super().labels(*labelvalues, **labelkwargs)
            if not labelkwargs:
                self._children[labelvalues] = child
        return child


class Counter(_Remembers, prometheus_client.Counter):
    """A counter."""

    @override
    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Count; raise ``ValueError`` where the amount is negative."""
        if exemplar or amount < 0:
            super().inc(amount, exemplar)
        else:
            self._value.inc(amount)


class Histogram(_Remembers, prometheus_client.Histogram):
    """A histogram."""

    @override
    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Put a number into its bucket; the last one has no bound."""
        if exemplar:
            super().observe(amount, exemplar)
        else:
            self._sum.inc(amount)
            self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
