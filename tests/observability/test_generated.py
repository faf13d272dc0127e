"""What is generated is what the code says, complete, and in the form that operators' tools want."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from observability.__main__ import CHART, PLAIN, files
from observability.alerts import ALERTS, Alert
from observability.dashboards import DASHBOARDS
from observability.panels import Dashboard, Panel
from observability.rules import PODS, RELEASE, alerting, of_all, of_release, recorded
from observability.slo import OBJECTIVES, Objective
from service.telemetry.metrics import FIRST_TOKEN_BUCKETS_S, JOB_BUCKETS_S, OVERHEAD_BUCKETS_S
from tests.observability.cases import CASES
from tests.support.prometheus import program

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Escalation"]
BUCKETS = {
    "llm_api_time_to_first_token_seconds": FIRST_TOKEN_BUCKETS_S,
    "llm_api_overhead_seconds": OVERHEAD_BUCKETS_S,
    "llm_api_job_wait_seconds": JOB_BUCKETS_S,
}
UNITS = {
    "x",
    "s",
    "short",
    "bytes",
    "cps",
    "ops",
    "reqps",
    "percentunit",
    "currencyUSD",
}
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels()]


def named(dashboard: Dashboard, panel: Panel) -> str:
    return f"{dashboard.uid}: {panel.title}"


@pytest.mark.parametrize("folder", [PLAIN, CHART], ids=lambda folder: folder.name)
def test_the_files_are_those_that_the_code_makes(folder: Path) -> None:
    there = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for kind in ("dashboards", "rules")
        for path in (folder / kind).iterdir()
    }
    assert there == files(folder), "run `make observability`"


@pytest.mark.parametrize("rules", [recorded(), alerting()], ids=["recording", "alerts"])
def test_the_charts_rules_look_at_one_release_alone(rules: dict[str, Any]) -> None:
    for plain, ours in zip(*(rules_of(one) for one in (rules, of_release(rules))), strict=True):
        assert ours["labels"]["release"] == RELEASE
        measured = re.findall(r"(?<![\w:])llm_api_\w+", plain["expr"])
        known = re.findall(r"(?<![\w:])(?:slo|namespace):[\w:]+", plain["expr"])
        assert ours["expr"].count(PODS) == len(measured)
        assert ours["expr"].count(f'release="{RELEASE}"') == len(known)


@pytest.mark.parametrize("rules", [recorded(), alerting()], ids=["recording", "alerts"])
def test_plain_rules_pass_over_what_those_of_a_release_record(rules: dict[str, Any]) -> None:
    for rule in rules_of(of_all(rules)):
        known = re.findall(r"(?<![\w:])(?:slo|namespace):[\w:]+", rule["expr"])
        assert rule["expr"].count('release=""') == len(known)


def test_releases_of_one_name_in_two_namespaces_are_told_apart() -> None:
    assert RELEASE == "@namespace@/@release@"


@pytest.mark.usefixtures("promtool")
@pytest.mark.parametrize("folder", [PLAIN, CHART], ids=lambda folder: folder.name)
def test_promtool_finds_nothing_wrong(folder: Path) -> None:
    files = [str(path) for path in (folder / "rules").iterdir()]
    done = subprocess.run([program("promtool"), "check", "rules", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rules_of(groups: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in groups["groups"] for rule in group["rules"]]


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_a_runbook_has_all_that_somebody_woken_needs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.MULTILINE))
    for linked in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / linked).exists(), linked


def test_each_alert_has_cases_of_its_own() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}
    assert len({alert.key for alert in ALERTS}) == len(ALERTS)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.key)
def test_an_alert_says_what_to_do(alert: Alert) -> None:
    rule = alert.rule()
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{alert.name}.md")
    assert any(f"/d/{dashboard.uid}?" in rule["annotations"]["dashboard_url"] for dashboard in DASHBOARDS)
    assert "$value" in rule["annotations"]["description"] or not alert.thresholds
    assert "$" not in rule["expr"]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_an_objectives_threshold_is_a_boundary(objective: Objective) -> None:
    if objective.within_s is not None:
        assert objective.within_s in BUCKETS[objective.counter]


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=[named(*pair) for pair in PANELS])
def test_a_panel_explains_itself(dashboard: Dashboard, panel: Panel) -> None:
    assert panel.title
    assert panel.description.endswith(".")
    if panel.kind == "text":
        assert panel.text
        return
    assert panel.unit in UNITS
    assert panel.queries
    for query in panel.queries:
        assert "$__rate_interval" in query.expr or "rate(" not in query.expr
        assert "namespace=~" in query.expr
        if "slo:" not in query.expr and "vllm:" not in query.expr and "namespace:" not in query.expr:
            assert query.expr.count("{") == query.expr.count('job=~"$job",instance=~"$instance"')


def rendered_panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    for panel in dashboard.render()["panels"]:
        yield panel
        yield from panel.get("panels", ())


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_a_dashboard_is_as_grafana_wants_it(dashboard: Dashboard) -> None:
    found = dashboard.render()
    variables = [variable["name"] for variable in found["templating"]["list"]]
    assert variables[:4] == ["datasource", "namespace", "job", "instance"]
    assert not found["editable"]
    panels = list(rendered_panels(dashboard))
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) == 23
    assert json.loads(json.dumps(found)) == found


def test_dashboards_lead_to_each_other() -> None:
    uids = {dashboard.uid for dashboard in DASHBOARDS}
    for dashboard in DASHBOARDS:
        assert {url.removeprefix("/d/") for url in dashboard.links.values()} == uids - {dashboard.uid}


def test_runbooks_name_settings_that_there_are() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    values = (ROOT / "charts" / "llm-api" / "README.md").read_text(encoding="utf-8")
    for path in RUNBOOKS.glob("*.md"):
        for setting in re.findall(r"`([a-z_]+(?:\.(?:\*|[a-zA-Z_]+))+)`", path.read_text(encoding="utf-8")):
            name = re.sub(r"\*|NAME", "<name>", setting)
            assert f"`{name}" in documented or f"`{setting}" in values, f"{path.stem}: {setting}"
