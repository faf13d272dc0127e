"""Every alert, run by promtool: it fires, it is silent just short of that, it ends; and each of its figures matters."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from observability.alerts import ALERTS, Alert
from observability.rules import alerting
from observability.slo import OBJECTIVES, Objective
from tests.observability.cases import Case, _shares, cases_of, file_of, recorded_for
from tests.support.prometheus import program

pytestmark = pytest.mark.usefixtures("promtool")
KEYS = [alert.key for alert in ALERTS]
FOR = "for"
RUN_TIMEOUT_S = 600


def mutants(alert: Alert) -> Iterator[tuple[str, Alert]]:
    """Give the alert with each of its figures ten times as far away."""
    for name, threshold in alert.thresholds.items():
        yield name, replace(alert, thresholds={**alert.thresholds, name: threshold.moved(10)})
    if alert.for_min:
        yield FOR, replace(alert, for_min=10 * alert.for_min)


def written(folder: Path, name: str, alert: Alert, cases: list[Case]) -> Path:
    rules = folder / f"{name}.rules.yaml"
    # In one group, since they are evaluated in no particular order, and a step may be longer than a sample is good for.
    (group,) = alerting([alert])["groups"]
    rules.write_text(yaml.safe_dump({"groups": [{**group, "rules": [*recorded_for(alert), *group["rules"]]}]}))
    path = folder / f"{name}.test.yaml"
    path.write_text(yaml.safe_dump(file_of(alert, cases, rules.name)))
    return path


def run(paths: list[Path]) -> Mapping[str, str]:
    """Run files of tests; return what promtool says of each."""
    command = [program("promtool"), "test", "rules", *map(str, paths)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    parts = re.split(r"^Unit Testing: +(\S+)$", done.stdout, flags=re.MULTILINE)[1:]
    heads, bodies = parts[::2], parts[1::2]
    return {Path(head).name.removesuffix(".test.yaml"): body for head, body in zip(heads, bodies, strict=True)}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("alerts")
    return run([written(folder, alert.key, alert, cases_of(alert)) for alert in ALERTS])


@pytest.fixture(scope="module")
def mutated(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("mutants")
    return run(
        [
            written(folder, f"{alert.key}.{name}", mutant, cases_of(alert))
            for alert in ALERTS
            for name, mutant in mutants(alert)
        ]
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("alert", ALERTS, ids=KEYS)
def test_it_fires_when_it_should_and_only_then(alert: Alert, verdicts: Mapping[str, str]) -> None:
    assert "SUCCESS" in verdicts[alert.key], verdicts[alert.key]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("alert", ALERTS, ids=KEYS)
def test_each_of_its_figures_matters(alert: Alert, mutated: Mapping[str, str]) -> None:
    for name, _ in mutants(alert):
        assert "FAILED" in mutated[f"{alert.key}.{name}"], f"{name} ten times as far away, and no test fails"


@pytest.mark.parametrize("alert", ALERTS, ids=KEYS)
def test_it_has_a_case_of_each_sort(alert: Alert) -> None:
    cases = cases_of(alert)
    assert {case.fires for case in cases} == {True, False}
    assert any("over" in case.name and not case.fires for case in cases)


def test_when_all_goes_badly_somebody_is_paged_within_three_minutes(tmp_path: Path) -> None:
    objective = next(one for one in OBJECTIVES if one.name == "availability")
    alert = next(one for one in ALERTS if one.key == "LLMAPIAvailabilityBurn-availability-1h")
    series = _shares(objective, [(0.0, 61), (1.0, 3)], total=10)
    path = written(tmp_path, "outage", alert, [Case("all bad", series, 63, fires=True)])
    (verdict,) = run([path]).values()
    assert "SUCCESS" in verdict, verdict


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_an_alert_can_be_met_when_all_goes_badly(objective: Objective) -> None:
    for burn in objective.burns():
        assert burn.factor * objective.budget < 1


def test_factors_follow_from_the_objective() -> None:
    lax = replace(OBJECTIVES[0], percent=90)
    assert [burn.factor for burn in lax.burns()] == [9, 6, 3, 1]
    with pytest.raises(ValueError, match="nothing can be told"):
        list(replace(lax, percent=5).burns())
