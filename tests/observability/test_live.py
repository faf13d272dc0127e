"""Every expression of every panel, rule and alert, asked of a real Prometheus that saw the service do everything."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError

import pytest

from observability.alerts import ALERTS, Alert, Threshold
from observability.dashboards import DASHBOARDS
from observability.rules import alerting, recorded
from tests.observability.scene import Scene, played
from tests.support.prometheus import missing

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$job": ".*", "$instance": ".*", "$provider": ".*"}
SERIES_MAX = 3_000
SCRAPE_MAX_S = 0.1
WITHOUT_DATA = {
    "vllm:": "metrics of vLLM itself, which no test can run here; the names are those of its documentation",
    "LLMAPISpendAnomaly": "compares with the last seven days, which the test has not; promtool has, in test_alerts.py",
    "LLMAPIDown": "fires where no process of the API is ready; the test has one, and promtool has, in test_alerts.py",
    "LLMAPINoData": "fires where there is nothing: it is asked for the time before the service was there",
}
"""Expressions that can have no data here, by what they contain or whose they are, and why."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression."""

    where: str
    expr: str

    @property
    def exception(self) -> str | None:
        """Why it can have no data, if so."""
        return next((why for what, why in WITHOUT_DATA.items() if what in self.where + self.expr), None)


def concrete(expr: str) -> str:
    """Put something in the place of Grafana's variables."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def beyond(alert: Alert) -> Alert:
    """Return the alert with thresholds that any value is beyond, so that it has data where its metrics have."""
    moved = {
        name: Threshold(-1.0 if threshold.side == "above" else 1e12, threshold.side)
        for name, threshold in alert.thresholds.items()
    }
    return replace(alert, thresholds=moved)


def every_expression() -> Iterator[Asked]:
    for dashboard in DASHBOARDS:
        yield Asked(f"{dashboard.uid}: versions", concrete(dashboard.deploys))
        for panel in dashboard.panels():
            for query in panel.queries:
                yield Asked(f"{dashboard.uid}: {panel.title}: {query.legend}", concrete(query.expr))
    for group in recorded()["groups"]:
        for rule in group["rules"]:
            yield Asked(f"{group['name']}: {rule['record']}", rule["expr"])
    for alert in ALERTS:
        ((rule,),) = (group["rules"] for group in alerting([beyond(alert)])["groups"])
        yield Asked(f"alert {alert.key}", rule["expr"])


EXPRESSIONS = list(every_expression())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with played(tmp_path_factory.mktemp("scene")) as running:
        yield running


@pytest.fixture(scope="module")
def names(scene: Scene) -> set[str]:
    """Every name that Prometheus has of the service, and what the rules record."""
    return set(scene.prometheus.get("label/__name__/values"))


def test_the_scene_had_every_outcome(scene: Scene) -> None:
    def counted(expr: str) -> Mapping[str, float]:
        return {
            ",".join(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in scene.query(expr)
        }

    said = f"{scene.outcomes}"
    outcomes = counted("sum by (outcome) (llm_api_upstream_requests_total)")
    for outcome in (
        "ok",
        "cancelled",
        "upstream_rejected",
        "upstream_throttled",
        "upstream_overloaded",
        "upstream_unavailable",
        "upstream_timeout",
        "deadline_passed",
        "upstream_invalid_response",
        "upstream_misconfigured",
    ):
        assert outcomes[outcome] > 0, (outcome, said)
    kinds = counted("sum by (kind) (llm_api_upstream_attempts_total)")
    assert set(kinds) == {"first", "retry", "fallback", "hedge"}, said
    faults = counted("sum by (fault) (llm_api_requests_ended_total)")
    assert all(faults[fault] for fault in ("none", "caller", "us", "provider", "capacity")), (faults, said)
    ends = counted("sum by (transport, reason) (llm_api_stream_ends_total)")
    assert all(ends[end] for end in ("complete,sse", "error,sse", "client_disconnect,sse", "complete,ws")), ends
    codes = counted("sum by (code) (llm_api_http_requests_total)")
    assert {"200", "202", "204", "401", "404", "422", "429", "502", "503"} <= set(codes), codes
    for series in (
        "llm_api_job_redeliveries_total",
        'llm_api_jobs_finished_total{status="failed"}',
        "llm_api_queue_refusals_total",
        "llm_api_retry_budget_exhausted_total",
        "llm_api_upstream_breakers_open",
        "llm_api_provider_keys_dead",
        'llm_api_webhooks_total{outcome="delivered"}',
        'llm_api_webhooks_total{outcome="failed"}',
        'llm_api_stream_resumes_total{result="continued"}',
        "llm_api_unpriced_requests_total",
        "llm_api_cost_usd_total",
        "llm_api_usage_forced_out_total",
        'llm_api_usage_set_aside_total{sink="files"}',
        'llm_api_tokens_total{type="cached_input"}',
    ):
        # Also of the worker that is gone.
        ((_, value),) = (found["value"] for found in scene.query(f"sum(max_over_time({series}[10m]))"))
        assert float(value) > 0, (series, said)


@pytest.mark.parametrize("asked", EXPRESSIONS, ids=[asked.where for asked in EXPRESSIONS])
def test_an_expression_has_data(asked: Asked, scene: Scene) -> None:
    found = scene.query(asked.expr)
    values = [series["value"][1] for series in found]
    if asked.exception is not None:
        assert not found, "it has data after all: take it from the list"
        return
    assert any(value != "NaN" for value in values), asked.expr


def test_what_fires_where_there_is_nothing_did_so_before_there_was_anything(scene: Scene) -> None:
    expr = next(alert.expr for alert in ALERTS if alert.name == "LLMAPINoData")
    assert scene.prometheus.query(expr, at=scene.began_at - 60)


@pytest.mark.parametrize("asked", EXPRESSIONS, ids=[asked.where for asked in EXPRESSIONS])
def test_an_expression_knows_no_metric_that_the_service_does_not(asked: Asked, names: set[str]) -> None:
    known = names | {name for name in _NAME.findall(asked.expr) if name.startswith("vllm:")}
    assert metrics_in(asked.expr) <= known


def metrics_in(expr: str) -> set[str]:
    """Return the names of the metrics in an expression: what stands before a selector or a range, or has our prefix."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right) ?\([^)]*\)", " ", bare)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    prefixes = ("llm_api_", "process_", "python_", "vllm:", "slo:", "namespace:")
    return {name for name in _NAME.findall(bare) if name.startswith(prefixes)} | set(
        re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{\}", bare)
    )


def test_the_names_of_metrics_are_found() -> None:
    expr = 'sum by (llm_api_x) (rate(llm_api_a_total{b="llm_api_c"}[5m])) / on (d) up{} > vector(process_e)'
    assert metrics_in(expr) == {"llm_api_a_total", "up", "process_e"}


def queries_of(path: Path) -> list[str]:
    blocks = re.findall(r"```promql\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_a_runbooks_queries_work(path: Path, scene: Scene, names: set[str]) -> None:
    for expr in queries_of(path):
        try:
            scene.query(expr)
        except HTTPError as error:
            pytest.fail(f"{expr}: {error.read().decode()}")
        assert metrics_in(expr) <= names, expr


def test_each_rule_is_evaluated_without_an_error(scene: Scene) -> None:
    rules = [rule for group in scene.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] == "err"} == {}
    assert len(rules) == sum(len(group["rules"]) for file in (recorded(), alerting()) for group in file["groups"])


def test_a_process_has_few_series_and_is_scraped_quickly(scene: Scene) -> None:
    sizes = {
        process: sum(line[0] != "#" for line in scene.exposed(process).splitlines())
        for process in ("serve", "other worker")
    }
    ((_, took),) = (
        series["value"] for series in scene.query("max(quantile_over_time(0.5, scrape_duration_seconds[10m]))")
    )
    print(f"series: {sizes}; the median scrape took {float(took) * 1_000:.0f} ms")
    assert max(sizes.values()) <= SERIES_MAX
    assert float(took) <= SCRAPE_MAX_S
