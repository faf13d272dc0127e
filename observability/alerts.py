"""The alerts: symptoms page, causes make tickets. Each has its thresholds apart, so that tests can move them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, Literal

from observability.promql import BAD, FAILED, GENERATES, JUDGED, quantile, share, summed
from observability.slo import LEAST_BAD, OBJECTIVES, Burn, Objective, Severity

RUNBOOKS = "https://github.com/llm-api/llm-api/blob/main/docs/runbooks"
Dashboard = Literal["llm-api-service", "llm-api-provider", "llm-api-cost"]
"""By its uid."""
HOURLY_COST = "namespace:llm_api_cost_usd:increase1h"
DAYS_OF_HISTORY = 7


@dataclass(frozen=True, slots=True)
class Threshold:
    """A figure in an alert's expression, beyond which it fires."""

    value: float
    side: Literal["above", "below"] = "above"

    def moved(self, factor: float) -> "Threshold":
        """Return it so much farther away."""
        return replace(self, value=self.value * factor if self.side == "above" else self.value / factor)


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule."""

    name: str
    severity: Severity
    expr: str
    """A template: ``$NAME`` is a threshold's value."""
    thresholds: Mapping[str, Threshold]
    summary: str
    description: str
    """With Prometheus' templates of value and labels."""
    dashboard: Dashboard = "llm-api-service"
    for_min: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from others of its name."""
        return "-".join((self.name, *self.labels.values()))

    def rule(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        values = {name: f"{threshold.value:.12g}" for name, threshold in self.thresholds.items()}
        variable = "provider={{ $labels.provider }}" if "namespace, provider" in self.expr else ""
        query = "&var-".join(filter(None, ("var-namespace={{ $labels.namespace }}", variable)))
        return {
            "alert": self.name,
            "expr": Template(self.expr).substitute(values),
            **({"for": f"{self.for_min}m"} if self.for_min else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
                "dashboard_url": f"/d/{self.dashboard}?{query}",
            },
        }


def _burn(objective: Objective, burn: Burn) -> Alert:
    def measured(window: str) -> str:
        ratio = f'slo:sli_error:ratio_rate{window}{{sloth_id="{objective.sloth_id}"}}'
        return f"max without (sloth_window) ({ratio} > $factor * {objective.budget:g})"

    return Alert(
        objective.alert,
        burn.severity,
        f"{measured(burn.short)} and {measured(burn.long)} "
        f"and on (namespace) ({objective.bad_events('increase', burn.long)} > $bad)",
        {"factor": Threshold(burn.factor), "bad": Threshold(LEAST_BAD)},
        f"{objective.description}: this does not hold",
        f"{{{{ $value | humanizePercentage }}}} went badly in the last {burn.short}, and the last {burn.long} too are "
        f"over {burn.factor * objective.budget * 100:.3g} %. The objective is {objective.percent:g} %.",
        labels={"slo": objective.name, "window": burn.long},
    )


def _usual_cost() -> str:
    """Return the median of what the same hour cost on each of the last days."""
    days = (
        f'label_replace({HOURLY_COST} offset {day}d, "day", "{day}", "", "")' for day in range(1, DAYS_OF_HISTORY + 1)
    )
    return f"quantile by (namespace) (0.5, {' or '.join(days)})"


_CALLS = "llm_api_upstream_requests_total"

_COUNTED = f'{GENERATES},fault!="caller"'
_ALL_ENDS = summed("increase", "llm_api_requests_ended_total", _COUNTED, "30m")
_BAD_ENDS = summed("increase", "llm_api_requests_ended_total", f'{_COUNTED},fault=~"{BAD}"', "30m")
_API = 'llm_api_build_info{component="api"}'

SYMPTOMS = (
    Alert(
        "LLMAPIDown",
        "page",
        "group by (namespace) (llm_api_build_info or last_over_time(llm_api_build_info[1d])) "
        f"unless on (namespace) ({_API} and on (namespace, instance) llm_api_ready == 1)",
        {},
        "No process of the API takes requests",
        "None is seen that is ready, though there is one of the service, or was within a day.",
        for_min=2,
    ),
    Alert(
        "LLMAPIAllProvidersUnavailable",
        "page",
        share(
            summed("rate", _CALLS, 'outcome="ok"', "5m"),
            summed("rate", _CALLS, f'outcome!~"{JUDGED}"', "5m"),
        )
        + " < $share",
        {"share": Threshold(0.05, "below")},
        "Nearly no call to any provider succeeds",
        "{{ $value | humanizePercentage }} of the calls of the last 5 min brought an answer.",
        "llm-api-provider",
        for_min=1,
    ),
    Alert(
        "LLMAPIMostFail",
        "page",
        f"{share(_BAD_ENDS, _ALL_ENDS)} > $share and on (namespace) {_BAD_ENDS} > $failures",
        {"share": Threshold(0.5), "failures": Threshold(4.5)},
        "Most requests fail",
        "{{ $value | humanizePercentage }} of those of the last 30 min went badly, callers' mistakes left out.",
    ),
    Alert(
        "LLMAPIProviderKeyDead",
        "page",
        "max by (namespace, provider) (llm_api_provider_keys_dead) >= $keys",
        {"keys": Threshold(1)},
        "{{ $labels.provider }} refuses a key, or its account has no money left",
        "{{ $value }} keys are out of use, and no retry brings them back.",
        "llm-api-provider",
        for_min=1,
    ),
    Alert(
        "LLMAPIJobsStuck",
        "page",
        "max by (namespace) (llm_api_jobs_oldest_wait_seconds) > $promise",
        {"promise": Threshold(900)},
        "Background jobs are not begun",
        "By what any process sees of the queue, the oldest one waits for {{ $value | humanizeDuration }}.",
        for_min=2,
    ),
    Alert(
        "LLMAPISpendAnomaly",
        "page",
        f"{HOURLY_COST} > $factor * {_usual_cost()} and {HOURLY_COST} > $floor",
        {"factor": Threshold(3), "floor": Threshold(10)},
        "Much more money is spent than at this hour of other days",
        "${{ $value | humanize }} in the last hour, by the configured prices.",
        "llm-api-cost",
        for_min=5,
    ),
)

CAUSES = (
    Alert(
        "LLMAPIProviderErrors",
        "ticket",
        share(
            summed("rate", _CALLS, f'outcome=~"{FAILED}"', "10m", "provider"),
            summed("rate", _CALLS, f'outcome!~"{JUDGED}"', "10m", "provider"),
        )
        + " > $share",
        {"share": Threshold(0.05)},
        "{{ $labels.provider }} fails",
        "{{ $value | humanizePercentage }} of its calls fail by its fault.",
        "llm-api-provider",
        for_min=5,
    ),
    Alert(
        "LLMAPIDeadlinesPassed",
        "ticket",
        share(
            summed("rate", _CALLS, 'outcome="deadline_passed"', "10m", "provider"),
            summed("rate", _CALLS, 'outcome!="cancelled"', "10m", "provider"),
        )
        + " > $share",
        {"share": Threshold(0.2)},
        "Callers' time is over before {{ $labels.provider }} answers",
        "{{ $value | humanizePercentage }} of its calls end so: it may hang, and no other alert would tell.",
        "llm-api-provider",
        for_min=5,
    ),
    Alert(
        "LLMAPIProviderThrottling",
        "ticket",
        share(
            summed("rate", _CALLS, 'outcome="upstream_throttled"', "15m", "provider"),
            summed("rate", _CALLS, "", "15m", "provider"),
        )
        + " > $share",
        {"share": Threshold(0.01)},
        "{{ $labels.provider }} limits us",
        "{{ $value | humanizePercentage }} of its calls are answered 429.",
        "llm-api-provider",
        for_min=15,
    ),
    Alert(
        "LLMAPIProviderAllowanceLow",
        "ticket",
        "min by (namespace, provider, resource) (llm_api_provider_remaining_ratio) < $share",
        {"share": Threshold(0.1, "below")},
        "{{ $labels.provider }} has few {{ $labels.resource }} left for us",
        "{{ $value | humanizePercentage }} of the limit is left, by the provider's own word.",
        "llm-api-provider",
        for_min=15,
    ),
    Alert(
        "LLMAPICircuitOpen",
        "ticket",
        "max by (namespace, provider, model) (llm_api_upstream_breakers_open) >= $breakers",
        {"breakers": Threshold(1)},
        "{{ $labels.model }} at {{ $labels.provider }} is given a rest",
        "{{ $value }} circuit breakers of one process are open.",
        "llm-api-provider",
        for_min=10,
    ),
    Alert(
        "LLMAPIRetryBudgetSpent",
        "ticket",
        summed("increase", "llm_api_retry_budget_exhausted_total", "", "10m", "provider") + " > $retries",
        {"retries": Threshold(5)},
        "Requests to {{ $labels.provider }} are not tried again, since too many were",
        "{{ $value | humanize }} retries were not made in 10 min.",
        "llm-api-provider",
        for_min=5,
    ),
    Alert(
        "LLMAPIQueueWait",
        "ticket",
        quantile(0.95, "llm_api_queue_wait_seconds", "", "10m", "provider") + " > $seconds",
        {"seconds": Threshold(5)},
        "Requests wait long for their turn at {{ $labels.provider }}",
        "One in twenty of those that wait does so for {{ $value | humanizeDuration }}.",
        "llm-api-provider",
        for_min=10,
    ),
    Alert(
        "LLMAPIShedding",
        "ticket",
        share(
            summed("rate", "llm_api_requests_ended_total", f'{GENERATES},fault="capacity"', "15m"),
            summed("rate", "llm_api_requests_ended_total", GENERATES, "15m"),
        )
        + " > $share",
        {"share": Threshold(0.001)},
        "Requests are refused since there is too much to do",
        "{{ $value | humanizePercentage }} of all that came.",
        for_min=5,
    ),
    Alert(
        "LLMAPIJobsFailing",
        "ticket",
        share(
            summed("rate", "llm_api_jobs_finished_total", 'status="failed"', "1h"),
            summed("rate", "llm_api_jobs_finished_total", "", "1h"),
        )
        + " > $share",
        {"share": Threshold(0.05)},
        "Background jobs fail",
        "{{ $value | humanizePercentage }} of those that ended in the last hour.",
        for_min=15,
    ),
    Alert(
        "LLMAPIJobRedeliveries",
        "ticket",
        summed("increase", "llm_api_job_redeliveries_total", "", "1h") + " > $jobs",
        {"jobs": Threshold(3)},
        "Whoever works on background jobs dies",
        "{{ $value | humanize }} jobs were begun again in the last hour.",
        for_min=5,
    ),
    Alert(
        "LLMAPIWebhooksFailing",
        "ticket",
        share(
            summed("rate", "llm_api_webhooks_total", 'outcome=~"failed|refused"', "1h"),
            summed("rate", "llm_api_webhooks_total", "", "1h"),
        )
        + " > $share",
        {"share": Threshold(0.1)},
        "Callers' servers cannot be told that their jobs ended",
        "{{ $value | humanizePercentage }} of the attempts of the last hour failed.",
        for_min=15,
    ),
    Alert(
        "LLMAPIUnpricedRequests",
        "ticket",
        summed("increase", "llm_api_unpriced_requests_total", "", "1h", "model") + " > $requests",
        {"requests": Threshold(1)},
        "{{ $labels.model }} has no price",
        "{{ $value | humanize }} generations of the last hour cost something that is nowhere.",
        "llm-api-cost",
        for_min=5,
    ),
    Alert(
        "LLMAPIWrongKeys",
        "ticket",
        summed("rate", "llm_api_http_requests_total", 'code="401"', "10m") + " > $rate",
        {"rate": Threshold(1)},
        "Many requests come with a wrong key",
        "{{ $value | humanize }} of them a second.",
        "llm-api-cost",
        for_min=10,
    ),
    Alert(
        "LLMAPIEventLoopLag",
        "ticket",
        quantile(0.99, "llm_api_event_loop_lag_seconds", "", "5m", "instance") + " > $seconds",
        {"seconds": Threshold(0.1)},
        "{{ $labels.instance }} has more to compute than it can",
        "One look in a hundred at its event loop is {{ $value | humanizeDuration }} late.",
        for_min=10,
    ),
    Alert(
        "LLMAPILimitsLocal",
        "ticket",
        "sum by (namespace) (llm_api_rate_limiter_local) >= $processes",
        {"processes": Threshold(1)},
        "Redis is away: each process keeps limits by itself",
        "{{ $value }} processes do. They hold at their part of `admission.replicas`; money budgets are refused.",
        for_min=5,
    ),
    Alert(
        "LLMAPILedgerLocal",
        "ticket",
        "sum by (namespace) (llm_api_ledger_local) >= $processes",
        {"processes": Threshold(1)},
        "Redis is away: the ledger is kept in files",
        "{{ $value }} processes write records of usage to a file of their own, and send them on when it is back.",
        "llm-api-cost",
        for_min=10,
    ),
    Alert(
        "LLMAPIUsageDrainFailing",
        "ticket",
        "sum by (namespace, sink) (1 - llm_api_usage_drain_ok) >= $processes",
        {"processes": Threshold(1)},
        "Records of usage do not reach {{ $labels.sink }}",
        "{{ $value }} processes cannot take them there. They stay in Redis for `usage.kept_s`, or until "
        "there are `usage.records_max`, and are lost then.",
        "llm-api-cost",
        for_min=15,
    ),
    Alert(
        "LLMAPIUsageForcedOut",
        "ticket",
        summed("increase", "llm_api_usage_forced_out_total", "", "1h") + " > $records",
        {"records": Threshold(0.5)},
        "Records of usage are lost: the store holds `usage.records_max`",
        "{{ $value | humanize }} records of the last hour went before a sink had them, or before `usage.kept_s`.",
        "llm-api-cost",
    ),
    Alert(
        "LLMAPIUsageSetAside",
        "ticket",
        summed("increase", "llm_api_usage_set_aside_total", "", "1h", "sink") + " > $records",
        {"records": Threshold(0.5)},
        "Records of usage are not with the others in {{ $labels.sink }}",
        "{{ $value | humanize }} of the last hour were set aside there: no sum has them.",
        "llm-api-cost",
    ),
    Alert(
        "LLMAPISpansDropped",
        "ticket",
        summed("increase", "llm_api_trace_spans_total", 'outcome!="exported"', "15m") + " > $spans",
        {"spans": Threshold(100)},
        "Traces have gaps",
        "{{ $value | humanize }} spans of the last 15 min were dropped. Requests do not suffer.",
        for_min=5,
    ),
    Alert(
        "LLMAPINotReady",
        "ticket",
        "sum by (namespace) (1 - llm_api_ready) >= $processes",
        {"processes": Threshold(1)},
        "Processes are not ready",
        "{{ $value }} get no traffic. Their `/ready` says why.",
        for_min=5,
    ),
    Alert(
        "LLMAPIConfigurationRefused",
        "ticket",
        "sum by (namespace) (1 - llm_api_config_last_reload_successful) >= $processes",
        {"processes": Threshold(1)},
        "The configuration file is wrong",
        "{{ $value }} processes go on with the one before. Their log names each problem.",
        for_min=5,
    ),
    Alert(
        "LLMAPIKeyFileRefused",
        "ticket",
        "sum by (namespace, what) (1 - llm_api_key_file_ok) >= $processes",
        {"processes": Threshold(1)},
        "A file of {{ $labels.what }} cannot be used",
        "{{ $value }} processes go on with the keys that they had.",
        for_min=5,
    ),
    Alert(
        "LLMAPIDefects",
        "ticket",
        summed("increase", "llm_api_unhandled_errors_total", "", "1h", "place") + " > $defects",
        {"defects": Threshold(0.5)},
        "Code met what it did not expect",
        "{{ $value | humanize }} times in the last hour, in {{ $labels.place }}. The log has the tracebacks.",
    ),
    Alert(
        "LLMAPINoData",
        "ticket",
        "absent(llm_api_requests_ended_total)",
        {},
        "There is nothing to judge by",
        "No process of the service is scraped: no other alert of it can fire.",
        for_min=10,
    ),
)

ALERTS = (*(_burn(objective, burn) for objective in OBJECTIVES for burn in objective.burns()), *SYMPTOMS, *CAUSES)

__all__ = ["ALERTS", "BAD", "HOURLY_COST", "Alert", "Dashboard", "Threshold"]
