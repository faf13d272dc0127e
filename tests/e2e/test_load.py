"""The load tests as the chart brings them."""

from typing import Any

import pytest

from tests.e2e.cluster import Namespace, eventually
from tests.e2e.fleet import fleet

pytestmark = pytest.mark.timeout(900)

JOB_S = 400
BREACH = 4
"""What a run ends with where an objective was not held (docs/load.md)."""
GOOD = "verdict: valid; every objective held\n"
QUICK = ["--ttft-ms", "100", "--gap-ms", "20"]
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
