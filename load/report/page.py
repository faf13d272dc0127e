"""The page of one run, and the same figures as JSON."""

from collections.abc import Sequence
from typing import Any

import yaml

from load.report.html import Cell, Html, listed, page, picture, table, tag, verdict
from load.report.plots import Picture
from load.report.results import Distribution, Objective, Route, Run

PERCENTILES = ("p50", "p90", "p95", "p99", "max")
LATENCIES = {
    "ttft_s": "time to first token",
    "itl_s": "gap between contents",
    "tpot_s": "time per output token",
    "e2e_s": "whole answer",
}
MS = 1000


def judged(run: Run) -> tuple[bool, str]:
    """Return whether a run passed, and the verdict in words."""
    if not run.validity.valid:
        return False, f"Invalid: it says nothing about the service. {'; '.join(run.validity.reasons)}"
    missed = [item.name for item in run.slo.results if not item.held]
    if not run.slo.held:
        return False, f"Objectives were missed: {', '.join(missed) or 'see below'}"
    return True, "Valid, and every objective held"


def run_page(run: Run, pictures: Sequence[Picture]) -> str:
    """Return the page of one run."""
    return page(
        f"Load: {run.name}",
        [
            verdict(*judged(run)),
            tag("p", f"Begun {run.started_at:%Y-%m-%d %H:%M:%S %Z}, {run.duration_s:.1f} s long."),
            *_validity(run),
            tag("h2", "Objectives"),
            _objectives(run.slo.results),
            tag("h2", "Routes"),
            _routes(run),
            tag("h2", "Latency in milliseconds, from when a request was due"),
            _latencies(run),
            *(part for shown in pictures for part in (tag("h2", shown.title), picture(shown))),
            tag("h2", "Scenario"),
            tag("pre", yaml.safe_dump(run.scenario, sort_keys=False, allow_unicode=True)),
        ],
    )


def run_summary(run: Run) -> dict[str, Any]:
    """Return the page's figures, without those of each second."""
    passed, words = judged(run)
    return {
        "passed": passed,
        "verdict": words,
        **run.model_dump(mode="json", exclude={"timeline", "requests"}),
        "asked_per_s": run.asked_per_s,
    }


def _validity(run: Run) -> list[Html]:
    made = run.generator
    delay = made.schedule_delay_s
    facts = [
        ("asked", made.asked),
        ("sent", made.sent),
        ("achieved", _percent(made.achieved_ratio)),
        ("asked each second", run.asked_per_s),
        ("goodput each second", run.goodput.per_s),
        ("goodput", _percent(run.goodput.ratio)),
        ("generator late, median", _ms(delay.p50)),
        ("generator late, p99", _ms(delay.p99)),
    ]
    parts = [tag("h2", "The run"), table(("", ""), facts)]
    return [*parts, listed(run.validity.reasons)] if run.validity.reasons else parts


def _objectives(results: Sequence[Objective]) -> Html:
    if not results:
        return tag("p", "The scenario has none.")
    rows = [
        (
            item.name,
            item.metric,
            "" if item.percentile is None else str(item.percentile),
            item.bound,
            item.value,
            tag("span", "held" if item.held else "missed", "good" if item.held else "bad"),
        )
        for item in results
    ]
    return table(("objective", "metric", "percentile", "bound", "measured", ""), rows)


def _routes(run: Run) -> Html:
    rows = [
        (
            name,
            route.asked,
            route.completed,
            ", ".join(f"{count} {kind}" for kind, count in route.failed.items()) or "0",
            route.cut,
            route.stalls,
            route.output_tokens,
        )
        for name, route in run.routes.items()
    ]
    return table(("route", "asked", "completed", "failed", "cut", "stalls", "output tokens"), rows)


def _latencies(run: Run) -> Html:
    rows = [row for name, route in run.routes.items() for row in _latency_rows(name, route)]
    return table(("route", "", *PERCENTILES, "mean"), rows)


def _latency_rows(name: str, route: Route) -> list[list[Cell]]:
    found: list[list[Cell]] = []
    for metric, title in LATENCIES.items():
        values: Distribution = getattr(route, metric)
        if values.p50 is not None:
            found.append([name, title, *(_ms(getattr(values, key)) for key in (*PERCENTILES, "mean"))])
    return found


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * MS:.4g}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"
