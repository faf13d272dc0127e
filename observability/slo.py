"""The objectives, and the recording rules that measure them, named as Sloth names its own so that its dashboards work.

Windows and factors are those of the SRE workbook, chapter 5: a page when 2 % of a month's budget is spent in an hour or
5 % in six, a ticket when 10 % is spent in a day or in three.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from observability.promql import BAD, GENERATES, POLLS, boundary, share, summed

Severity = Literal["page", "ticket"]

PERIOD_DAYS = 30
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
REACH = 0.9
"""Of the fastest burn there can be: a factor above it would hardly ever be met, however bad it is."""
LEAST_BAD = 10
"""Events that went badly in an alert's long window: in a quiet night fewer are most of all, and wake nobody."""


@dataclass(frozen=True, slots=True)
class Burn:
    """When the budget is spent too fast: in both windows, so that it is neither a blip nor long over."""

    severity: Severity
    long: str
    short: str
    factor: float
    """Times the speed that would spend the budget in exactly the period."""


BURNS = (
    Burn("page", "1h", "5m", 14.4),
    Burn("page", "6h", "30m", 6),
    Burn("ticket", "1d", "2h", 3),
    Burn("ticket", "3d", "6h", 1),
)


@dataclass(frozen=True, slots=True)
class Objective:
    """What share of what happens has to go well."""

    name: str
    alert: str
    """The alert that tells when it does not."""
    percent: float
    description: str
    counter: str
    """The metric whose samples are what happens."""
    labels: str
    """Of all that happens."""
    bad: str | None = None
    """Of what goes badly, beside those; None for a histogram."""
    within_s: float | None = None
    """For a histogram: what takes longer goes badly. Has to be a boundary of its buckets."""
    pages: bool = True
    """Whether somebody is to be woken; otherwise it makes tickets alone."""

    @property
    def sloth_id(self) -> str:
        """The name of it among all services' objectives."""
        return f"llm-api-{self.name}"

    @property
    def budget(self) -> float:
        """The share that may go badly."""
        return round(1 - self.percent / 100, 9)

    def burns(self) -> Iterator[Burn]:
        """List its alerts, with factors that can be met.

        The fastest burn is 1/budget, when all goes badly: at 90 % it is 10, and 14.4 would never page.
        """
        ceiling = 1 / self.budget
        if ceiling * REACH < BURNS[-1].factor:
            raise ValueError(f"{self.name}: at {self.percent:g} % nothing can be told from its normal state")
        for burn in BURNS:
            if self.pages or burn.severity == "ticket":
                yield Burn(burn.severity, burn.long, burn.short, min(burn.factor, round(ceiling * REACH, 3)))

    def events(self, function: str, window: str) -> str:
        """Count what happened."""
        return summed(function, self.counter + ("_count" if self.within_s else ""), self.labels, window)

    def bad_events(self, function: str, window: str) -> str:
        """Count what went badly."""
        if self.within_s is None:
            return summed(function, self.counter, f"{self.labels},{self.bad}", window)
        within = f'{self.labels},le="{boundary(self.within_s)}"'.removeprefix(",")
        good = summed(function, f"{self.counter}_bucket", within, window)
        return f"({self.events(function, window)} - {good})"

    def error_ratio(self, window: str) -> str:
        """Return the share that went badly."""
        return share(self.bad_events("rate", window), self.events("rate", window))


OBJECTIVES = (
    Objective(
        "availability",
        "LLMAPIAvailabilityBurn",
        99.9,
        "Requests are answered to their end; mistakes, limits and departures of callers do not count",
        "llm_api_requests_ended_total",
        f'{GENERATES},fault!="caller"',
        bad=f'fault=~"{BAD}"',
    ),
    Objective(
        "own-fault",
        "LLMAPIOwnFaultBurn",
        99.95,
        "Requests do not fail by a fault of this service; outages of providers do not count",
        "llm_api_requests_ended_total",
        f'{GENERATES},fault!="caller"',
        bad='fault="us"',
        pages=False,
    ),
    Objective(
        "polls",
        "LLMAPIAvailabilityBurn",
        99.9,
        "Callers learn how their background jobs and batches are",
        "llm_api_requests_ended_total",
        f'{POLLS},fault!="caller"',
        bad=f'fault=~"{BAD}"',
        pages=False,
    ),
    *(
        Objective(
            f"first-token-{transport}",
            "LLMAPIFirstTokenBurn",
            95,
            f"Streams ({transport}) hand on their first content within 2 s",
            "llm_api_time_to_first_token_seconds",
            f'transport="{transport}"',
            within_s=2,
        )
        for transport in ("sse", "ws")
    ),
    Objective(
        "overhead",
        "LLMAPIOverheadBurn",
        99,
        "Our own part of a request is at most 50 ms",
        "llm_api_overhead_seconds",
        'transport=~".+"',
        within_s=0.05,
        pages=False,
    ),
    Objective(
        "job-wait",
        "LLMAPIJobWaitBurn",
        99,
        "Interactive background jobs are begun within 5 min",
        "llm_api_job_wait_seconds",
        'priority="interactive"',
        within_s=300,
        pages=False,
    ),
)
"""To start with: each deployment sets its own after it has seen its baseline."""


def recording_rules(objective: Objective) -> dict[str, Any]:
    """Return the group that measures one objective."""
    labels = {"sloth_id": objective.sloth_id, "sloth_service": "llm-api", "sloth_slo": objective.name}
    selector = ",".join(f'{name}="{value}"' for name, value in labels.items())

    def rule(record: str, expr: str, **more: str) -> dict[str, Any]:
        return {"record": record, "expr": expr, "labels": {**labels, **more}}

    five_minutes = f"slo:sli_error:ratio_rate5m{{{selector}}}"
    month = f"{PERIOD_DAYS}d"
    return {
        "name": f"llm-api-slo-{objective.name}",
        "rules": [
            *(
                rule(f"slo:sli_error:ratio_rate{window}", objective.error_ratio(window), sloth_window=window)
                for window in WINDOWS
            ),
            rule(
                f"slo:sli_error:ratio_rate{month}",
                f"sum_over_time({five_minutes}[{month}]) / count_over_time({five_minutes}[{month}])",
                sloth_window=month,
            ),
            rule("slo:objective:ratio", f"vector({1 - objective.budget:g})"),
            rule("slo:error_budget:ratio", f"vector({objective.budget:g})"),
            rule("slo:time_period:days", f"vector({PERIOD_DAYS})"),
            rule(
                "slo:current_burn_rate:ratio",
                f"{five_minutes} / on (sloth_id) group_left slo:error_budget:ratio{{{selector}}}",
            ),
            rule(
                "slo:period_burn_rate:ratio",
                f"slo:sli_error:ratio_rate{month}{{{selector}}} / on (sloth_id) group_left "
                f"slo:error_budget:ratio{{{selector}}}",
            ),
            rule("slo:period_error_budget_remaining:ratio", f"1 - slo:period_burn_rate:ratio{{{selector}}}"),
            rule(
                "sloth_slo_info",
                "vector(1)",
                sloth_objective=f"{objective.percent:g}",
                sloth_spec="prometheus/v1",
                sloth_mode="llm-api",
            ),
        ],
    }
