from pathlib import Path

import pytest

from load.scenario import Scenario, ScenarioError, read_scenario

PLAIN = "name: x\nmix: {stream: 1}\narrivals: {kind: constant, rate_per_s: 10, duration_s: 5}\n"


def _read(folder: Path, text: str, **options: float) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return read_scenario(path, **options)  # type: ignore[arg-type]  # of the tests' making


def test_the_command_line_beats_the_file(tmp_path: Path) -> None:
    scenario = _read(tmp_path, PLAIN, rate_per_s=3, duration_s=2)
    assert len(list(scenario.schedule())) == 6
    assert scenario.duration_s == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN + "modell: y\n", "modell: no such field"),
        (PLAIN.replace("10", "-1"), r"arrivals.rate_per_s: .*greater than 0 \(given: -1\)"),
        (PLAIN.replace(", duration_s: 5", ""), "arrivals.duration_s: is missing"),
        (PLAIN.replace("stream: 1", "stream: 0"), "mix: all weights are 0"),
        (PLAIN + "slo: [{metric: ttft_s, bound: 1}]\n", "slo.0: ttft_s: give a percentile"),
        (PLAIN + "slo: [{metric: failed_ratio, bound: 2}]\n", "slo.0: failed_ratio is a share"),
        ("- a\n", "a mapping with name"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_fault_names_its_field_and_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        _read(tmp_path, text)


def test_an_option_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="--concurrency goes with arrivals of kind closed"):
        _read(tmp_path, PLAIN, concurrency=3)


def test_a_spike_is_its_own_rate_for_its_time(tmp_path: Path) -> None:
    spike = (
        "{kind: spike, process: constant, rate_per_s: 2, duration_s: 10, "
        "spike_rate_per_s: 20, spike_at_s: 4, spike_duration_s: 1}"
    )
    times = [arrival.at_s for arrival in _read(tmp_path, f"name: x\nmix: {{v1: 1}}\narrivals: {spike}\n").schedule()]
    assert len(times) == 8 + 20 + 10
    assert sum(4 <= time < 5 for time in times) == 20


def test_no_failure_is_allowed_unless_the_scenario_allows_it(tmp_path: Path) -> None:
    assert [(slo.metric, slo.bound) for slo in _read(tmp_path, PLAIN).objectives] == [("failed_ratio", 0)]
    text = PLAIN + "slo: [{metric: failed_ratio, bound: 0.01}]\n"
    assert [(slo.metric, slo.bound) for slo in _read(tmp_path, text).objectives] == [("failed_ratio", 0.01)]
