"""The files of rules: what is recorded, and what alerts."""

from collections.abc import Sequence
from typing import Any

from observability.alerts import ALERTS, HOURLY_COST, Alert
from observability.promql import summed
from observability.slo import OBJECTIVES, recording_rules


def recorded() -> dict[str, Any]:
    """Return the recording rules."""
    cost = {"record": HOURLY_COST, "expr": summed("increase", "llm_api_cost_usd_total", "", "1h")}
    return {"groups": [*map(recording_rules, OBJECTIVES), {"name": "llm-api-cost", "rules": [cost]}]}


def alerting(alerts: Sequence[Alert] = ALERTS) -> dict[str, Any]:
    """Return the alerting rules: those that page, and those that make tickets."""
    groups = {
        f"llm-api-{severity}s": [alert.rule() for alert in alerts if alert.severity == severity]
        for severity in ("page", "ticket")
    }
    return {"groups": [{"name": name, "rules": rules} for name, rules in groups.items() if rules]}
