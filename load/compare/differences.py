"""Differences between two runs, each with the interval in which it lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from load.compare import noise
from load.measures import COMPLETED
from load.report.results import Request, Run

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
QUANTILES = {"p50": 0.5, "p99": 0.99}
CONFIDENCE = 0.99
"""Of the interval of each difference. There are seven for a route: at 0.95, chance would make one in every third."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure in both runs, and by how much the second may be above the first."""

    route: str
    figure: str
    before: float
    after: float
    low: float
    high: float
    more_is_worse: bool = True

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def worse(self) -> bool:
        """Whether the second run is worse, beyond noise."""
        return self.beyond_noise and (self.low > 0) is self.more_is_worse

    @property
    def change(self) -> float:
        """The difference as a share of the first; infinite where that is zero."""
        if self.before:
            return (self.after - self.before) / self.before
        return 0.0 if self.after == self.before else float("inf") * (self.after - self.before)

    def regressed(self, bound: float) -> bool:
        """Whether it is worse beyond noise, and by more than a share of the first."""
        return self.worse and abs(self.change) > bound


@dataclass(frozen=True, slots=True)
class Side:
    """A run with its requests."""

    run: Run
    requests: Sequence[Request]


def differences(before: Side, after: Side) -> list[Difference]:
    """Compare the routes that both have."""
    routes = [name for name in before.run.routes if name in after.run.routes]
    return [found for name in routes for found in _of_route(name, before, after)]


def remarks(before: Run, after: Run) -> list[str]:
    """Say what makes the two less than comparable."""
    found = [
        f"The {name} run is invalid: {'; '.join(run.validity.reasons)}"
        for name, run in (("first", before), ("second", after))
        if not run.validity.valid
    ]
    if before.scenario != after.scenario:
        found.append("The scenarios differ: so may everything else, whatever the service does.")
    if missing := sorted(before.routes.keys() ^ after.routes.keys()):
        found.append(f"Routes of one run only are left out: {', '.join(missing)}")
    return found


def _of_route(name: str, before: Side, after: Side) -> Iterator[Difference]:
    sides = [
        ([item for item in side.requests if item.route == name], side.run.duration_s, seed)
        for seed, side in enumerate((before, after))
    ]
    drawn = [noise.shares(made, duration_s=length, seed=seed, outcome=COMPLETED) for made, length, seed in sides]
    yield from _difference(name, "completed", drawn, more_is_worse=False)
    for metric in LATENCIES:
        for label, quantile in QUANTILES.items():
            found = [
                noise.percentiles(made, metric, quantile, duration_s=length, seed=seed) for made, length, seed in sides
            ]
            yield from _difference(name, f"{metric.removesuffix('_s')} {label}", found)


def _difference(
    route: str, figure: str, drawn: Sequence[noise.Floats | None], *, more_is_worse: bool = True
) -> Iterator[Difference]:
    first, second = drawn
    if first is None or second is None:
        return
    both = min(len(first), len(second))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(second[1:both] - first[1:both], [tail, 1 - tail])
    yield Difference(
        route, figure, float(first[0]), float(second[0]), float(low), float(high), more_is_worse=more_is_worse
    )
