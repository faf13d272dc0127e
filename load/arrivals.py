"""When requests are meant to be sent: pure arithmetic on seconds from the start of a run, without a clock.

A schedule is a function of the scenario alone, so every worker makes the whole of it and takes its own share: the sum
over the workers is the process that was asked for, however many there are.
"""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count, islice, repeat


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is due, and what a trace says of its size."""

    at_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    prefix: tuple[int, ...] = ()
    """Ids of the blocks that its prompt begins with; requests with the same ids share that text."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A time in which the rate is one."""

    rate_per_s: float
    duration_s: float


def evenly() -> Iterator[float]:
    """Count expected arrivals: 0, 1, 2…, so that the first is due at once and the gaps are equal."""
    return map(float, count())


def randomly(seed: int) -> Iterator[float]:
    """Add up exponential gaps of mean 1: through `schedule` it becomes a Poisson process of any rate."""
    generator = random.Random(seed)  # noqa: S311 - a process that repeats, not a secret
    return accumulate(generator.expovariate(rate) for rate in repeat(1.0))


def schedule(segments: Iterable[Segment], marks: Iterator[float]) -> Iterator[Arrival]:
    """Put marks, which count expected arrivals, to the times at which the rates have brought so many.

    That is exact for rates that change: no gap is drawn at one rate and spent at another.
    """
    begun_s, before = 0.0, 0.0
    mark = next(marks)
    for segment in segments:
        after = before + segment.rate_per_s * segment.duration_s
        # 0.1 * 10 s must not lose its last request to rounding, nor win one.
        while mark < after - 1e-9:
            yield Arrival(begun_s + (mark - before) / segment.rate_per_s)
            mark = next(marks)
        begun_s, before = begun_s + segment.duration_s, after


def replayed(rows: Iterable[Arrival], *, speed: float, duration_s: float | None) -> Iterator[Arrival]:
    """Give a trace's rows, in order, `speed` times as fast, up to the duration of the run."""
    for row in sorted(rows, key=lambda row: row.at_s):
        at_s = row.at_s / speed
        if duration_s is not None and at_s >= duration_s:
            return
        yield Arrival(at_s, row.input_tokens, row.output_tokens, row.prefix)


def share(arrivals: Iterable[Arrival], index: int, workers: int) -> Iterator[Arrival]:
    """Give one worker's part: each n-th arrival, so that the shares together are all, once."""
    return islice(arrivals, index, None, workers)


def length_of(segments: Iterable[Segment]) -> float:
    """Return how long segments last together, in seconds."""
    return math.fsum(segment.duration_s for segment in segments)
