"""What the planner writes, from its own command to what helm makes of it; load and metrics are made up."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typing_extensions import override

from load.capacity import pod
from load.capacity.__main__ import NOT_HELD, UNKNOWN, main
from tests.chart.rendering import ROOT, one, render
from tests.unit.load.test_capacity_plan import TEXT

MORE_THAN_ONE = {"redis": {"existingSecret": "store"}}
"""What the chart needs for more pods than one."""


class Metrics(BaseHTTPRequestHandler):
    """Answers as a pod that is idle."""

    def do_GET(self) -> None:
        body = TEXT.replace("} 3", "} 0").replace("} 4", "} 0").replace("in_flight 9", "in_flight 0").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(pod, "EVERY_S", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    thread.join()
    server.server_close()


def plan(metrics: str, out: Path, *options: str) -> int:
    fixed = ["--url", "http://pod", "--scenario", "any.yaml", "--duration", "0.3", "--rate-start", "20"]
    locust = ["--locust", f"{sys.executable} -m tests.support.fake_locust"]
    return main([*fixed, "--metrics", metrics, "--out", str(out), *locust, *options])


def test_the_chart_takes_the_values_and_renders_them(metrics: str, tmp_path: Path) -> None:
    assert plan(metrics, tmp_path, "--planned-rate", "200") == 0
    objects = render(MORE_THAN_ONE, tmp_path / "values.yaml")
    summary = json.loads((tmp_path / "capacity.json").read_text())
    assert 40 / 1.11 <= summary["knee_per_s"] <= 40
    values = yaml.safe_load((tmp_path / "values.yaml").read_text())
    scaler = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["maxReplicas"] == values["autoscaling"]["maxReplicas"] == summary["plan"]["pods_max"]
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"] == values["resources"]
    assert spec["terminationGracePeriodSeconds"] == values["longestStreamSeconds"] + 5 + 10 + 30 + 30
    assert "every objective held" in summary["check"]
    assert summary["runs"][-1]["rate_per_s"] == pytest.approx(summary["knee_per_s"] * 0.65)
    assert (tmp_path / "goodput.png").exists()


def test_a_generator_that_lags_gives_a_lower_bound_that_says_so(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GENERATOR", "25")
    assert plan(metrics, tmp_path, "--no-verify") == 0
    assert "a lower bound: above it the generator lagged" in (tmp_path / "values.yaml").read_text()
    assert json.loads((tmp_path / "capacity.json").read_text())["knee_per_s"] <= 25


def test_the_knee_is_what_was_due_and_not_what_was_wanted(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SHARE_DUE", "0.8")
    assert plan(metrics, tmp_path, "--rate-max", "20", "--no-verify") == 0
    assert json.loads((tmp_path / "capacity.json").read_text())["knee_per_s"] == pytest.approx(16)


def test_where_nothing_holds_no_values_are_written(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_CAPACITY", "0")
    assert plan(metrics, tmp_path, "--steps", "3") == NOT_HELD
    assert "no values are written" in capsys.readouterr().err
    assert not (tmp_path / "values.yaml").exists()


def test_without_metrics_the_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("http://127.0.0.1:1/metrics", tmp_path) == UNKNOWN
    assert "--metrics http://127.0.0.1:1/metrics" in capsys.readouterr().err
