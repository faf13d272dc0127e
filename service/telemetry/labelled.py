"""Counters and histograms of ``prometheus_client`` that find a series by its labels at once.

Theirs makes texts of the labels and takes a lock for each look, a dozen times for each request.
"""

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


class Histogram(_Remembers, prometheus_client.Histogram):
    """A histogram."""
