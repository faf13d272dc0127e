"""The load tests as the chart brings them, and a fleet that is sized by what they find."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import NAME, Failed, Namespace, eventually
from tests.e2e.fleet import fleet

pytestmark = pytest.mark.timeout(3000)

JOB_S = 400
BREACH = 4
"""What a run ends with where an objective was not held (docs/load.md)."""
GOOD = "verdict: valid; every objective held\n"
QUICK = ["--ttft-ms", "100", "--gap-ms", "20"]
POD_CPU = "250m"
"""What a pod is held to, so that several together are still less than the machine has."""
MODEL = "gpt-4o-mini"
BOUNDS: dict[str, Any] = {
    "name": "bounds",
    "model": MODEL,
    "mix": {"v1": 1, "v1_stream": 2},
    "output_tokens": {"median": 20, "spread": 0.3, "max": 60},
    "goodput": {"ttft_s": 1, "e2e_s": 5},
    "slo": [
        {"metric": "ttft_s", "percentile": 95, "bound": 1, "routes": ["v1_stream"]},
        {"metric": "goodput_ratio", "bound": 0.99},
    ],
}
FRACTION = 0.65
PLANNED = 2.5
"""The planned rate, as a multiple of what one pod is planned for."""
STEP = 0.25
"""By which the rate rises each ``STEP_S`` seconds, as a multiple of the same."""
STEP_S = 25


def loading(image: str, scenario: dict[str, Any], *, workers: int = 2) -> dict[str, Any]:
    """Return values with which a release makes a run."""
    repository, _, tag = image.rpartition(":")
    resources = {"requests": {"cpu": "100m", "memory": "192Mi"}, "limits": {"memory": "512Mi"}}
    return {
        "enabled": True,
        "image": {"repository": repository, "tag": tag},
        "scenario": scenario,
        "workers": workers,
        "resources": resources,
        "masterResources": resources,
    }


def status_of(namespace: Namespace) -> int | None:
    """Return what the master ended with; nothing while it runs."""
    for pod in namespace.pods("load-master"):
        for container in pod["status"].get("containerStatuses", []):
            if "terminated" in container["state"]:
                return int(container["state"]["terminated"]["exitCode"])
    return None


def ended(namespace: Namespace, within_s: float = JOB_S) -> tuple[int, str]:
    """Wait for the master; return its exit status and its log."""
    eventually(lambda: status_of(namespace) is not None, within_s)
    log = namespace.kubectl("logs", "--selector", "app.kubernetes.io/component=load-master", "-c", "load", "--tail=-1")
    status = status_of(namespace)
    assert status is not None
    return status, log


def test_every_route_from_two_workers_then_by_helm_test(namespace: Namespace, load_image: str) -> None:
    namespace.install(fleet(2, simulator={"args": QUICK}, loadTest=loading(load_image, {})))
    status, log = ended(namespace)
    print(log[-1500:])
    assert status == 0
    assert log.endswith(GOOD)
    namespace.helm_test()


def test_missed_objective_fails_the_job(namespace: Namespace, load_image: str) -> None:
    scenario = {
        **BOUNDS,
        "arrivals": {"kind": "constant", "rate_per_s": 5, "duration_s": 10},
        "slo": [{"metric": "ttft_s", "percentile": 50, "bound": 0.05, "routes": ["v1_stream"]}],
    }
    namespace.install(fleet(1, simulator={"args": QUICK}, loadTest=loading(load_image, scenario, workers=1)))
    status, log = ended(namespace)
    assert status == BREACH, log
    master = ("jobs", "-l", "app.kubernetes.io/component=load-master")
    eventually(lambda: namespace.get(*master)["items"][0]["status"].get("failed") == 1)


def test_values_of_the_planner_hold_through_a_scale_out(namespace: Namespace, load_image: str, tmp_path: Path) -> None:
    try:
        namespace.cluster.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta1")
    except Failed:
        pytest.skip("this cluster serves no custom metrics")
    resources = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": POD_CPU, "memory": "512Mi"}}
    values = fleet(metrics={"annotations": True}, simulator={"args": QUICK}, resources=resources)
    namespace.install({**values, "replicas": 1})
    plan = _planned(namespace, tmp_path)
    target_per_s = plan["target_per_s"]
    rates = [0.8 * target_per_s]
    while rates[-1] < PLANNED * target_per_s:
        rates.append(min(rates[-1] + STEP * target_per_s, PLANNED * target_per_s))
    lengths = [60, *[STEP_S] * (len(rates) - 2), 90]
    steps = [{"rate_per_s": rate, "duration_s": length} for rate, length in zip(rates, lengths, strict=True)]
    scenario = {**BOUNDS, "arrivals": {"kind": "steps", "steps": steps}}
    namespace.install({**values, "loadTest": loading(load_image, scenario, workers=1)}, tmp_path / "values.yaml")
    pods = []
    until = time.monotonic() + sum(lengths) + JOB_S
    while time.monotonic() < until and status_of(namespace) is None:
        pods.append(int(namespace.get("deployment", NAME)["spec"]["replicas"]))
        time.sleep(5)
    status, log = ended(namespace)
    print(f"knee {plan['knee']:.0f}/s, planned {rates[-1]:.0f}/s; pods {pods}\n{log[-2500:]}")
    assert pods[0] < max(pods)
    assert status == 0


def _planned(namespace: Namespace, folder: Path) -> dict[str, Any]:
    """Run the planner against the only pod; return its knee and its target, in requests each second."""
    scenario = folder / "scenario.yaml"
    scenario.write_text(
        yaml.safe_dump({**BOUNDS, "arrivals": {"kind": "poisson", "rate_per_s": 10, "duration_s": 30, "seed": 1}})
    )
    with namespace.reached() as address, namespace.reached(f"deployment/{NAME}", 9090) as metrics:
        command = [
            *(sys.executable, "-m", "load.capacity", "--url", address, "--metrics", f"{metrics}/metrics"),
            *("--scenario", str(scenario), "--out", str(folder), "--duration", "30", "--rate-start", "15"),
            *("--fraction", str(FRACTION)),
        ]
        environment = {**os.environ, "LOAD_API_KEY": namespace.caller_key()}
        subprocess.run(command, env=environment, check=True)
    text = (folder / "values.yaml").read_text()
    print(text)
    knee = yaml.safe_load((folder / "capacity.json").read_text())
    return {"knee": knee["knee_per_s"], "target_per_s": knee["plan"]["target_per_s"]}
