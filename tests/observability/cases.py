"""For each alert, what makes it fire, what just does not, and how it ends: series as promtool reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from observability.alerts import ALERTS, HOURLY_COST, Alert
from observability.promql import POLLS, boundary
from observability.slo import OBJECTIVES, Objective, recording_rules

OVER, UNDER = 1.1, 0.9
"""Times a threshold."""
DAY_MIN = 24 * 60
_MINUTES = {"m": 1, "h": 60, "d": DAY_MIN}
N = 'namespace="n"'


def minutes(window: str) -> int:
    """Return the length of a window."""
    return int(window[:-1]) * _MINUTES[window[-1]]


@dataclass(frozen=True, slots=True)
class Case:
    """What is in the database, and whether the alert fires after so long."""

    name: str
    series: Mapping[str, str]
    at_min: int
    fires: bool
    step_min: int = 1

    def test(self, alert: Alert) -> dict[str, Any]:
        """Return it as one of promtool's tests."""
        selector = ",".join(
            f'{name}="{value}"'
            for name, value in {"alertname": alert.name, "alertstate": "firing", **alert.labels}.items()
        )
        return {
            "name": f"{alert.key}: {self.name}",
            "interval": f"{self.step_min}m",
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "promql_expr_test": [
                {
                    "expr": f"count(ALERTS{{{selector}}})",
                    "eval_time": f"{self.at_min}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if self.fires else [],
                }
            ],
        }


def file_of(alert: Alert, cases: Sequence[Case], rules: str) -> dict[str, Any]:
    """Return a test file of promtool's."""
    step_min = max(case.step_min for case in cases)
    return {
        "rule_files": [rules],
        "evaluation_interval": f"{step_min}m",
        "tests": [case.test(alert) for case in cases],
    }


def recorded_for(alert: Alert) -> list[dict[str, Any]]:
    """Return the recording rules that an alert looks at."""
    rules = [
        rule for one in OBJECTIVES if one.name == alert.labels.get("slo") for rule in recording_rules(one)["rules"]
    ]
    return [rule for rule in rules if rule["record"] + "{" in alert.expr]


def _counter(*phases: tuple[float, int]) -> str:
    """Make a counter that grows by so much in each step, for so many steps, and then otherwise."""
    value = 0.0
    parts: list[str] = []
    for rate, steps in phases:
        parts.append(f"{value:.9g}+{rate:.9g}x{steps - 1 if parts else steps}" if rate else f"{value:.9g}x{steps - 1}")
        value += rate * steps
        if rate and len(parts) > 1:
            parts[-1] = f"{value - rate * (steps - 1):.9g}+{rate:.9g}x{steps - 1}"
    return " ".join(parts)


def _shares(objective: Objective, bad: Sequence[tuple[float, int]], total: float) -> dict[str, str]:
    """Make an objective's series, with ``total`` events in each step, of which these go badly."""
    if objective.within_s is not None:
        name, labels = objective.counter, f"{N},{objective.labels.replace('=~', '=').replace('.+', 'http')}"
        return {
            f"{name}_count{{{labels}}}": _counter(*((total, steps) for _, steps in bad)),
            f'{name}_bucket{{{labels},le="{boundary(objective.within_s)}"}}': _counter(
                *((total * (1 - share), steps) for share, steps in bad)
            ),
        }
    name = objective.counter
    family = 'family="polls"' if POLLS in objective.labels else 'family="chat"'
    return {
        f'{name}{{{N},{family},fault="none"}}': _counter(*((total * (1 - share), steps) for share, steps in bad)),
        f'{name}{{{N},{family},fault="us"}}': _counter(*((total * share, steps) for share, steps in bad)),
        f'{name}{{{N},{family},fault="caller"}}': _counter(*((total, steps) for _, steps in bad)),
    }


def _burn(alert: Alert) -> Iterator[Case]:
    objective = next(one for one in OBJECTIVES if one.name == alert.labels["slo"])
    burn = next(one for one in objective.burns() if one.long == alert.labels["window"])
    long_min, short_min = minutes(burn.long), minutes(burn.short)
    step_min = max(1, short_min // 12)
    steps = long_min // step_min
    limit = burn.factor * objective.budget
    least = alert.thresholds["bad"].value / steps
    enough = 5 * least / limit

    def case(name: str, bad: Sequence[tuple[float, int]], total: float, *, fires: bool) -> Case:
        at_min = sum(count for _, count in bad) * step_min
        return Case(name, _shares(objective, bad, total), at_min, fires, step_min)

    yield case("just over", [(OVER * limit, steps + 2)], enough, fires=True)
    yield case("just under", [(UNDER * limit, steps + 2)], enough, fires=False)
    yield case("too few to tell", [(OVER * limit, steps + 2)], UNDER * least / (OVER * limit), fires=False)
    over = short_min // step_min + 1
    yield case("over soon after it is well", [(OVER * limit, steps + 2), (0.0, over)], enough, fires=False)


def _level(series: str, high: float, low: float, *, fires: bool = True) -> Callable[[Alert], Iterator[Case]]:
    """For an alert on a gauge: a value at which it fires, and one at which it just does not."""

    def cases(alert: Alert) -> Iterator[Case]:
        enough = alert.for_min + 1
        yield Case("just over", {series: f"{high}x{enough}"}, enough, fires)
        yield Case("just under", {series: f"{low}x{enough}"}, enough, fires=False)
        yield Case("not for long", {series: f"{high}x{enough}"}, max(0, alert.for_min - 1), fires=alert.for_min == 0)
        yield Case("over", {series: f"{high}x{enough} {low}x2"}, enough + 2, fires=False)

    return cases


def _ratio(
    metric: str, part: str, rest: str, window_min: int, *, over: float = OVER, under: float = UNDER
) -> Callable[[Alert], Iterator[Case]]:
    """For an alert on the share of what is counted: a little over it, a little under it, and over."""

    def cases(alert: Alert) -> Iterator[Case]:
        (threshold,) = alert.thresholds.values()
        long = window_min + alert.for_min + 1

        def series(*phases: tuple[float, int]) -> dict[str, str]:
            return {
                f"{metric}{{{N},{part}}}": _counter(*((100 * share, steps) for share, steps in phases)),
                f"{metric}{{{N},{rest}}}": _counter(*((100 * (1 - share), steps) for share, steps in phases)),
            }

        fine = 0.0 if threshold.side == "above" else 1.0
        yield Case("just over", series((over * threshold.value, long)), long, fires=True)
        yield Case("just under", series((under * threshold.value, long)), long, fires=False)
        yield Case(
            "over", series((over * threshold.value, long), (fine, window_min + 1)), long + window_min + 1, fires=False
        )

    return cases


def _growth(series: str, window_min: int, *, unit: float = 1) -> Callable[[Alert], Iterator[Case]]:
    """For an alert on what is counted in a window; its figure stands for so many times ``unit``."""

    def cases(alert: Alert) -> Iterator[Case]:
        (threshold,) = alert.thresholds.values()
        long = window_min + alert.for_min + 1

        def counter(times: float) -> tuple[float, int]:
            return times * threshold.value * unit / window_min, long

        yield Case("just over", {series: _counter(counter(OVER))}, long, fires=True)
        yield Case("just under", {series: _counter(counter(UNDER))}, long, fires=False)
        quiet = window_min + 1
        yield Case("over", {series: _counter(counter(OVER), (0, quiet))}, long + quiet, fires=False)

    return cases


def _slow(metric: str, labels: str, q: float, window_min: int) -> Callable[[Alert], Iterator[Case]]:
    """For an alert on a quantile, whose threshold is a bucket's boundary."""

    def cases(alert: Alert) -> Iterator[Case]:
        limit = alert.thresholds["seconds"].value
        long = window_min + alert.for_min + 1

        def series(*phases: tuple[float, int]) -> dict[str, str]:
            within = [(100 * share, steps) for share, steps in phases]
            whole = [(100.0, steps) for _, steps in phases]
            name = f"{metric}_bucket{{{N},{labels}"
            return {
                f'{name},le="{boundary(limit)}"}}': _counter(*within),
                f'{name},le="{boundary(2 * limit)}"}}': _counter(*whole),
                f'{name},le="+Inf"}}': _counter(*whole),
            }

        yield Case("just over", series((q - 0.005, long)), long, fires=True)
        yield Case("just under", series((q + 0.005, long)), long, fires=False)
        quiet = window_min + 1
        yield Case("over", series((q - 0.005, long), (1.0, quiet)), long + quiet, fires=False)

    return cases


def _spending(alert: Alert) -> Iterator[Case]:
    step_min = 30  # longer than the alert's patience, shorter than ten times that
    factor, floor = (alert.thresholds[name].value for name in ("factor", "floor"))
    series = f"{HOURLY_COST}{{{N}}}"
    week = 7 * DAY_MIN // step_min

    def case(name: str, usual: float, now: float, *, then: int = 0, fires: bool) -> Case:
        values = f"{usual:g}x{week} {now:g}x1" + (f" {usual:g}x{then}" if then else "")
        return Case(name, {series: values}, (week + 2 + then) * step_min, fires, step_min)

    usual = floor / 2
    yield case("just over", usual, OVER * factor * usual, fires=True)
    yield case("just under", usual, UNDER * factor * usual, fires=False)
    yield case("too little to matter", floor / 10, UNDER * floor, fires=False)
    yield case("over", usual, OVER * factor * usual, then=2, fires=False)


def _nothing(alert: Alert) -> Iterator[Case]:
    series = f'llm_api_requests_ended_total{{{N},family="chat",fault="none"}}'
    enough = alert.for_min + 1
    yield Case("nothing there", {}, enough, fires=True)
    yield Case("not for long", {}, alert.for_min - 1, fires=False)
    yield Case("something there", {series: f"0x{enough}"}, enough, fires=False)
    yield Case("over", {series: f"_x{enough} 0x2"}, enough + 2, fires=False)


def _most_fail(alert: Alert) -> Iterator[Case]:
    share, failures = (alert.thresholds[name].value for name in ("share", "failures"))
    window_min = 30

    def series(bad: float, fine: float, quiet: int = 0) -> dict[str, str]:
        return {
            f'{_ENDED}{{{N},family="chat",fault="{fault}"}}': _counter(
                (count / window_min, window_min), *([(0, quiet)] if quiet else [])
            )
            for fault, count in (("provider", bad), ("none", fine), ("caller", 100.0))
        }

    few = OVER * failures
    yield Case("just over, on a quiet day", series(few, 0.9 * few), window_min, fires=True)
    yield Case("just under the share", series(few, few * (1 / share - 1) * OVER), window_min, fires=False)
    yield Case("a few calls of a quiet night", series(UNDER * failures, 0), window_min, fires=False)
    yield Case("over", series(few, 0, window_min + 1), 2 * window_min + 1, fires=False)


def _down(alert: Alert) -> Iterator[Case]:
    def process(component: str, instance: str) -> tuple[str, str]:
        labels = f'{N},instance="{instance}"'
        return f'llm_api_build_info{{{labels},component="{component}"}}', f"llm_api_ready{{{labels}}}"

    api, ready = process("api", "a")
    worker, worker_ready = process("worker", "w")
    lives = {worker: "1x60", worker_ready: "1x60"}
    long = alert.for_min + 1
    yield Case("only a worker lives", lives, long, fires=True)
    yield Case("all died", {api: "1 stale", ready: "1 stale"}, long + 1, fires=True)
    yield Case("all died, hours ago", {api: "1 stale", ready: "1 stale"}, 20 * 60, fires=True)
    yield Case("not one is ready", {api: "1x60", ready: "0x60", **lives}, long, fires=True)
    yield Case("not for long", lives, alert.for_min - 1, fires=False)
    yield Case("one is ready", {api: "1x60", ready: "1x60", **lives}, long, fires=False)
    another, another_ready = process("api", "b")
    yield Case("one of two", {api: "1x60", ready: "0x60", another: "1x60", another_ready: "1x60"}, long, fires=False)
    yield Case("there never was one", {}, long, fires=False)
    late = f"_x{long} 1x60"
    yield Case("over", {api: late, ready: late, **lives}, long + 2, fires=False)


_CALLS = "llm_api_upstream_requests_total"
_ENDED = "llm_api_requests_ended_total"
_P = 'provider="p"'

CASES: dict[str, Callable[[Alert], Iterator[Case]]] = {
    "LLMAPIAllProvidersUnavailable": _ratio(
        _CALLS, f'{_P},outcome="ok"', f'{_P},outcome="upstream_unavailable"', 5, over=UNDER, under=OVER
    ),
    "LLMAPIMostFail": _most_fail,
    "LLMAPIDown": _down,
    "LLMAPIProviderKeyDead": _level(f"llm_api_provider_keys_dead{{{N},{_P}}}", 1, 0),
    "LLMAPIJobsStuck": _level(f"llm_api_jobs_oldest_wait_seconds{{{N}}}", 901, 899),
    "LLMAPISpendAnomaly": _spending,
    "LLMAPIProviderErrors": _ratio(_CALLS, f'{_P},outcome="upstream_timeout"', f'{_P},outcome="ok"', 10),
    "LLMAPIDeadlinesPassed": _ratio(_CALLS, f'{_P},outcome="deadline_passed"', f'{_P},outcome="ok"', 10),
    "LLMAPIProviderThrottling": _ratio(_CALLS, f'{_P},outcome="upstream_throttled"', f'{_P},outcome="ok"', 15),
    "LLMAPIProviderAllowanceLow": _level(f'llm_api_provider_remaining_ratio{{{N},{_P},resource="tokens"}}', 0.09, 0.11),
    "LLMAPICircuitOpen": _level(f'llm_api_upstream_breakers_open{{{N},{_P},model="m"}}', 1, 0),
    "LLMAPIRetryBudgetSpent": _growth(f"llm_api_retry_budget_exhausted_total{{{N},{_P}}}", 10),
    "LLMAPIQueueWait": _slow("llm_api_queue_wait_seconds", _P, 0.95, 10),
    "LLMAPIShedding": _ratio(_ENDED, 'family="chat",fault="capacity"', 'family="chat",fault="none"', 15),
    "LLMAPIJobsFailing": _ratio("llm_api_jobs_finished_total", 'status="failed"', 'status="complete"', 60),
    "LLMAPIJobRedeliveries": _growth(f"llm_api_job_redeliveries_total{{{N}}}", 60),
    "LLMAPIWebhooksFailing": _ratio("llm_api_webhooks_total", 'outcome="failed"', 'outcome="delivered"', 60),
    "LLMAPIUnpricedRequests": _growth(f'llm_api_unpriced_requests_total{{{N},model="m"}}', 60),
    "LLMAPIWrongKeys": _growth(f'llm_api_http_requests_total{{{N},code="401"}}', 10, unit=600),
    "LLMAPIEventLoopLag": _slow("llm_api_event_loop_lag_seconds", 'instance="i"', 0.99, 5),
    "LLMAPILimitsLocal": _level(f"llm_api_rate_limiter_local{{{N}}}", 1, 0),
    "LLMAPILedgerLocal": _level(f"llm_api_ledger_local{{{N}}}", 1, 0),
    "LLMAPIUsageDrainFailing": _level(f'llm_api_usage_drain_ok{{{N},sink="files"}}', 0, 1),
    "LLMAPIUsageForcedOut": _growth(f"llm_api_usage_forced_out_total{{{N}}}", 60),
    "LLMAPIUsageSetAside": _growth(f'llm_api_usage_set_aside_total{{{N},sink="files"}}', 60),
    "LLMAPISpansDropped": _growth(f'llm_api_trace_spans_total{{{N},outcome="queue_full"}}', 15),
    "LLMAPINotReady": _level(f"llm_api_ready{{{N}}}", 0, 1),
    "LLMAPIConfigurationRefused": _level(f"llm_api_config_last_reload_successful{{{N}}}", 0, 1),
    "LLMAPIKeyFileRefused": _level(f'llm_api_key_file_ok{{{N},what="client_keys"}}', 0, 1),
    "LLMAPIDefects": _growth(f'llm_api_unhandled_errors_total{{{N},place="http"}}', 60),
    "LLMAPINoData": _nothing,
    **{alert.name: _burn for alert in ALERTS if "slo" in alert.labels},
}


def cases_of(alert: Alert) -> list[Case]:
    """List the cases of an alert."""
    return list(CASES[alert.name](alert))
