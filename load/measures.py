"""What is measured of each request, and the statistics of many. The definitions are those of docs/load.md."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from load.scenario import Bounds

COMPLETED: Final = "completed"
_STEP: Final = math.log(1.01)
"""Gaps are counted in classes that are 1 % wide: a percentile is within half a percent."""
_LEAST_S: Final = 1e-6
"""Shorter gaps count as this: two contents in one read came together."""


@dataclass(slots=True)
class Record:
    """One request, in seconds from the start of the run. It is written from the intended time on, whatever happened."""

    route: str
    intended_s: float
    sent_s: float
    first_s: float | None = None
    """When the first content of a stream came; None for what is answered whole."""
    last_s: float | None = None
    end_s: float = 0.0
    chunks: int = 0
    output_tokens: int | None = None
    outcome: str = COMPLETED
    """`completed`, or the kind of failure."""
    max_gap_s: float = 0.0
    stalls: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from the intended time."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; undefined for one token."""
        if self.first_s is None or self.last_s is None or not self.output_tokens or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Intended time to end."""
        return self.end_s - self.intended_s

    @property
    def delay_s(self) -> float:
        """How late the generator was."""
        return self.sent_s - self.intended_s

    def observe(self, times: Sequence[float], stall_s: float) -> list[float]:
        """Take the times at which contents came; return the gaps between them."""
        gaps = [after - before for before, after in pairwise(times)]
        if times:
            self.first_s, self.last_s, self.chunks = times[0], times[-1], len(times)
        self.max_gap_s = max(gaps, default=0.0)
        self.stalls = sum(gap > stall_s for gap in gaps)
        return gaps

    def is_good(self, bounds: Bounds) -> bool:
        """Whether it ended well within all bounds that apply to it."""
        kept = (
            (self.ttft_s, bounds.ttft_s),
            (self.tpot_s, bounds.tpot_s),
            (self.e2e_s, bounds.e2e_s),
            (self.max_gap_s, bounds.max_gap_s),
        )
        within = all(value is None or bound is None or value <= bound for value, bound in kept)
        return self.outcome == COMPLETED and within


@dataclass(slots=True)
class Gaps:
    """A distribution of gaps in bounded memory, which adds up over workers."""

    classes: Counter[int] = field(default_factory=Counter)
    total_s: float = 0.0
    max_s: float = 0.0

    def add(self, gap_s: float) -> None:
        """Count one gap."""
        self.classes[round(math.log(max(gap_s, _LEAST_S)) / _STEP)] += 1
        self.total_s += gap_s
        self.max_s = max(self.max_s, gap_s)

    def merge(self, other: "Gaps") -> None:
        """Add another's."""
        self.classes.update(other.classes)
        self.total_s += other.total_s
        self.max_s = max(self.max_s, other.max_s)

    def percentile(self, percent: float) -> float | None:
        """Return the nearest-rank percentile, None without gaps."""
        rank = math.ceil(self.classes.total() * percent / 100)
        for number in sorted(self.classes):
            rank -= self.classes[number]
            if rank <= 0:
                return min(math.exp(number * _STEP), self.max_s)
        return None

    def summary(self) -> dict[str, float | None]:
        """Return percentiles, maximum and mean."""
        count = self.classes.total()
        found = {f"p{percent}": self.percentile(percent) for percent in (50, 90, 95, 99)}
        return {**found, "max": self.max_s if count else None, "mean": self.total_s / count if count else None}

    def packed(self) -> list[Any]:
        """Return what `unpacked` takes, for a message."""
        return [list(self.classes.items()), self.total_s, self.max_s]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> "Gaps":
        """Make what was packed."""
        return cls(Counter(dict(packed[0])), packed[1], packed[2])


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: the least value that so many percent do not exceed. None without values."""
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1] if ordered else None


def summary(values: Iterable[float | None]) -> dict[str, float | None]:
    """Return percentiles, maximum and mean of what is not None; all None where nothing is."""
    ordered = array("d", sorted(value for value in values if value is not None))
    found = {f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 95, 99)}
    return {
        **found,
        "max": ordered[-1] if ordered else None,
        "mean": math.fsum(ordered) / len(ordered) if ordered else None,
    }


def pick(figures: Mapping[str, float | None], *names: str) -> dict[str, float | None]:
    """Return some of a summary's figures."""
    return {name: figures[name] for name in names}
