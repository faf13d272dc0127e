"""Scaled by the service's own metric: out quickly under a step of streams, and in without cutting any."""

import os
import time

import pytest

from tests.e2e.cluster import NAME, Failed, Namespace, eventually
from tests.e2e.fleet import fleet
from tests.e2e.loading import under_load

pytestmark = pytest.mark.timeout(2400)

STEADY_S = float(os.environ.get("LLM_API_E2E_STEADY_S", "600"))
"""For which the number of pods must not change under a steady load."""
STREAMS_PER_POD = 20
OUT_S = 60


def wanted(namespace: Namespace) -> int:
    return int(namespace.get("deployment", NAME)["spec"]["replicas"])


def test_out_within_a_minute_then_steady_then_in_without_a_cut(namespace: Namespace) -> None:
    try:
        namespace.cluster.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta1")
    except Failed:
        pytest.skip("this cluster serves no custom metrics")
    quick = {
        "scaleDown": {"stabilizationWindowSeconds": 30, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}
    }
    namespace.install(
        fleet(
            metrics={"annotations": True},
            autoscaling={
                "enabled": True,
                "minReplicas": 1,
                "maxReplicas": 4,
                "streamsPerPod": STREAMS_PER_POD,
                "requestsPerPod": 0,
                "cpuPercent": 0,
                "behavior": quick,
            },
        )
    )
    assert wanted(namespace) == 1
    with under_load(namespace, streams=5, requests_per_s=2, pod="few") as few:
        begun_at = time.monotonic()
        with under_load(namespace, streams=50, requests_per_s=2, pod="many") as many:
            eventually(lambda: wanted(namespace) >= 3, OUT_S)
            out_s = time.monotonic() - begun_at
            namespace.only_pods(3)
            seen = set()
            end = time.monotonic() + STEADY_S
            while time.monotonic() < end:
                seen.add(wanted(namespace))
                time.sleep(5)
            assert seen == {3}
        assert many.failed == {}, many.summary
        eventually(lambda: wanted(namespace) == 1)
        namespace.only_pods(1)
    print(f"scaled out {out_s:.0f} s after the load had begun to start")
    assert few.failed == {}, few.summary
