"""How far a figure of a run might have been another by chance: a bootstrap over blocks of time.

Requests that follow each other are alike: a stall slows all of them. So stretches of the run are drawn, not requests;
drawing single requests would call noise a difference.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from load.report.results import Request

BLOCKS = 30
"""Stretches that a run is cut into."""
REPLICATES = 1000
ENOUGH = 20
"""Requests below which nothing is said of a percentile."""

Floats = npt.NDArray[np.float64]


def percentiles(
    requests: Sequence[Request], metric: str, quantile: float, *, duration_s: float, seed: int
) -> Floats | None:
    """Return what a percentile (nearest rank) might have been, the measured one first; None of too few requests."""
    known = [(item.intended_s, value) for item in requests if (value := getattr(item, metric)) is not None]
    if len(known) < ENOUGH:
        return None
    times, values = (np.asarray(column) for column in zip(*known, strict=True))
    order = np.argsort(values)
    blocks = _blocks(times, duration_s)[order]
    return np.asarray([_weighted(values[order], weights[blocks], quantile) for weights in _draws(seed)])


def shares(requests: Sequence[Request], *, duration_s: float, seed: int, outcome: str) -> Floats | None:
    """Return what the share of requests that ended so might have been, the measured one first."""
    if len(requests) < ENOUGH:
        return None
    blocks = _blocks(np.asarray([item.intended_s for item in requests]), duration_s)
    hits = np.bincount(blocks, [item.outcome == outcome for item in requests], minlength=BLOCKS)
    counts = np.bincount(blocks, minlength=BLOCKS)
    draws = _draws(seed)
    totals = draws @ counts
    found: Floats = (draws @ hits)[totals > 0] / totals[totals > 0]
    return found


def _blocks(times_s: Floats, duration_s: float) -> npt.NDArray[np.intp]:
    return np.clip((times_s / duration_s * BLOCKS).astype(np.intp), 0, BLOCKS - 1)


def _draws(seed: int) -> Floats:
    """Return how often each block is drawn: first each once, then at random."""
    drawn = np.random.default_rng(seed).multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), REPLICATES)
    return np.vstack([np.ones((1, BLOCKS)), drawn])


def _weighted(ordered: Floats, weights: Floats, quantile: float) -> float:
    reached = np.cumsum(weights)
    if not reached[-1]:
        return float("nan")
    # A rank of 990.0000001 for 0.99 of 1000 is 990.
    rank = np.ceil(quantile * reached[-1] - 1e-9)
    return float(ordered[min(int(np.searchsorted(reached, rank)), len(ordered) - 1)])
