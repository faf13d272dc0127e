"""Comparison of two runs: chance is called noise, and a difference that is there is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from load.compare import noise
from load.compare.__main__ import BAD_INPUT, REGRESSED, UNKNOWN, main
from load.compare.differences import Difference
from load.report.results import Request
from tests.support import load_runs


def compared(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], *options: str, **other: Any) -> int:
    paths = [
        load_runs.write(tmp_path / name, load_runs.requests(**made), **other)
        for name, made in (("a", {"seed": 1, **first}), ("b", {"seed": 2, **second}))
    ]
    return main([*map(str, paths), "--fail-above", "0.1", *options])


def found(tmp_path: Path) -> dict[str, dict[str, Any]]:
    tree = json.loads((tmp_path / "b" / "comparison" / "report.json").read_text())
    return {item["figure"]: item for item in tree["differences"]}


def test_chance_alone_is_noise(tmp_path: Path) -> None:
    assert compared(tmp_path, {}, {}) == 0
    assert not [figure for figure, item in found(tmp_path).items() if item["beyond_noise"]]


def test_a_slower_median_is_found_with_its_size(tmp_path: Path) -> None:
    assert compared(tmp_path, {}, {"ttft_s": 0.3}) == REGRESSED
    item = found(tmp_path)["ttft p50"]
    assert item["beyond_noise"]
    assert item["low"] < 0.1 < item["high"]
    assert item["low"] > 0.09


def test_what_is_faster_is_no_regression(tmp_path: Path) -> None:
    assert compared(tmp_path, {"ttft_s": 0.3}, {}) == 0
    assert found(tmp_path)["ttft p50"]["beyond_noise"]


def test_more_failures_are_a_regression(tmp_path: Path) -> None:
    assert compared(tmp_path, {}, {"good": 0.8}) == REGRESSED
    assert found(tmp_path)["completed"]["high"] < 0


def test_of_an_invalid_run_nothing_is_judged(tmp_path: Path) -> None:
    assert compared(tmp_path, {}, {"ttft_s": 0.3}, valid=False) == UNKNOWN


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(load_runs.write(tmp_path)), str(tmp_path / "absent.json")]) == BAD_INPUT
    assert "absent.json cannot be read" in capsys.readouterr().err


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(tmp_path, {}, {"ttft_s": 0.3})
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "ttft p50" in line)
    assert line.startswith("/stream")
    assert line.endswith("worse")
    assert lines[-1] == f"{tmp_path}/b/comparison/report.html"


def test_refusals_that_are_quick_make_no_answer_quicker(tmp_path: Path) -> None:
    compared(tmp_path, {}, {"good": 0.4})
    assert found(tmp_path)["e2e p50"]["after"] > 1


def test_time_for_each_token_is_from_the_first_content_to_the_last() -> None:
    times = {"intended_s": 0.0, "first_s": 1.0, "last_s": 3.0, "end_s": 9.0}
    made = Request(route="/", outcome="completed", output_tokens=21, **times)
    assert made.tpot_s == pytest.approx(0.1)
    assert made.model_copy(update={"output_tokens": 1}).tpot_s is None
    assert made.model_copy(update={"outcome": "cut"}).tpot_s is None


def requests_with(values: list[float]) -> list[Request]:
    return [
        Request(route="/", outcome="completed", intended_s=at * 0.1, first_s=at * 0.1 + value)
        for at, value in enumerate(values)
    ]


@pytest.mark.parametrize(("quantile", "value"), [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0)])
def test_percentiles_are_of_the_nearest_rank(quantile: float, value: float) -> None:
    made = requests_with([number / 100 for number in range(1, 101)])
    drawn = noise.percentiles(made, "ttft_s", quantile, duration_s=10, seed=0)
    assert drawn is not None
    assert drawn[0] == pytest.approx(value)


def test_a_stall_widens_the_interval_more_than_the_same_latencies_spread_over_the_run() -> None:
    """Two slow seconds in a row are one event: drawing single requests would take them for forty."""
    stalled = [2.0 if 280 <= number < 320 else 0.1 for number in range(600)]
    spread = [2.0 if number % 15 == 0 else 0.1 for number in range(600)]
    widths = []
    for values in (stalled, spread):
        drawn = noise.percentiles(requests_with(values), "ttft_s", 0.95, duration_s=60, seed=0)
        assert drawn is not None
        widths.append(float(np.std(drawn)))
    assert widths[0] > widths[1]


def test_of_too_few_requests_nothing_is_said() -> None:
    assert noise.percentiles(requests_with([1.0] * 19), "ttft_s", 0.5, duration_s=2, seed=0) is None


@pytest.mark.parametrize(
    ("before", "after", "low", "high", "bound", "regressed"),
    [
        (1.0, 1.2, 0.1, 0.3, 0.1, True),
        (1.0, 1.2, 0.1, 0.3, 0.25, False),
        (1.0, 1.2, -0.1, 0.5, 0.1, False),
        (1.0, 0.8, -0.3, -0.1, 0.1, False),
        (0.0, 0.2, 0.1, 0.3, 0.1, True),
    ],
)
def test_a_regression_is_worse_beyond_noise_and_beyond_the_bound(
    before: float, after: float, low: float, high: float, bound: float, *, regressed: bool
) -> None:
    assert Difference("/", "p50", before, after, low, high).regressed(bound) is regressed
