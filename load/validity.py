"""Judges a run: whether the generator kept its schedule, and whether the service kept the objectives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from load.measures import COMPLETED, Gaps, Record, percentile
from load.scenario import Objective, Scenario

DELAY_MAX_S: Final = 0.010
"""Median lateness of the generator; beyond it, latencies tell of the generator (inference-perf's advice)."""
ACHIEVED_MIN: Final = 0.99
"""Share of the asked requests that were sent in time of the run."""
GENERATOR: Final = "generator"
"""The outcome of a request that this side could not send: no descriptors, no ports."""
EXIT_INVALID: Final = 3
EXIT_BREACH: Final = 4


@dataclass(frozen=True, slots=True)
class Sent:
    """How the generator did."""

    asked: int
    in_time: int
    """Sent before the schedule was over, and the allowed delay."""
    delay_p50_s: float | None
    unsendable: int = 0


def reasons_against(sent: Sent) -> list[str]:
    """Say why a run tells nothing about the service; empty if it does."""
    reasons = []
    if not sent.asked:
        reasons.append("nothing was asked: lengthen the run, or raise the rate")
    elif sent.in_time < ACHIEVED_MIN * sent.asked:
        reasons.append(f"only {sent.in_time} of {sent.asked} requests were sent in time: add workers or CPU")
    if sent.delay_p50_s is not None and sent.delay_p50_s > DELAY_MAX_S:
        reasons.append(f"requests left {sent.delay_p50_s * 1000:.1f} ms late at the median: add workers or CPU")
    if sent.unsendable:
        reasons.append(
            f"{sent.unsendable} requests could not be sent from here: raise the limit of open files or ports"
        )
    return reasons


def held(
    scenario: Scenario, records: Iterable[Record], gaps: Mapping[str, Gaps], asked: int
) -> list[dict[str, str | float | bool | None]]:
    """Return what became of each objective. One without a single measurement is not held."""
    all_records = list(records)
    results: list[dict[str, str | float | bool | None]] = []
    for objective in scenario.objectives:
        chosen = [one for one in all_records if objective.routes is None or one.route in objective.routes]
        value = _value(objective, scenario, chosen, gaps, asked if objective.routes is None else len(chosen))
        least = objective.metric == "goodput_ratio"
        fits = value is not None and (value >= objective.bound if least else value <= objective.bound)
        results.append(
            {
                "name": objective.label,
                "metric": objective.metric,
                "percentile": objective.percentile,
                "bound": objective.bound,
                "value": value,
                "held": fits,
            }
        )
    return results


def _value(
    objective: Objective, scenario: Scenario, records: list[Record], gaps: Mapping[str, Gaps], asked: int
) -> float | None:
    if objective.metric == "itl_s":
        pooled = Gaps()
        for route, found in gaps.items():
            if objective.routes is None or route in objective.routes:
                pooled.merge(found)
        return pooled.percentile(objective.percentile or 0)
    if objective.percentile is not None:
        values = sorted(value for one in records if (value := getattr(one, objective.metric)) is not None)
        return percentile(values, objective.percentile)
    if not asked:
        return None
    counted = {
        # What was asked and left no record has not ended well either.
        "failed_ratio": asked - sum(one.outcome == COMPLETED for one in records),
        "goodput_ratio": sum(one.is_good(scenario.goodput) for one in records),
        "stalled_ratio": sum(one.stalls > 0 for one in records),
    }
    return counted[objective.metric] / asked


def exit_code(*, valid: bool, slo_held: bool) -> int:
    """Return the process's status: an invalid run is never passed, nor blamed on the service."""
    if not valid:
        return EXIT_INVALID
    return 0 if slo_held else EXIT_BREACH
