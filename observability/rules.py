"""The files of rules: what is recorded, and what alerts; for everybody, and for one release of the chart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from observability.alerts import ALERTS, HOURLY_COST, Alert
from observability.promql import summed
from observability.slo import OBJECTIVES, recording_rules

PODS = 'namespace="@namespace@",pod=~"@pods@"'
RELEASE = "@namespace@/@release@"
"""What the chart puts a release's namespace, the pattern of its pods' names and its own name in the place of.

Two namespaces may have releases of one name."""
_MEASURED = re.compile(r"(?<![\w:])(llm_api_\w+)(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"(?<![\w:])((?:slo|namespace):[\w:]+)(?:\{([^}]*)\})?")


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


def of_release(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return rules that look at one release alone, so that two of them in a namespace do not tell of each other."""
    return {
        "groups": [{**group, "rules": [_rule_of_release(rule) for rule in group["rules"]]} for group in rules["groups"]]
    }


def of_all(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return rules that pass over what those of a release record, so that both can live in one Prometheus."""
    return {
        "groups": [
            {
                **group,
                "rules": [
                    {**rule, "expr": _narrowed(_RECORDED, 'release=""', rule["expr"])} for rule in group["rules"]
                ],
            }
            for group in rules["groups"]
        ]
    }


def _rule_of_release(rule: Mapping[str, Any]) -> dict[str, Any]:
    expr = _narrowed(_RECORDED, f'release="{RELEASE}"', _narrowed(_MEASURED, PODS, rule["expr"]))
    return {**rule, "expr": expr, "labels": {**rule.get("labels", {}), "release": RELEASE}}


def _narrowed(metric: re.Pattern[str], selector: str, expr: str) -> str:
    """Put a selector on each metric of a sort."""
    return metric.sub(lambda found: f"{found[1]}{{{','.join(filter(None, (found[2], selector)))}}}", expr)
