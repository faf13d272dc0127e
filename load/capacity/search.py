"""The search for the knee: the highest rate at which the objectives held. Knows rates and verdicts, no load."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

Verdict = Literal["held", "breached", "invalid"]
"""Of a run; invalid is one in which the generator lagged, so that it says nothing about the service."""
Bound = Literal["objectives", "generator", "rate_max", "steps", "nothing_held"]
"""What the knee lies below: a rate at which objectives were missed, or only what could be asked of the service."""
Measure = Callable[[float], Verdict]
AGREEING, RUNS_MAX = 2, 3
"""Runs at one rate that decide, and the most that are made: one alone may be a neighbour's noise, for good or ill."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How the search goes; rates are requests each second."""

    start: float
    rate_max: float
    rate_min: float = 0.1
    factor: float = 1.5
    """From one rate of the ramp to the next."""
    tolerance: float = 0.1
    """How far above the knee the rate may lie that did not hold, as a share of the knee."""
    steps_max: int = 40
    """Runs, after which the search ends with what is confirmed."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search ended with."""

    knee_per_s: float | None
    bounded_by: Bound
    runs: dict[float, list[Verdict]]


class _Spent(Exception):  # noqa: N818 - it reads as what happened
    """All runs have been made."""


@dataclass(slots=True)
class _Runs:
    measure: Measure
    left: int
    seen: dict[float, list[Verdict]] = field(default_factory=dict)

    def probed(self, rate: float) -> Verdict:
        """Return held after one run that held, and anything else only if it is confirmed."""
        first = self.seen[rate][0] if rate in self.seen else self._run(rate)
        return first if first == "held" else self.decided(rate)

    def decided(self, rate: float) -> Verdict:
        """Return on what two runs agree; where no two of three do, the rate did not hold."""
        while True:
            made = self.seen.get(rate, [])
            for verdict in made:
                if made.count(verdict) >= AGREEING:
                    return verdict
            if len(made) >= RUNS_MAX:
                return "breached"
            self._run(rate)

    def confirmed(self) -> float | None:
        """Return the highest rate at which two runs held."""
        return max((rate for rate, made in self.seen.items() if made.count("held") >= AGREEING), default=None)

    def _run(self, rate: float) -> Verdict:
        if not self.left:
            raise _Spent
        self.left -= 1
        verdict = self.measure(rate)
        self.seen.setdefault(rate, []).append(verdict)
        return verdict


def find_knee(measure: Measure, limits: Limits) -> Found:
    """Ramp up by single runs until a rate does not hold, confirm the last that did, and halve the interval between."""
    runs = _Runs(measure, limits.steps_max)
    try:
        return _search(runs, limits)
    except _Spent:
        return Found(runs.confirmed(), "steps", runs.seen)


def _search(runs: _Runs, limits: Limits) -> Found:
    low, high = _ramped(runs, limits)
    while low is not None and runs.decided(low) != "held":
        # Its one run held by luck: go on below it.
        low, high = _held_below(runs, low), low
    if low is None:
        low, high = _descended(runs, limits, high or limits.start)
    if low is None:
        return Found(None, "nothing_held", runs.seen)
    low, high = _halved(runs, limits, low, high)
    return Found(low, _bound(runs, high), runs.seen)


def _ramped(runs: _Runs, limits: Limits) -> tuple[float | None, float | None]:
    low, rate = None, min(limits.start, limits.rate_max)
    while runs.probed(rate) == "held":
        low = rate
        if rate >= limits.rate_max:
            return low, None
        rate = min(rate * limits.factor, limits.rate_max)
    return low, rate


def _descended(runs: _Runs, limits: Limits, high: float) -> tuple[float | None, float]:
    rate = high / limits.factor
    while rate >= limits.rate_min:
        if runs.decided(rate) == "held":
            return rate, high
        rate, high = rate / limits.factor, rate
    return None, high


def _halved(runs: _Runs, limits: Limits, low: float, high: float | None) -> tuple[float, float | None]:
    while high is not None and high / low > 1 + limits.tolerance:
        middle = sqrt(low * high)
        if runs.decided(middle) == "held":
            low = middle
        else:
            high = middle
    return low, high


def _held_below(runs: _Runs, rate: float) -> float | None:
    return max((lower for lower, made in runs.seen.items() if lower < rate and made[0] == "held"), default=None)


def _bound(runs: _Runs, high: float | None) -> Bound:
    if high is None:
        return "rate_max"
    return "generator" if runs.decided(high) == "invalid" else "objectives"
